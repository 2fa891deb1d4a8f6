// Groups of inputs that share a scale, quantised for as many channels at once as a vector holds.
#pragma once

#include <cstdint>
#include <cstring>

#include "product.inl"

namespace {

constexpr int lanes = Vec::width;  // channels that are quantised side by side
constexpr float least_scaled = 1e-30f;  // weights below it have no float for a reciprocal: zeros

// A group's inputs of some channels, and what becomes of them. The group is filled up with zeros.
template <int group>
struct GroupOf {
  float x[group][lanes];
  float largest[lanes];  // magnitudes
  uint8_t codes[group][lanes];
};

// The largest magnitudes; false where something is not finite. As integers, magnitudes sort as
// they do as floats.
template <int group>
bool find_largest(GroupOf<group>& g) {
  int32_t largest[lanes] = {};
  for (int i = 0; i < group; ++i) {
    for (int c = 0; c < lanes; ++c) {
      int32_t bits;
      std::memcpy(&bits, &g.x[i][c], sizeof bits);
      bits &= 0x7fffffff;
      largest[c] = bits > largest[c] ? bits : largest[c];
    }
  }
  std::memcpy(g.largest, largest, sizeof largest);
  int32_t top = 0;
  for (int c = 0; c < lanes; ++c) top = largest[c] > top ? largest[c] : top;
  return top < 0x7f800000;
}

// Inputs `first` to `first + count` of the channels that are there, the rest being zeros.
template <int group>
void read_group(const float* channels, int64_t valid, int64_t k, int64_t first, int64_t count,
                GroupOf<group>& g) {
  if (valid < lanes || count < group) std::memset(g.x, 0, sizeof g.x);
  for (int64_t c = 0; c < valid; ++c) {
    const float* channel = channels + c * k + first;
    for (int64_t i = 0; i < count; ++i) g.x[i][c] = channel[i];
  }
}

}  // namespace
