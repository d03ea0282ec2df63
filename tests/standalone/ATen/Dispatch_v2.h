// As much of torch's header as dispatch.h names.
#pragma once

namespace at {

enum ScalarType : int { kFloat, kDouble, kBFloat16, kHalf };
struct Half {};
struct BFloat16 {};

}  // namespace at
