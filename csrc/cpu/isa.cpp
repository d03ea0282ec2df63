#include "isa.h"

#include <c10/util/Exception.h>

#include <array>
#include <cstdlib>
#include <initializer_list>
#include <string>

namespace convarith::cpu {
namespace baseline {
ConvKernels conv_kernels(int dtype);
WindowKernels window_kernels(int dtype);
}  // namespace baseline
#if defined(__x86_64__) && defined(__GNUC__)
namespace avx2 {
ConvKernels conv_kernels(int dtype);
WindowKernels window_kernels(int dtype);
}  // namespace avx2
namespace avx512 {
ConvKernels conv_kernels(int dtype);
WindowKernels window_kernels(int dtype);
}  // namespace avx512
#if __GNUC__ >= 10
#define CONVARITH_WITH_BF16
#endif
namespace avx512_bf16 {
#ifdef CONVARITH_WITH_BF16
ConvKernels conv_kernels(int dtype);
#else
using avx512::conv_kernels;
#endif
using avx512::window_kernels;
}  // namespace avx512_bf16
#endif

const char* isa_name(Isa isa) {
  static constexpr const char* names[] = {"baseline", "avx2", "avx512", "avx512_bf16"};
  return names[static_cast<int>(isa)];
}

Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();  // asks the system too, which must save the registers
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
    return Isa::kBaseline;
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
#ifdef CONVARITH_WITH_BF16
    if (__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512Bf16;
#endif
    return Isa::kAvx512;
  }
  return Isa::kAvx2;
#else
  return Isa::kBaseline;
#endif
}

static Isa decide() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("TORCH_CONVARITH_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (std::string(wanted) == isa_name(isa)) return isa < best ? isa : best;
  }
  TORCH_CHECK(false, "TORCH_CONVARITH_ISA must be one of baseline, avx2, avx512, avx512_bf16, not '", wanted, "'");
}

Isa active_isa() {
  static const Isa isa = decide();
  return isa;
}

// What the active instruction set has for each dtype; `of` are the functions of all instruction sets.
template <typename Kernels>
static std::array<Kernels, 4> active_table(std::initializer_list<Kernels (*)(int)> of) {
  std::array<Kernels, 4> table;
  for (int dtype = 0; dtype < 4; ++dtype) table[dtype] = of.begin()[static_cast<int>(active_isa())](dtype);
  return table;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define CONVARITH_ALL_ISAS(FUNCTION) {baseline::FUNCTION, avx2::FUNCTION, avx512::FUNCTION, avx512_bf16::FUNCTION}
#else
#define CONVARITH_ALL_ISAS(FUNCTION) {baseline::FUNCTION}
#endif

const ConvKernels& active_kernels(int dtype) {
  static const auto table = active_table<ConvKernels>(CONVARITH_ALL_ISAS(conv_kernels));
  return table[dtype];
}

const WindowKernels& active_window_kernels(int dtype) {
  static const auto table = active_table<WindowKernels>(CONVARITH_ALL_ISAS(window_kernels));
  return table[dtype];
}

}  // namespace convarith::cpu
