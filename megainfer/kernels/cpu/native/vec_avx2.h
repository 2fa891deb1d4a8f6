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
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F load_bfloat16(const uint16_t* p) {
    const I wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return as_float(_mm256_slli_epi32(wide, 16));
  }
  // Rows become columns.
  static void transpose(F rows[width]) {
    F halves[width];
#pragma GCC unroll 4
    for (int i = 0; i < width; i += 2) {
      halves[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      halves[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // Four rows of a column in each half: half h of rows[4 i + c] is column 4 h + c.
#pragma GCC unroll 2
    for (int i = 0; i < width; i += 4) {
      rows[i] = pairs_low(halves[i], halves[i + 2]);
      rows[i + 1] = pairs_high(halves[i], halves[i + 2]);
      rows[i + 2] = pairs_low(halves[i + 1], halves[i + 3]);
      rows[i + 3] = pairs_high(halves[i + 1], halves[i + 3]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const F early = rows[c], late = rows[4 + c];
      rows[c] = _mm256_permute2f128_ps(early, late, 0x20);
      rows[4 + c] = _mm256_permute2f128_ps(early, late, 0x31);
    }
  }
  static F pairs_low(F a, F b) {
    return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
  }
  static F pairs_high(F a, F b) {
    return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
  }
  static F as_float(I x) { return _mm256_castsi256_ps(x); }
  static I as_bits(F x) { return _mm256_castps_si256(x); }
};

}  // namespace
