// Tensors of the tests without torch: memory of exactly their size, small numbers in the bits of a dtype.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>

namespace {

std::mt19937 generator;

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

// Memory of exactly this size.
struct Tensor {
  Tensor(int64_t count, int64_t item) : size(count * item), data(new char[static_cast<size_t>(size)]) {}
  int64_t size;
  std::unique_ptr<char[]> data;
};

// Small integers in the bits of a dtype: float, double, bfloat16, float16.
void put(char* to, int64_t index, int dtype, int value) {
  const auto f = static_cast<float>(value);
  const double d = value;
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t exponent = (bits >> 23 & 255) - 112;
  const auto half =
      static_cast<uint16_t>(value == 0 ? 0 : (bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 1023));
  const auto brain = static_cast<uint16_t>(bits >> 16);
  switch (dtype) {
    case 0:
      std::memcpy(to + 4 * index, &f, 4);
      return;
    case 1:
      std::memcpy(to + 8 * index, &d, 8);
      return;
    case 2:
      std::memcpy(to + 2 * index, &brain, 2);
      return;
    default:
      std::memcpy(to + 2 * index, &half, 2);
  }
}

double get(const char* from, int64_t index, int dtype) {
  float f;
  double d;
  uint16_t half;
  uint32_t bits;
  switch (dtype) {
    case 0:
      std::memcpy(&f, from + 4 * index, 4);
      return f;
    case 1:
      std::memcpy(&d, from + 8 * index, 8);
      return d;
    case 2:
      std::memcpy(&half, from + 2 * index, 2);
      bits = static_cast<uint32_t>(half) << 16;
      std::memcpy(&f, &bits, 4);
      return f;
    default:
      std::memcpy(&half, from + 2 * index, 2);
      d = std::ldexp((half & 1023) + (half & 0x7c00 ? 1024 : 0), std::max(1, half >> 10 & 31) - 25);
      return half & 0x8000 ? -d : d;
  }
}

constexpr int kItem[] = {4, 8, 2, 2};

}  // namespace
