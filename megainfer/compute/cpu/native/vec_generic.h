// Four floats on any machine that GCC or Clang compile for (SSE2, NEON, ...).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Vec {
  static constexpr int width = 4;
  static constexpr int max_rows = 6;
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));

  static F zero() { return F{0, 0, 0, 0}; }
  static F set1(float x) { return F{x, x, x, x}; }
  static I set1i(int32_t x) { return I{x, x, x, x}; }
  static F load(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static I loadi(const void* p) {
    I x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F mul(F a, F b) { return a * b; }
  static F add(F a, F b) { return a + b; }
  static F div(F a, F b) { return a / b; }
  static F clamp(F x, float low, float high) {
    for (int i = 0; i < width; ++i) x[i] = x[i] < low ? low : x[i] > high ? high : x[i];
    return x;
  }
  static F round(F x) {
    for (int i = 0; i < width; ++i) x[i] = std::nearbyint(x[i]);
    return x;
  }
  static F power_of_two(F n) {
    for (int i = 0; i < width; ++i) {
      if (n[i] == n[i]) n[i] = std::ldexp(1.0f, static_cast<int>(n[i]));  // NaN is no int
    }
    return n;
  }
  static F to_float(I x) { return __builtin_convertvector(x, F); }
  static I shift_left(I x, int n) { return x << n; }
  static I shift_right(I x, int n) { return x >> n; }  // the sign fills
  static I bit_and(I a, I b) { return a & b; }
  static I bit_or(I a, I b) { return a | b; }
  static I add(I a, I b) { return a + b; }
  // Of each lane what the table of 16 has for its lowest four bits.
  static F lookup(I x, const float* table) {
    return F{table[x[0] & 15], table[x[1] & 15], table[x[2] & 15], table[x[3] & 15]};
  }
  static F max(F a, F b) {
    for (int i = 0; i < width; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
  }
  static F min(F a, F b) {
    for (int i = 0; i < width; ++i) a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
  }
  static float largest(F x) {
    for (int i = 1; i < width; ++i) x[0] = x[0] > x[i] ? x[0] : x[i];
    return x[0];
  }
  static float first(F x) { return x[0]; }
  static F as_float(I x) { return (F)x; }
  static I as_bits(F x) { return (I)x; }
};

}  // namespace
