// Weights of four bits: two formats, and how a panel of them is packed from floats.
//
// Inputs come in blocks of 128, of which a panel has the scales first, then the codes: a word of
// 32 bits holds eight of a channel, those of inputs 0 to 3 in the lower halves of its bytes, those
// of 4 to 7 in the upper ones. So a shift and a mask make of it two words of four bytes, such as
// integer products take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "groups.inl"

namespace {

constexpr int nibble_block = 128;  // of K; the last block may be shorter
constexpr int nibbles_per_word = 8;

inline int64_t nibble_blocks(int64_t k) { return (k + nibble_block - 1) / nibble_block; }

// Where the i-th code of a word begins.
constexpr int nibble_bit(int i) { return i < 4 ? 8 * i : 8 * (i - 4) + 4; }

// --- int4 ------------------------------------------------------------------------------------

// (code - zero) * scale, both of a channel and a group. They share a word: a float whose lowest
// eight bits are the zero point's, so that a scale has 16 bits of mantissa, which holds those of
// checkpoints, float16 and bfloat16.
template <int group>
struct Int4Scales {
  float scale[lanes];
  float zero[lanes];
};

constexpr uint32_t scale_bits = 0xffffff00u;

inline float sixteen_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fu + (bits >> 8 & 1)) & scale_bits;  // nearest, ties to even
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// What the largest weight of a group may be from its zero point, likely distances first; GPTQ's
// zero points may be 16.
constexpr int int4_distances[] = {8, 7, 16, 15, 14, 13, 12, 11, 10, 9, 6, 5, 4, 3, 2, 1};

// The scales and zero points by which weights were stored, where they were: with a scale of 16 bits
// a weight is exactly code times scale, and so is the largest one's quotient the scale. Returns how
// many channels have some; the others' scales are 0.
template <int group>
int recover_int4(const GroupOf<group>& g, Int4Scales<group>& found) {
  int count = 0;
  for (int c = 0; c < lanes; ++c) found.scale[c] = found.zero[c] = 0.0f;
  for (const int distance : int4_distances) {
    float scale[lanes], inverse[lanes], off[lanes] = {}, low[lanes] = {}, high[lanes] = {};
    bool any = false;
    for (int c = 0; c < lanes; ++c) {
      scale[c] = g.largest[c] / static_cast<float>(distance);
      inverse[c] = static_cast<float>(distance) / g.largest[c];
      const bool likely = found.scale[c] == 0.0f && g.largest[c] >= least_scaled &&
                          sixteen_bits(scale[c]) == scale[c];
      if (!likely) scale[c] = 0.0f;
      any |= likely;
    }
    if (!any) continue;
    for (int i = 0; i < group; ++i) {
      for (int c = 0; c < lanes; ++c) {
        const float step = __builtin_rintf(g.x[i][c] * inverse[c]);
        const float missed = __builtin_fabsf(step * scale[c] - g.x[i][c]);
        off[c] = missed > off[c] ? missed : off[c];
        low[c] = step < low[c] ? step : low[c];
        high[c] = step > high[c] ? step : high[c];
      }
    }
    for (int c = 0; c < lanes; ++c) {
      if (scale[c] == 0.0f || off[c] != 0.0f || high[c] - low[c] > 15.0f) continue;
      found.scale[c] = scale[c];
      found.zero[c] = -low[c];
      ++count;
    }
  }
  return count;
}

// The signed codes' range where weights were in no codes: as many as there are.
constexpr float int4_low = -8.0f, int4_high = 7.0f;

inline float nearest_int4(float steps) {
  const float code = __builtin_rintf(steps);
  return code < int4_low ? int4_low : code > int4_high ? int4_high : code;
}

