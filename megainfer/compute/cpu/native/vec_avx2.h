// Eight floats with AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vec {
  static constexpr int width = 8;
  static constexpr int max_rows = 6;  // 12 accumulators, 2 weights, 1 activation: 15 of 16
  using F = __m256;
  using I = __m256i;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static I set1i(int32_t x) { return _mm256_set1_epi32(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static I loadi(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F clamp(F x, float low, float high) {
    return _mm256_min_ps(_mm256_max_ps(x, set1(low)), set1(high));
  }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F power_of_two(F n) {
    I biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), set1i(127));
    return as_float(_mm256_slli_epi32(biased, 23));
  }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I shift_left(I x, int n) { return _mm256_slli_epi32(x, n); }
  static I shift_right(I x, int n) { return _mm256_srai_epi32(x, n); }
  static I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
  static I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  // Of each lane what the table of 16 has for its lowest four bits.
  static F lookup(I x, const float* table) {
    const F low = _mm256_permutevar8x32_ps(load(table), x);
    const F high = _mm256_permutevar8x32_ps(load(table + 8), x);
    return _mm256_blendv_ps(low, high, as_float(shift_left(x, 28)));  // by bit 3, now the sign
  }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static float largest(F x) {
    __m128 best = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    best = _mm_max_ps(best, _mm_movehl_ps(best, best));
    return _mm_cvtss_f32(_mm_max_ss(best, _mm_movehdup_ps(best)));
  }
  static float first(F x) { return _mm256_cvtss_f32(x); }
  static F as_float(I x) { return _mm256_castsi256_ps(x); }
  static I as_bits(F x) { return _mm256_castps_si256(x); }
};

}  // namespace
