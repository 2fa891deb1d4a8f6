// Norms, rotation, softmax, sigmoid and the largest of rows, over `Vec`.
#pragma once

#include <cstdint>
#include <cstring>

#include "elementwise.inl"
#include "level.h"

namespace {

// The lanes' sum as a tree.
inline float lane_sum(Vec::F x) {
  float lanes[Vec::width];
  Vec::store(lanes, x);
  for (int half = Vec::width / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

inline float sum_of_squares(const float* x, int64_t n) {
  constexpr int chains = 4;  // hides the latency of an addition
  Vec::F sums[chains];
  for (int c = 0; c < chains; ++c) sums[c] = Vec::zero();
  int64_t i = 0;
  for (; i + chains * Vec::width <= n; i += chains * Vec::width) {
#pragma GCC unroll 4
    for (int c = 0; c < chains; ++c) {
      const Vec::F v = Vec::load(x + i + c * Vec::width);
      sums[c] = Vec::fma(v, v, sums[c]);
    }
  }
  float sum = lane_sum(Vec::add(Vec::add(sums[0], sums[1]), Vec::add(sums[2], sums[3])));
  for (; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const float mean = sum_of_squares(x, n) / static_cast<float>(n);
  const float scale = 1.0f / __builtin_sqrtf(mean + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

inline float sum_of(const float* x, int64_t n) {
  Vec::F sums = Vec::zero();
  int64_t i = 0;
  for (; i + Vec::width <= n; i += Vec::width) sums = Vec::add(sums, Vec::load(x + i));
  float sum = lane_sum(sums);
  for (; i < n; ++i) sum += x[i];
  return sum;
}

void normalise(const Norm& norm, const float* x, int64_t n, float* out) {
  if (norm.kind == NormKind::layer) {
    const float mean = sum_of(x, n) / static_cast<float>(n);
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] - mean;
    x = out;
  }
  rms_norm(x, norm.weight, norm.eps, n, out);
  if (norm.bias == nullptr) return;
  for (int64_t i = 0; i < n; ++i) out[i] += norm.bias[i];
}

void rotate(float* head, const float* cos, const float* signed_sin, int64_t n) {
  const int64_t half = n / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float left = head[i], right = head[i + half];
    head[i] = left * cos[i] + right * signed_sin[i];
    head[i + half] = right * cos[i + half] + left * signed_sin[i + half];
  }
}

void rotate_neighbours(float* head, const float* cos, const float* signed_sin, int64_t n) {
  for (int64_t i = 0; i < n; i += 2) {
    const float left = head[i], right = head[i + 1];
    head[i] = left * cos[i] + right * signed_sin[i];
    head[i + 1] = right * cos[i + 1] + left * signed_sin[i + 1];
  }
}

// x = e^(x - subtrahend), whole vectors and then the rest padded to one.
inline void exponentials(float* x, float subtrahend, int64_t n) {
  const Vec::F shift = Vec::set1(-subtrahend);
  int64_t i = 0;
  for (; i + Vec::width <= n; i += Vec::width) {
    Vec::store(x + i, exponential(Vec::add(Vec::load(x + i), shift)));
  }
  if (i == n) return;
  float rest[Vec::width] = {};
  std::memcpy(rest, x + i, (n - i) * sizeof(float));
  Vec::store(rest, exponential(Vec::add(Vec::load(rest), shift)));
  std::memcpy(x + i, rest, (n - i) * sizeof(float));
}

void softmax(float* x, int64_t n) {
  float largest = x[0];
  for (int64_t i = 1; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  exponentials(x, largest, n);
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}

// NaN where there is one: it is no less than anything and no more.
inline float largest_of(const float* x, int64_t n) {
  constexpr int chains = 4;
  float largest = x[0];
  bool nan = false;
  int64_t i = 0;
  if (n >= chains * Vec::width) {
    Vec::F best[chains];
    for (int c = 0; c < chains; ++c) best[c] = Vec::load(x + c * Vec::width);
    for (; i + chains * Vec::width <= n; i += chains * Vec::width) {
#pragma GCC unroll 4
      for (int c = 0; c < chains; ++c) {
        best[c] = Vec::max(best[c], Vec::load(x + i + c * Vec::width));
      }
    }
    float lanes[Vec::width];
    Vec::store(lanes, Vec::max(Vec::max(best[0], best[1]), Vec::max(best[2], best[3])));
    for (float lane : lanes) largest = lane > largest ? lane : largest;
  }
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  for (i = 0; i < n; ++i) nan |= x[i] != x[i];
  return nan ? __builtin_nanf("") : largest;
}

int64_t argmax(const float* x, int64_t n) {
  constexpr int64_t block = 64;  // elements that are compared before looking which one it was
  const float largest = largest_of(x, n);
  if (largest != largest) return -1;
  int64_t i = 0;
  for (; i + block <= n; i += block) {
    bool found = false;
    for (int64_t j = 0; j < block; ++j) found |= x[i + j] == largest;
    if (found) break;
  }
  while (i + 1 < n && x[i] != largest) ++i;
  return i;
}

void sigmoid(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = -x[i];
  exponentials(x, 0.0f, n);
  for (int64_t i = 0; i < n; ++i) x[i] = 1.0f / (1.0f + x[i]);
}

}  // namespace