// Scales of the least squared error among some: the largest weight is put at places around the
// range's end, each gives codes, and codes q have a best scale, sum(x q) / sum(q q), by which the
// squared error is sum(x x) - sum(x q)^2 / sum(q q).
template <int group>
void fit_int4(const GroupOf<group>& g, Int4Scales<group>& fitted) {
  constexpr int places = 19;
  float extreme[lanes] = {}, best[lanes] = {};
  for (int i = 0; i < group; ++i) {
    for (int c = 0; c < lanes; ++c) {
      extreme[c] = __builtin_fabsf(g.x[i][c]) == g.largest[c] ? g.x[i][c] : extreme[c];
    }
  }
  for (int c = 0; c < lanes; ++c) fitted.scale[c] = 0.0f, fitted.zero[c] = -int4_low;
  for (int place = 0; place < places; ++place) {
    const float end = int4_low + 0.1f * static_cast<float>(place - places / 2);
    float inverse[lanes], xq[lanes] = {}, qq[lanes] = {};
    for (int c = 0; c < lanes; ++c) {
      inverse[c] = g.largest[c] >= least_scaled ? end / extreme[c] : 0.0f;
    }
    for (int i = 0; i < group; ++i) {
      for (int c = 0; c < lanes; ++c) {
        const float code = nearest_int4(g.x[i][c] * inverse[c]);
        xq[c] += g.x[i][c] * code;
        qq[c] += code * code;
      }
    }
    for (int c = 0; c < lanes; ++c) {
      const float scale = qq[c] > 0.0f ? xq[c] / qq[c] : 0.0f;
      const float gain = scale * xq[c];
      if (gain > best[c]) best[c] = gain, fitted.scale[c] = scale;
    }
  }
  for (int c = 0; c < lanes; ++c) fitted.scale[c] = sixteen_bits(fitted.scale[c]);
}

template <int of_group>
struct Int4 {
  static constexpr int group = of_group;
  static constexpr int header_words = nibble_block / group;  // a channel and block
  alignas(64) static constexpr float table[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                  8, 9, 10, 11, 12, 13, 14, 15};

  // Of group `number` of its block, from the panel's words of scales.
  struct Scales {
    Vec::F scale, minus_zero;

    Scales(const uint32_t* header, int number) {
      const Vec::I word = Vec::loadi(header + number * panel_width);
      scale = Vec::as_float(Vec::bit_and(word, Vec::set1i(static_cast<int32_t>(scale_bits))));
      const Vec::F zero = Vec::to_float(Vec::bit_and(word, Vec::set1i(0xff)));
      minus_zero = Vec::mul(zero, Vec::set1(-1.0f));
    }

    Vec::F weight(Vec::F code) const { return Vec::add(code, minus_zero); }
  };

  // Quantise a group into its codes and words of scales.
  static void encode(GroupOf<group>& g, int number, uint32_t* header) {
    Int4Scales<group> used, fitted;
    if (recover_int4(g, used) < lanes) {
      fit_int4(g, fitted);
      for (int c = 0; c < lanes; ++c) {
        if (used.scale[c] != 0.0f) continue;
        used.scale[c] = fitted.scale[c];
        used.zero[c] = fitted.zero[c];
      }
    }
    for (int i = 0; i < group; ++i) {
      for (int c = 0; c < lanes; ++c) {
        const float steps = used.scale[c] == 0.0f ? 0.0f : g.x[i][c] / used.scale[c];
        const float code = __builtin_rintf(steps) + used.zero[c];
        g.codes[i][c] = static_cast<uint8_t>(code < 0.0f ? 0.0f : code > 15.0f ? 15.0f : code);
      }
    }
    for (int c = 0; c < lanes; ++c) {
      uint32_t bits;
      std::memcpy(&bits, used.scale + c, sizeof bits);
      header[number * panel_width + c] = bits | static_cast<uint32_t>(used.zero[c]);
    }
  }
};

// --- MXFP4 -----------------------------------------------------------------------------------

// float4_e2m1fn, 32 of which share a power of two (OCP Microscaling Formats). A word has the four
// exponents of a block, biased by 127, the first group's lowest.
struct Mxfp4 {
  static constexpr int group = 32;
  static constexpr int header_words = 1;
  alignas(64) static constexpr float table[16] = {0,     0.5f,  1,     1.5f,  2,     3,
                                                  4,     6,     -0.0f, -0.5f, -1.0f, -1.5f,
                                                  -2.0f, -3.0f, -4.0f, -6.0f};

