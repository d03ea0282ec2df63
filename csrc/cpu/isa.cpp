#include "isa.h"

#include <c10/util/Exception.h>

#include <array>
#include <cstdlib>
#include <initializer_list>
#include <string>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
namespace avx512_bf16 {
ConvKernels conv_kernels(int dtype);
}
namespace avx512_amx {
ConvKernels conv_kernels(int dtype);
}
#else
namespace avx512_bf16 {
using avx512::conv_kernels;
}
namespace avx512_amx {
using avx512::conv_kernels;
}
#endif
namespace avx512_bf16 {
using avx512::window_kernels;
}
namespace avx512_amx {
using avx512::window_kernels;
}
#endif

const char* isa_name(Isa isa) {
  static constexpr const char* names[] = {"baseline", "avx2", "avx512", "avx512_bf16", "avx512_amx"};
  return names[static_cast<int>(isa)];
}

namespace {

#if defined(__x86_64__) && defined(__GNUC__)
// Whether the processor has AMX for bfloat16 and the system lets this process use it, which Linux must be asked for.
bool may_use_amx() {
#if defined(CONVARITH_EMULATED_AMX)
  return true;
#elif defined(__linux__)
  constexpr unsigned kBrain = 1u << 22, kTiles = 1u << 24;
  constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBrain) == 0 || (d & kTiles) == 0) return false;
  return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool has(Isa isa) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();  // asks the system too, which must save the registers
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#ifdef CONVARITH_WITH_BF16
    case Isa::kAvx512Bf16:
      return has(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAvx512Amx:
      return has(Isa::kAvx512Bf16) && may_use_amx();
#endif
    default:
      return false;
  }
#else
  return isa == Isa::kBaseline;
#endif
}

// Fastest first: Intel multiplies pairs of bfloat16 in vectors at half the rate of float32.
Isa fastest(Isa most) {
  Isa best = most;
  while (!has(best)) best = static_cast<Isa>(static_cast<int>(best) - 1);
#if defined(__x86_64__) && defined(__GNUC__)
  if (best == Isa::kAvx512Bf16 && __builtin_cpu_is("intel")) return Isa::kAvx512;
#endif
  return best;
}

}  // namespace

Isa best_isa() {
  return fastest(Isa::kAvx512Amx);
}

// One that is asked for is taken where it is there, or the next lower one.
static Isa decide() {
  const char* wanted = std::getenv("TORCH_CONVARITH_ISA");
  if (wanted == nullptr || *wanted == '\0') return best_isa();
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAvx512Amx}) {
    if (std::string(wanted) == isa_name(isa)) return has(isa) ? isa : fastest(isa);
  }
  TORCH_CHECK(false, "TORCH_CONVARITH_ISA must be one of baseline, avx2, avx512, avx512_bf16, avx512_amx, not '",
              wanted, "'");
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
#define CONVARITH_ALL_ISAS(FUNCTION) \
  {baseline::FUNCTION, avx2::FUNCTION, avx512::FUNCTION, avx512_bf16::FUNCTION, avx512_amx::FUNCTION}
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
