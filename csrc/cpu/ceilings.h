// What the machine can do at most: the kernels are held against it.
#pragma once

#include <cstdint>

namespace convarith::cpu {

// Runs multiply-adds in registers on every thread, for as long as `rounds` are, and returns how many operations those
// were.
int64_t run_multiply_adds(int dtype, int64_t rounds);

// Seconds that a cache line takes from one thread to another, the mean of so many ways there and back: some 30 to 60 ns
// where they share a cache, several times that between dies. NaN where there is one thread only.
double handoff_seconds(int64_t rounds);

}  // namespace convarith::cpu
