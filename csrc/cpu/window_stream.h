// How results leave for memory. As simd.h, whose rules hold here.
#pragma once

#include <cstddef>

#include "simd_lanes.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Whole lines past the caches: what is written whole need not be read before.
inline void store_past_caches(char* to, const char* from, int64_t bytes) {
#if defined(__x86_64__)
  for (int64_t i = 0; i < bytes; i += CONVARITH_BYTES) {
#if CONVARITH_BYTES == 64
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
#elif CONVARITH_BYTES == 32
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i)));
#else
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
#endif
  }
#else
  __builtin_memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// What a thread writes of a result, from its first entry to its last: next() has room for what comes next. Vectors may
// be stored whole there, up to a vector past the room's end, where what follows writes over them. The room is in the
// result, but at its end; a thread that writes more than its caches hold collects it instead, and sends whole lines:
// few at a time, so that memory is at work all the time, and late, so that they have reached the cache.
template <typename T>
class Stream {
 public:
  Stream(T* to, int64_t count) : Stream(to, count, count) {}
  // Where a thread has several streams, which are `all` entries together.
  Stream(T* to, int64_t count, int64_t all) : p_(to), to_(reinterpret_cast<char*>(to)) {
    collects_ = all * static_cast<int64_t>(sizeof(T)) >= kCached;
    if (!collects_ && count >= kMargin) limit_ = to + (count - kMargin);
  }
  ~Stream() {
    if (is_buffer_) copy(bytes());
#if defined(__x86_64__)
    if (collects_) _mm_sfence();
#endif
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  T* next(int64_t count) {  // four vectors at most
    if (p_ > limit_) advance();
    T* const p = p_;
    p_ += count;
    return p;
  }

 private:
  static constexpr int64_t kCached = 1 << 21, kLine = 64, kBytes = 64 * kLine, kStep = 8 * kLine, kLate = 8 * kLine;
  static constexpr int64_t kMargin = 5 * CONVARITH_BYTES / sizeof(T);  // a room and a vector past it

  int64_t bytes() const { return reinterpret_cast<char*>(p_) - from_; }  // not sent

  void copy(int64_t count) {
    __builtin_memcpy(to_, from_, static_cast<size_t>(count));
    to_ += count;
    from_ += count;
  }

  __attribute__((noinline)) void advance() {
    if (!is_buffer_) {
      is_buffer_ = true;
      to_ = reinterpret_cast<char*>(p_);
      begin_buffer(0);
    } else if (collects_) {
      copy(least<int64_t>(bytes(), -reinterpret_cast<intptr_t>(to_) & (kLine - 1)));
      const int64_t lines = most<int64_t>(0, bytes() - kLate) / kLine * kLine;
      store_past_caches(to_, from_, lines);
      to_ += lines;
      from_ += lines;
    } else {
      copy(bytes());
    }
    if (reinterpret_cast<char*>(p_ + kMargin) + kStep > buffer_ + kBytes) begin_buffer(bytes());
    limit_ = p_ + kStep / static_cast<int64_t>(sizeof(T));
  }

  // Entries stand in the buffer as in their lines.
  void begin_buffer(int64_t kept) {
    char* begin = buffer_ + reinterpret_cast<uintptr_t>(to_) % kLine;
    __builtin_memmove(begin, from_, static_cast<size_t>(kept));
    from_ = begin;
    p_ = reinterpret_cast<T*>(begin + kept);
  }

  alignas(kLine) char buffer_[kBytes];
  T *p_, *limit_ = nullptr;     // where the next entry is put, and may be put as it is
  char *to_, *from_ = buffer_;  // of what is to be sent
  bool collects_, is_buffer_ = false;
};

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
