// What is done to every element on its own, over `Vec`.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "level.h"

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

// x * sigmoid(s).
inline Vec::F gated_by(Vec::F x, Vec::F s) {
  const Vec::F e = exponential(Vec::mul(s, Vec::set1(-1.0f)));
  return Vec::div(x, Vec::add(Vec::set1(1.0f), e));
}

inline Vec::F magnitude(Vec::F x) { return Vec::max(x, Vec::mul(x, Vec::set1(-1.0f))); }

// x * Phi(x) = max(x, 0) - |x| erfc(|x| / sqrt 2) / 2, erfc to 1.5e-7 after Abramowitz and Stegun,
// 7.1.26.
inline Vec::F gelu(Vec::F x) {
  const Vec::F size = magnitude(x), z = Vec::mul(size, Vec::set1(0.70710678118654752f));
  const Vec::F t = Vec::div(
      Vec::set1(1.0f), Vec::fma(Vec::set1(0.3275911f), z, Vec::set1(1.0f)));
  Vec::F p = Vec::set1(1.061405429f);
  p = Vec::fma(p, t, Vec::set1(-1.453152027f));
  p = Vec::fma(p, t, Vec::set1(1.421413741f));
  p = Vec::fma(p, t, Vec::set1(-0.284496736f));
  p = Vec::fma(p, t, Vec::set1(0.254829592f));
  const Vec::F e = exponential(Vec::mul(Vec::mul(z, z), Vec::set1(-1.0f)));
  const Vec::F erfc = Vec::mul(Vec::mul(p, t), e);
  return Vec::fma(Vec::mul(size, Vec::set1(-0.5f)), erfc, Vec::max(x, Vec::zero()));
}

// x * (1 + tanh(u)) / 2 = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
inline Vec::F gelu_tanh(Vec::F x) {
  const Vec::F cubic = Vec::fma(Vec::mul(x, x), Vec::set1(0.044715f), Vec::set1(1.0f));
  return gated_by(x, Vec::mul(Vec::mul(x, cubic), Vec::set1(1.5957691216057308f)));
}

// No lambdas here: GCC doesn't give them the instruction set of the file.
template <ActivationKind kind>
Vec::F activated(Vec::F gate, Vec::F alpha) {
  if constexpr (kind == ActivationKind::gelu) return gelu(gate);
  if constexpr (kind == ActivationKind::gelu_tanh) return gelu_tanh(gate);
  return gated_by(gate, Vec::mul(gate, alpha));
}

template <ActivationKind kind>
void activate_rows(const Activation& activation, const float* weights, const float* bias,
                   const float* tile, int count, float* out, int64_t out_stride) {
  const float limit = activation.limit;
  const Vec::F offset = Vec::set1(activation.up_offset), alpha = Vec::set1(activation.alpha);
  const Vec::F gate_bias = bias == nullptr ? Vec::zero() : Vec::load(bias);
  const Vec::F up_bias = bias == nullptr ? Vec::zero() : Vec::load(bias + Vec::width);
  for (int m = 0; m < count; ++m) {
    const float* row = tile + m * 2 * Vec::width;
    const Vec::F weight = Vec::set1(weights == nullptr ? 1.0f : weights[m]);
    const Vec::F gate = Vec::fma(Vec::load(row), weight, gate_bias);
    const Vec::F up = Vec::fma(Vec::load(row + Vec::width), weight, up_bias);
    const Vec::F left = activated<kind>(Vec::clamp(gate, -__builtin_inff(), limit), alpha);
    const Vec::F right = Vec::add(Vec::clamp(up, -limit, limit), offset);
    Vec::store(out + m * out_stride, Vec::mul(left, right));
  }
}

void activate(const Activation& activation, const float* weights, const float* bias,
              const float* tile, int count, float* out, int64_t out_stride) {
  auto* rows = activate_rows<ActivationKind::silu>;
  if (activation.kind == ActivationKind::gelu) rows = activate_rows<ActivationKind::gelu>;
  if (activation.kind == ActivationKind::gelu_tanh) rows = activate_rows<ActivationKind::gelu_tanh>;
  rows(activation, weights, bias, tile, count, out, out_stride);
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
