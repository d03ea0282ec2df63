#include "ceilings.h"

#include <atomic>
#include <chrono>
#include <limits>
#include <thread>

#include "conv_planning.h"
#include "isa.h"

namespace convarith::cpu {

int64_t run_multiply_adds(int dtype, int64_t rounds) {
  const ConvKernels& k = active_kernels(dtype);
  const int64_t threads = thread_count();
  std::atomic<int64_t> operations{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    const Buffer result(k.lanes * k.sum_item);
    for (int64_t i = begin; i < end; ++i) operations += k.multiply_adds(rounds, result.get());
  });
  return operations;
}

double handoff_seconds(int64_t rounds) {
  constexpr double kNever = std::numeric_limits<double>::quiet_NaN();
  if (thread_count() < 2) return kNever;
  struct alignas(128) Line {
    std::atomic<int64_t> turn{0};
  } line;
  // Each adds one where it meets its parity. Threads that are fewer than asked for would wait for themselves for ever.
  std::atomic<bool> met{true};
  const auto play = [&](int64_t parity) {
    for (int64_t i = 0; i < rounds; ++i) {
      const int64_t mine = 2 * i + parity;
      for (int64_t spins = 0; line.turn.load(std::memory_order_acquire) != mine; ++spins) {
        if (spins > 100'000'000 || !met) {
          met = false;
          return;
        }
        if (spins % 4096 == 4095) std::this_thread::yield();  // the other may wait for this very core
      }
      line.turn.store(mine + 1, std::memory_order_release);
    }
  };
  const auto start = std::chrono::steady_clock::now();
  at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) play(i);
  });
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return met ? elapsed.count() / static_cast<double>(2 * rounds) : kNever;
}

}  // namespace convarith::cpu