  struct Scales {
    Vec::F scale;

    Scales(const uint32_t* header, int number) {
      const Vec::I word = Vec::loadi(header);
      const Vec::I lifted = number == 3 ? Vec::shift_right(word, 1)
                                        : Vec::shift_left(word, 23 - 8 * number);
      scale = Vec::as_float(Vec::bit_and(lifted, Vec::set1i(0x7f800000)));
    }

    Vec::F weight(Vec::F code) const { return code; }
  };

  // The smallest exponent by which nothing is larger than 6, which is as good as any other for
  // what was read from MXFP4: by a smaller one its codes are larger, and still exact. Between two
  // numbers the smaller one is taken.
  static void encode(GroupOf<group>& g, int number, uint32_t* header) {
    constexpr float between[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    uint32_t exponents[lanes];
    float inverse[lanes];
    for (int c = 0; c < lanes; ++c) {
      int32_t bits;
      std::memcpy(&bits, g.largest + c, sizeof bits);
      const int32_t biased = (bits >> 23) - 2 + ((bits & 0x7fffff) > 0x400000);
      exponents[c] = static_cast<uint32_t>(biased < 1 ? 1 : biased);
      const uint32_t reciprocal = (254 - exponents[c]) << 23;
      std::memcpy(inverse + c, &reciprocal, sizeof reciprocal);
      uint32_t& word = header[c];
      word = (number == 0 ? 0 : word) | exponents[c] << 8 * number;
    }
    for (int i = 0; i < group; ++i) {
      for (int c = 0; c < lanes; ++c) {
        const float size = __builtin_fabsf(g.x[i][c]) * inverse[c];
        int code = __builtin_signbitf(g.x[i][c]) ? 8 : 0;
        for (const float bound : between) code += size > bound;
        g.codes[i][c] = static_cast<uint8_t>(code);
      }
    }
  }
};

// --- panels ----------------------------------------------------------------------------------

template <class Format>
size_t nibble_panel_bytes(int64_t k) {
  const int64_t words = words_of(k, nibbles_per_word) + nibble_blocks(k) * Format::header_words;
  return words * panel_width * sizeof(uint32_t);
}

template <int group>
void write_words(const GroupOf<group>& g, int64_t words, uint32_t* out) {
  for (int64_t j = 0; j < words; ++j) {
    for (int c = 0; c < lanes; ++c) {
      uint32_t word = 0;
      for (int i = 0; i < nibbles_per_word; ++i) {
        word |= static_cast<uint32_t>(g.codes[j * nibbles_per_word + i][c]) << nibble_bit(i);
      }
      out[j * panel_width + c] = word;
    }
  }
}

// Inlined into the loops over groups, GCC 12 makes branches of its comparisons, which nobody can
// predict: packing takes nearly three times as long.
template <class Format>
[[gnu::noinline]] void encode_group(GroupOf<Format::group>& g, int number, uint32_t* header) {
  Format::encode(g, number, header);
}

// See `Product::pack_panel`.
template <class Format>
bool pack_nibble_panel(const float* const channels[2], const int64_t valid[2], int64_t k,
                       void* panel) {
  constexpr int group = Format::group;
  static_assert(nibble_block % group == 0);
  auto* header = static_cast<uint32_t*>(panel);
  bool finite = true;
  GroupOf<group> g;
  for (int64_t start = 0; start < k; start += nibble_block) {
    std::memset(header, 0, Format::header_words * panel_width * sizeof *header);
    uint32_t* words = header + Format::header_words * panel_width;
    for (int number = 0; number < nibble_block / group; ++number) {
      const int64_t first = start + number * group;
      if (first >= k) break;
      const int64_t count = k - first < group ? k - first : group;
      for (int half = 0; half < 2; ++half) {
        read_group(channels[half], valid[half], k, first, count, g);
        finite &= find_largest(g);
        encode_group<Format>(g, number, header + half * Vec::width);
        write_words(g, words_of(count, nibbles_per_word), words + half * Vec::width);
      }
      words += words_of(count, nibbles_per_word) * panel_width;
    }
    header = words;
  }
  return finite;
}

}  // namespace
