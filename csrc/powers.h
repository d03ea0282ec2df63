// Powers, roots and slopes of L^p pooling. For host and device, without torch.
#pragma once

#include <math.h>

#include "geometry.h"

namespace convarith {

// kPower is p where it is 1, 2 or 3, else 0; kSigned is torch's reading, which takes powers of x instead of |x|.
template <int kPower, bool kSigned, typename A>
struct Powers {
  double p;

  CONVARITH_HD A power(A v) const {  // |v|^p
    const A u = kSigned ? v : A(fabs(v));
    if constexpr (kPower == 1) return u;
    if constexpr (kPower == 2) return u * u;
    if constexpr (kPower == 3) return u * u * u;
    return pow(u, static_cast<A>(p));
  }

  CONVARITH_HD A root(A s) const {  // s^(1/p)
    if constexpr (kPower == 1) return s;
    if constexpr (kPower == 2) return sqrt(s);
    return pow(s, static_cast<A>(1 / p));
  }

  // dy/dv of y = (sum of |v|^p)^(1/p) is |v|^(p-1) sign(v) y^(1-p), and 0 where y is; here but for alone(v).
  CONVARITH_HD A slope(A v, A y) const {
    if constexpr (kPower == 1) return kSigned ? (y == 0 ? A(0) : A(1)) : static_cast<A>((v > 0) - (v < 0));
    if (y == 0) return A(0);
    const A ratio = v / y;  // where powers of v and y leave the range of A, those of their ratio do not
    if constexpr (kPower == 2) return ratio;
    if constexpr (kPower == 3) return kSigned ? ratio * ratio : ratio * A(fabs(ratio));
    if constexpr (kSigned) return pow(y, static_cast<A>(1 - p));
    return copysign(pow(A(fabs(ratio)), static_cast<A>(p - 1)), v);
  }

  // The factor that torch multiplies a whole sum by: NaN for negative v, even where the sum is empty.
  CONVARITH_HD A alone(A v) const {
    if constexpr (kPower == 0 && kSigned) return pow(v, static_cast<A>(p - 1));
    return A(1);
  }
};

}  // namespace convarith
