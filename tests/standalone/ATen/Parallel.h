// As much of torch's header as the engine uses, on one thread, so that the engine runs without torch.
#pragma once

#include <cstdint>

namespace at {

inline int get_num_threads() {
  return 2;  // plans split their work; the parts run in turn
}

inline bool in_parallel_region() {
  return false;
}

template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin >= end) return;
  const int64_t middle = end - begin > grain ? begin + (end - begin + 1) / 2 : end;
  body(begin, middle);
  if (middle < end) body(middle, end);
}

}  // namespace at
