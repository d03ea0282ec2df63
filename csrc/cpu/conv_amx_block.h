// What the kernels of AMX share: blocks of sums, in one or two by one or two registers (the first four, from left to
// right), and their rounding.
#pragma once

#include "conv_amx_plan.h"
#include "conv_amx_registers.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int64_t kRegisterRows = kAmxRegister, kRegisterWords = kAmxRegister,
                  kRegister = kRegisterRows * kRegisterWords;
constexpr int64_t kSumsRow = kAmxColumns * sizeof(float);  // bytes

// From those at `sums`, or from zeros.
template <int kHigh, int kWide>
inline void begin_block(const float* sums, bool add) {
  const float* low = sums + kRegisterRows * kAmxColumns;
  if (add) {
    CONVARITH_AMX_LOAD(0, sums, kSumsRow);
    if constexpr (kWide == 2) CONVARITH_AMX_LOAD(1, sums + kRegisterWords, kSumsRow);
    if constexpr (kHigh == 2) CONVARITH_AMX_LOAD(2, low, kSumsRow);
    if constexpr (kHigh == 2 && kWide == 2) CONVARITH_AMX_LOAD(3, low + kRegisterWords, kSumsRow);
  } else {
    CONVARITH_AMX_ZERO(0);
    if constexpr (kWide == 2) CONVARITH_AMX_ZERO(1);
    if constexpr (kHigh == 2) CONVARITH_AMX_ZERO(2);
    if constexpr (kHigh == 2 && kWide == 2) CONVARITH_AMX_ZERO(3);
  }
}

// A step: registers 4 and 5, of the left factor, by 6 and 7.
template <int kHigh, int kWide>
inline void multiply_step() {
  CONVARITH_AMX_MULTIPLY(0, 4, 6);
  if constexpr (kHigh == 2) CONVARITH_AMX_MULTIPLY(2, 5, 6);
  if constexpr (kWide == 2) CONVARITH_AMX_MULTIPLY(1, 4, 7);
  if constexpr (kHigh == 2 && kWide == 2) CONVARITH_AMX_MULTIPLY(3, 5, 7);
}

template <int kHigh, int kWide>
inline void end_block(float* sums) {
  float* low = sums + kRegisterRows * kAmxColumns;
  CONVARITH_AMX_STORE(0, sums, kSumsRow);
  if constexpr (kWide == 2) CONVARITH_AMX_STORE(1, sums + kRegisterWords, kSumsRow);
  if constexpr (kHigh == 2) CONVARITH_AMX_STORE(2, low, kSumsRow);
  if constexpr (kHigh == 2 && kWide == 2) CONVARITH_AMX_STORE(3, low + kRegisterWords, kSumsRow);
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
