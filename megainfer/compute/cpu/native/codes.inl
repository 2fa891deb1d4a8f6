// Codes of eight bits that rows are cached as, some floats of a row with one scale, over `Vec`.
#pragma once

#include <cstdint>
#include <cstring>

#include "e4m3.inl"
#include "level.h"

namespace {

// `lift` and `settle` are powers of two: what is multiplied with widened codes is multiplied with
// the one before, and sums of the products with the other after. So that no factor is subnormal,
// which processors are slow with: not a softmax's least weight times a scale either.

struct Int8Codes {
  static constexpr float largest = 127.0f;
  static constexpr float lift = 0x1p60f, settle = 0x1p-60f;

  // Of each lane what its highest byte stands for.
  static Vec::F widen(Vec::I x) { return Vec::to_float(Vec::shift_right(x, 24)); }

  // Of each word its i-th code.
  static Vec::F widen(Vec::I words, int i) { return Vec::to_float(signed_byte(words, i)); }

  static float number(uint8_t code) { return static_cast<int8_t>(code); }

  // Of a number no larger than the largest: added to so much, it is the sum's lowest bits.
  static uint8_t nearest(float x) {
    const float sum = x + 12582912.0f;  // 1.5 * 2^23
    uint32_t bits;
    std::memcpy(&bits, &sum, sizeof bits);
    return static_cast<uint8_t>(bits);
  }
};

// float8_e4m3fn without its subnormal numbers, which would be floats that processors are slow with.
struct E4m3Codes {
  static constexpr float largest = largest_e4m3;
  static constexpr float lift = 0x1p100f, settle = 0x1p20f;

  // In a float's place the code is its number times 2^-120.
  static Vec::F widen(Vec::I x) {
    const Vec::I kept = Vec::set1i(static_cast<int32_t>(0x87f00000u));
    return Vec::as_float(Vec::bit_and(Vec::shift_right(x, 4), kept));
  }

  static Vec::F widen(Vec::I words, int i) { return widen(Vec::shift_left(words, 24 - 8 * i)); }

  static float number(uint8_t code) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int8_t>(code)) << 20 & 0x87f00000u;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x * 0x1p120f;
  }

  static uint8_t nearest(float x) {
    const float size = __builtin_fabsf(x);
    const float small = size > least_normal_e4m3 / 2 ? least_normal_e4m3 : 0.0f;
    const float number = size < least_normal_e4m3 ? __builtin_copysignf(small, x) : nearest_e4m3(x);
    return e4m3_code(number);
  }
};

// The scale by which the largest of n floats becomes the largest code, rounded up to the upper half
// of a float: 0 where all are zeros, or hardly more; NaN where one isn't finite.
template <class Codes>
uint16_t find_scale(const float* x, int64_t n) {
  int32_t largest = 0;  // as integers, magnitudes sort as they do as floats
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  if (largest >= 0x7f800000) return 0x7fc0;
  float size;
  std::memcpy(&size, &largest, sizeof size);
  if (size < least_scaled) return 0;
  const float quotient = size / Codes::largest;
  uint32_t bits;
  std::memcpy(&bits, &quotient, sizeof bits);
  return static_cast<uint16_t>((bits + 0xffffu) >> 16);
}

// codes [n] of floats by a scale of `find_scale`; zeros where it is 0 or NaN.
template <class Codes>
void quantise(const float* x, int64_t n, uint16_t scale, uint8_t* codes) {
  const float size = from_bfloat16(scale);
  const bool usable = size > 0.0f;
  const float inverse = 1.0f / size;
  for (int64_t i = 0; i < n; ++i) codes[i] = usable ? Codes::nearest(x[i] * inverse) : 0;
}

}  // namespace
