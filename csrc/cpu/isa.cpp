#include "isa.h"

#include <c10/util/Exception.h>

#include <array>
#include <cstdlib>
#include <string>

namespace convarith::cpu {
namespace baseline {
ConvKernels conv_kernels(int dtype);
}
#if defined(__x86_64__) && defined(__GNUC__)
namespace avx2 {
ConvKernels conv_kernels(int dtype);
}
namespace avx512 {
ConvKernels conv_kernels(int dtype);
}
#endif

const char* isa_name(Isa isa) {
  static constexpr const char* names[] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(isa)];
}

Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();  // asks the system too, which must save the registers
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kBaseline;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
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
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (std::string(wanted) == isa_name(isa)) return isa < best ? isa : best;
  }
  TORCH_CHECK(false, "TORCH_CONVARITH_ISA must be one of baseline, avx2, avx512, not '", wanted, "'");
}

Isa active_isa() {
  static const Isa isa = decide();
  return isa;
}

const ConvKernels& active_kernels(int dtype) {
  static const std::array<ConvKernels, 4> table = [] {
    std::array<ConvKernels, 4> kernels;
    for (int d = 0; d < 4; ++d) {
      switch (active_isa()) {
#if defined(__x86_64__) && defined(__GNUC__)
        case Isa::kAvx512:
          kernels[d] = avx512::conv_kernels(d);
          break;
        case Isa::kAvx2:
          kernels[d] = avx2::conv_kernels(d);
          break;
#endif
        default:
          kernels[d] = baseline::conv_kernels(d);
      }
    }
    return kernels;
  }();
  return table[dtype];
}

}  // namespace convarith::cpu
