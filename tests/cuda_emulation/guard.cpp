// While guard(true), torch's CPU tensors get guarded memory (emulation.h), full of NaN bytes: an access of a kernel
// outside of them is an error, and what it leaves unwritten shows.
#include <c10/core/CPUAllocator.h>

#include <atomic>

#include "emulation.h"

namespace {

std::atomic<bool> written_outside = false;

void release(void* memory) {
  if (!emulation::release(memory)) written_outside = true;
}

class GuardedAllocator : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes == 0 ? nullptr : emulation::allocate(bytes, 16);
    return {memory, memory, bytes == 0 ? [](void*) {} : release, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }
};

}  // namespace

extern "C" void guard(bool on) {
  static GuardedAllocator guarded;
  static c10::Allocator* const usual = c10::GetCPUAllocator();
  c10::SetCPUAllocator(on ? &guarded : usual);
}

// Whether something was written right outside of guarded memory that is free by now; forgets it.
extern "C" bool was_written_outside() {
  return written_outside.exchange(false);
}
