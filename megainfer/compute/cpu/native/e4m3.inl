// FP8: float8_e4m3fn, with a float scale a channel and 128 inputs. Panels are laid out as those of
// int8 are, but for the order of four codes in their word.
#pragma once

#include <cstdint>
#include <cstring>

#include "groups.inl"
#include "product_int8.inl"

namespace {

constexpr int e4m3_per_word = 4;
constexpr float largest_e4m3 = 448.0f, least_normal_e4m3 = 0x1p-6f, least_e4m3 = 0x1p-9f;
static_assert(e4m3_per_word == int8_per_word);

// Where the i-th code of a word begins: those of even bytes first, so that a mask, and a shift and
// a mask, leave two pairs of neighbours in units of 16 bits.
constexpr int e4m3_bits[] = {0, 16, 8, 24};

// The nearest number that has a code, of two the one whose code is even.
inline float nearest_e4m3(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7ffffu + (bits >> 20 & 1)) & 0xfff00000u;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  const float small = __builtin_rintf(x / least_e4m3) * least_e4m3;
  number = __builtin_fabsf(x) < least_normal_e4m3 ? small : number;
  return number > largest_e4m3 ? largest_e4m3 : number < -largest_e4m3 ? -largest_e4m3 : number;
}

// The code of a number that has one.
inline uint8_t e4m3_code(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  const uint32_t sign = bits >> 24 & 0x80;
  const float size = __builtin_fabsf(number);
  const auto small = static_cast<uint32_t>(size / least_e4m3);
  const uint32_t normal = (bits >> 20 & 0x7ff) - (120 << 3);
  return static_cast<uint8_t>(sign | (size < least_normal_e4m3 ? small : normal));
}

// What the largest weight of a group may be stored as: where all are smaller, a scale that is so
// many powers of two smaller gives the same weights by larger codes. 480 is NaN.
constexpr float e4m3_tops[] = {448, 416, 384, 352, 320, 288, 256, 240};

// What float32 rounded away when a code was multiplied: at most so many neighbours of the quotient.
constexpr int scale_neighbours[] = {0, 1, -1, 2, -2};

// Weights of a group that are tried first: hardly any scale that isn't right gives them back.
constexpr int e4m3_sample = 3;

// off[c] > 0 where the scale doesn't give back channel c's weights, each `stride`-th of them.
inline void try_e4m3(const GroupOf<int8_block>& g, const float* scale, int stride, float* off) {
  float inverse[lanes];
  for (int c = 0; c < lanes; ++c) {
    off[c] = 0.0f;
    inverse[c] = scale[c] > 0.0f ? 1.0f / scale[c] : 0.0f;
  }
  for (int i = 0; i < int8_block; i += stride) {
    for (int c = 0; c < lanes; ++c) {
      const float number = nearest_e4m3(g.x[i][c] * inverse[c]);
      const float missed = __builtin_fabsf(number * scale[c] - g.x[i][c]);
      off[c] = missed > off[c] ? missed : off[c];
    }
  }
}

// The scales by which weights were stored, 0 where there is none.
inline void recover_e4m3(const GroupOf<int8_block>& g, float* found) {
  for (int c = 0; c < lanes; ++c) found[c] = 0.0f;
  for (const int neighbour : scale_neighbours) {
    for (const float top : e4m3_tops) {
      float scale[lanes], off[lanes];
      for (int c = 0; c < lanes; ++c) {
        const float quotient = g.largest[c] / top;
        uint32_t bits;
        std::memcpy(&bits, &quotient, sizeof bits);
        bits += static_cast<uint32_t>(neighbour);
        std::memcpy(scale + c, &bits, sizeof bits);
        if (found[c] != 0.0f || g.largest[c] < least_scaled) scale[c] = 0.0f;
      }
      try_e4m3(g, scale, int8_block / e4m3_sample, off);
      bool likely = false;
      for (int c = 0; c < lanes; ++c) likely |= scale[c] != 0.0f && off[c] == 0.0f;
      if (!likely) continue;
      try_e4m3(g, scale, 1, off);
      for (int c = 0; c < lanes; ++c) {
        if (scale[c] != 0.0f && off[c] == 0.0f) found[c] = scale[c];
      }
    }
  }
}

// A block's codes as they lie in words.
struct E4m3Words {
  static size_t block_bytes(int64_t length) {
    return words_of(length, e4m3_per_word) * panel_width * sizeof(uint32_t);
  }

  // Of one half of the channels, to where both halves' are.
  static void write(const GroupOf<int8_block>& g, int half, int64_t length, uint8_t* out) {
    auto* to = reinterpret_cast<uint32_t*>(out) + half * lanes;
    for (int64_t j = 0; j < words_of(length, e4m3_per_word); ++j) {
      for (int c = 0; c < lanes; ++c) {
        uint32_t word = 0;
        for (int i = 0; i < e4m3_per_word; ++i) {
          word |= static_cast<uint32_t>(g.codes[j * e4m3_per_word + i][c]) << e4m3_bits[i];
        }
        to[j * panel_width + c] = word;
      }
    }
  }
};

// Quantise a group into its codes. Weights that no scale gives back get one by which the largest is
// 448.
inline void encode_e4m3(GroupOf<int8_block>& g, float* scale) {
  recover_e4m3(g, scale);
  for (int c = 0; c < lanes; ++c) {
    const bool zeros = !(g.largest[c] >= least_scaled);
    if (scale[c] == 0.0f && !zeros) scale[c] = g.largest[c] / largest_e4m3;
    const float inverse = zeros ? 0.0f : 1.0f / scale[c];
    for (int i = 0; i < int8_block; ++i) {
      g.codes[i][c] = e4m3_code(nearest_e4m3(g.x[i][c] * inverse));
    }
  }
}

// See `Product::pack_panel`. Of each block the scales, then the codes as Layout has them.
template <class Layout>
bool pack_e4m3_panel(const float* const channels[2], const int64_t valid[2], int64_t k,
                     void* panel) {
  auto* out = static_cast<uint8_t*>(panel);
  bool finite = true;
  GroupOf<int8_block> g;
  for (int64_t start = 0; start < k; start += int8_block) {
    const int64_t length = k - start < int8_block ? k - start : int8_block;
    uint8_t* codes = out + panel_width * sizeof(float);
    for (int half = 0; half < 2; ++half) {
      read_group(channels[half], valid[half], k, start, length, g);
      finite &= find_largest(g);
      encode_e4m3(g, reinterpret_cast<float*>(out) + half * lanes);
      Layout::write(g, half, length, codes);
    }
    out = codes + Layout::block_bytes(length);
  }
  return finite;
}

}  // namespace
