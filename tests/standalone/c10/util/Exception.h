// As much of torch's header as the engine uses.
#pragma once

#include <sstream>
#include <stdexcept>

#define TORCH_CHECK(CONDITION, ...) \
  if (!(CONDITION)) throw std::runtime_error(standalone::join(__VA_ARGS__))

namespace standalone {
template <typename... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}
}  // namespace standalone
