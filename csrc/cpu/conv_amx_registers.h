// The registers of AMX: eight of 16 rows of 64 bytes each, by the processor's instructions; or, to be looked at by
// sanitizers and run on any processor, CONVARITH_EMULATED_AMX, as arrays.
#pragma once

#include <cstdint>

#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

#if CONVARITH_EMULATED_AMX
struct AmxRegister {
  uint32_t word[16][16];
};
thread_local AmxRegister amx_register[8];
struct AmxRegisters {
  AmxRegisters() {}
  ~AmxRegisters() {}
};

inline void amx_load(AmxRegister& to, const void* from, int64_t pitch) {
  for (int r = 0; r < 16; ++r) __builtin_memcpy(to.word[r], static_cast<const char*>(from) + r * pitch, 64);
}
inline void amx_store(const AmxRegister& from, void* to, int64_t pitch) {
  for (int r = 0; r < 16; ++r) __builtin_memcpy(static_cast<char*>(to) + r * pitch, from.word[r], 64);
}
inline void amx_multiply_add(AmxRegister& sum, const AmxRegister& a, const AmxRegister& b) {
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 16; ++c) {
      float total = as<float>(sum.word[r][c]);
      for (int k = 0; k < 16; ++k) {
        total += as<float>(a.word[r][k] << 16) * as<float>(b.word[k][c] << 16);
        total += as<float>(a.word[r][k] & 0xffff0000u) * as<float>(b.word[k][c] & 0xffff0000u);
      }
      sum.word[r][c] = as<uint32_t>(total);
    }
  }
}
#define CONVARITH_AMX_ZERO(REGISTER) amx_register[REGISTER] = {}
#define CONVARITH_AMX_LOAD(REGISTER, FROM, PITCH) amx_load(amx_register[REGISTER], FROM, PITCH)
#define CONVARITH_AMX_LOAD_PASSING CONVARITH_AMX_LOAD
#define CONVARITH_AMX_STORE(REGISTER, TO, PITCH) amx_store(amx_register[REGISTER], TO, PITCH)
#define CONVARITH_AMX_MULTIPLY(SUM, A, B) amx_multiply_add(amx_register[SUM], amx_register[A], amx_register[B])

#else

// All eight registers whole, for as long as this lives: without it every switch of threads would save them.
class AmxRegisters {
 public:
  AmxRegisters() {
    Shape shape = {};
    shape.palette = 1;
    for (int i = 0; i < 8; ++i) {
      shape.row_bytes[i] = 64;
      shape.rows[i] = 16;
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~AmxRegisters() { asm volatile("tilerelease"); }
  AmxRegisters(const AmxRegisters&) = delete;
  AmxRegisters& operator=(const AmxRegisters&) = delete;

 private:
  struct alignas(64) Shape {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
};

// Memory that is read and written is not told one by one: the compiler's own intrinsics do not name it either.
#define CONVARITH_AMX_ZERO(REGISTER) asm volatile("tilezero %%tmm" #REGISTER ::)
#define CONVARITH_AMX_LOAD(REGISTER, FROM, PITCH) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #REGISTER ::"r"(FROM), "r"(PITCH) : "memory")
// Of what only passes through the first cache, and should not drive out what stays.
#define CONVARITH_AMX_LOAD_PASSING(REGISTER, FROM, PITCH) \
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm" #REGISTER ::"r"(FROM), "r"(PITCH) : "memory")
#define CONVARITH_AMX_STORE(REGISTER, TO, PITCH) \
  asm volatile("tilestored %%tmm" #REGISTER ", (%0,%1,1)" ::"r"(TO), "r"(PITCH) : "memory")
#define CONVARITH_AMX_MULTIPLY(SUM, A, B) asm volatile("tdpbf16ps %%tmm" #B ", %%tmm" #A ", %%tmm" #SUM ::)
#endif

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
