// How results leave for memory. As simd.h, whose rules hold here.
#pragma once

#include <cstddef>

#include "pooling_lines.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// What a thread writes of a result, from its first entry to its last: next() has room for what comes next, and asks
// for what comes later. Vectors may be stored whole there, up to a vector past the room's end, where what follows
// writes over them; so the last rooms are not in the result itself.
template <typename T>
class Stream {
 public:
  Stream(T* to, int64_t count) : p_(to), left_(count) {}
  ~Stream() {
    if (to_ != nullptr) __builtin_memcpy(to_, buffer_, static_cast<size_t>(p_ - buffer_) * sizeof(T));
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  T* next(int64_t count) {  // four vectors at most
    if (left_ >= kMargin) {
      prefetch_ahead(p_, kBytesAhead / sizeof(T), count);
    } else if (to_ == nullptr) {
      to_ = p_;
      p_ = buffer_;
    }
    T* const p = p_;
    p_ += count;
    left_ -= count;
    return p;
  }

 private:
  static constexpr int64_t kMargin = 5 * CONVARITH_BYTES / sizeof(T);  // a room and a vector past it

  T* p_;             // where the next entry is put
  int64_t left_;     // how many are to come
  T* to_ = nullptr;  // where those in the buffer belong, if there are any
  T buffer_[2 * kMargin];
};

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
