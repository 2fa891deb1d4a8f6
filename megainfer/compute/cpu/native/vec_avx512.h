// Sixteen floats with AVX-512 F, BW, DQ and VL.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vec {
  static constexpr int width = 16;
  static constexpr int max_rows = 12;  // 24 accumulators and 2 weights of 32 registers
  using F = __m512;
  using I = __m512i;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static I set1i(int32_t x) { return _mm512_set1_epi32(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static I loadi(const void* p) { return _mm512_loadu_si512(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F clamp(F x, float low, float high) {
    return _mm512_min_ps(_mm512_max_ps(x, set1(low)), set1(high));
  }
  static F round(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F power_of_two(F n) {
    I biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), set1i(127));
    return as_float(_mm512_slli_epi32(biased, 23));
  }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I shift_left(I x, int n) { return _mm512_slli_epi32(x, n); }
  static I shift_right(I x, int n) { return _mm512_srai_epi32(x, n); }
  static I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
  static I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  // Of each lane what the table of 16 has for its lowest four bits.
  static F lookup(I x, const float* table) { return _mm512_permutexvar_ps(x, load(table)); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static float largest(F x) { return _mm512_reduce_max_ps(x); }
  static float first(F x) { return _mm512_cvtss_f32(x); }
  static F as_float(I x) { return _mm512_castsi512_ps(x); }
  static I as_bits(F x) { return _mm512_castps_si512(x); }
};

}  // namespace
