// What is done to every element on its own, over `Vec`.
#pragma once

#include <cstdint>

#include "bfloat16.h"

namespace {

// e^x to about 1e-7 of its value: 2^n by exponent bits, the rest (|r| <= ln 2 / 2) by its series
// with the coefficients of Cephes' expf. Below -87.3 and above 88 it stays what it is there.
inline Vec::F exponential(Vec::F x) {
  x = Vec::clamp(x, -87.3f, 88.0f);
  const Vec::F n = Vec::round(Vec::mul(x, Vec::set1(1.44269504088896341f)));
  Vec::F r = Vec::fma(n, Vec::set1(-0.693359375f), x);
  r = Vec::fma(n, Vec::set1(2.12194440e-4f), r);
  Vec::F p = Vec::set1(1.9875691500e-4f);
  p = Vec::fma(p, r, Vec::set1(1.3981999507e-3f));
  p = Vec::fma(p, r, Vec::set1(8.3334519073e-3f));
  p = Vec::fma(p, r, Vec::set1(4.1665795894e-2f));
  p = Vec::fma(p, r, Vec::set1(1.6666665459e-1f));
  p = Vec::fma(p, r, Vec::set1(5.0000001201e-1f));
  p = Vec::fma(Vec::mul(r, r), p, Vec::add(r, Vec::set1(1.0f)));
  return Vec::mul(p, Vec::power_of_two(n));
}

inline Vec::F silu(Vec::F x) {
  const Vec::F e = exponential(Vec::mul(x, Vec::set1(-1.0f)));
  return Vec::div(x, Vec::add(Vec::set1(1.0f), e));
}

void swiglu(const float* tile, int count, float* out, int64_t out_stride) {
  for (int m = 0; m < count; ++m) {
    const float* row = tile + m * 2 * Vec::width;
    const Vec::F gate = Vec::load(row), up = Vec::load(row + Vec::width);
    Vec::store(out + m * out_stride, Vec::mul(silu(gate), up));
  }
}

// Whether an element is done by a vector or by itself depends on n only.
void add_scaled(const float* x, float weight, float* y, int64_t n) {
  const Vec::F factor = Vec::set1(weight);
  int64_t i = 0;
  for (; i + Vec::width <= n; i += Vec::width) {
    Vec::store(y + i, Vec::fma(factor, Vec::load(x + i), Vec::load(y + i)));
  }
  for (; i < n; ++i) y[i] += weight * x[i];
}

// The sum of n floats, as fast as they can be read: what a machine's bandwidth is measured with.
float read_all(const float* x, int64_t n) {
  constexpr int streams = 8;
  Vec::F sums[streams];
  for (Vec::F& sum : sums) sum = Vec::zero();
  for (int64_t i = 0; i + streams * Vec::width <= n; i += streams * Vec::width) {
#pragma GCC unroll 8
    for (int s = 0; s < streams; ++s) {
      const float* here = x + i + s * Vec::width;
      __builtin_prefetch(here + 2048);
      sums[s] = Vec::add(sums[s], Vec::load(here));
    }
  }
  for (int s = 1; s < streams; ++s) sums[0] = Vec::add(sums[0], sums[s]);
  float lanes[Vec::width], total = 0;
  Vec::store(lanes, sums[0]);
  for (float lane : lanes) total += lane;
  return total;
}

void widen(const uint16_t* bf16, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = from_bfloat16(bf16[i]);
}

void narrow(const float* x, uint16_t* bf16, int64_t n) {
  for (int64_t i = 0; i < n; ++i) bf16[i] = to_bfloat16(x[i]);
}

}  // namespace
