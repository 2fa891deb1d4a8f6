// Products with FP8 weights in tiles (AMX): codes become bf16, which has all of their numbers, 32
// inputs at a time in the first cache.
//
// Of 32 channels and two inputs codes share 64 bytes, in an order by which their halves' bytes, put
// beside each other, are two rows of tiles. In one of them the sign has moved to where that of a
// subnormal number, whose exponent is 0, is part of an index: e3 e2 e1 e0 s m2 m1 m0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "e4m3.inl"
#include "product_amx.inl"

namespace {

constexpr int64_t e4m3_step_bytes = tile_inputs * panel_width;

inline size_t e4m3_amx_panel_bytes(int64_t k) {
  return amx_steps(k) * e4m3_step_bytes + blocks_of(k) * panel_width * sizeof(float);
}

struct E4m3Tiles {
  static size_t block_bytes(int64_t length) { return amx_steps(length) * e4m3_step_bytes; }

  static void write(const GroupOf<int8_block>& g, int half, int64_t length, uint8_t* out) {
    const int64_t inputs = amx_steps(length) * tile_inputs;
    for (int64_t i = 0; i < inputs; ++i) {
      uint8_t* pairs = out + i / 2 * 2 * panel_width;
      for (int c = 0; c < lanes; ++c) {
        const uint8_t code = g.codes[i][c];
        const int stored = ((code & 0x78) << 1) | ((code >> 4) & 0x08) | (code & 0x07);
        pairs[c / 4 * 16 + half * 8 + c % 4 * 2 + i % 2] = static_cast<uint8_t>(stored);
      }
    }
  }
};

// Bits of a byte, the lowest first, as the instruction that moves them wants them: a row for each
// bit of the result, the highest first, in which the bit that it is from is set.
constexpr uint64_t moved_bits(const int (&from)[8]) {
  uint64_t matrix = 0;
  for (int bit = 0; bit < 8; ++bit) {
    if (from[bit] >= 0) matrix |= uint64_t{1} << (from[bit] + 8 * (7 - bit));
  }
  return matrix;
}

// Two rows of tiles from 64 codes.
inline void widen_e4m3(const uint8_t* codes, uint8_t* left, uint8_t* right) {
  // A bf16's upper byte has the sign and all of the exponent but its lowest bit. The exponent is
  // the code's plus 120: its highest bit, four times the opposite of that, and the others.
  constexpr uint64_t upper_bits = moved_bits({5, 6, 7, 7, 7, 7, 7, 3});
  constexpr uint64_t lower_bits = moved_bits({-1, -1, -1, -1, 0, 1, 2, 4});
  constexpr int opposite = 0x3c;
  // Of subnormal numbers, m * 2^-9, by sign and m.
  const __m512i small_upper = _mm512_broadcast_i32x4(_mm_setr_epi8(
      0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, static_cast<char>(0x80), static_cast<char>(0xbb),
      static_cast<char>(0xbb), static_cast<char>(0xbb), static_cast<char>(0xbc),
      static_cast<char>(0xbc), static_cast<char>(0xbc), static_cast<char>(0xbc)));
  const __m512i small_lower = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 0, static_cast<char>(0x80), static_cast<char>(0xc0), 0, 0x20, 0x40, 0x60, 0,
                    0, static_cast<char>(0x80), static_cast<char>(0xc0), 0, 0x20, 0x40, 0x60));
  const __m512i x = Vec::loadi(codes);
  const __mmask64 small = _mm512_testn_epi8_mask(x, _mm512_set1_epi8(static_cast<char>(0xf0)));
  __m512i upper = _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(upper_bits), opposite);
  __m512i lower = _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(lower_bits), 0);
  upper = _mm512_mask_shuffle_epi8(upper, small, small_upper, x);
  lower = _mm512_mask_shuffle_epi8(lower, small, small_lower, x);
  _mm512_store_si512(left, _mm512_unpacklo_epi8(lower, upper));
  _mm512_store_si512(right, _mm512_unpackhi_epi8(lower, upper));
}

template <bool many>
void multiply_e4m3_tiles(const void* panel, const uint32_t* packed, int count, int64_t k,
                         float* out) {
  const auto* bytes = static_cast<const uint8_t*>(panel);
  alignas(64) uint8_t wide[2][2][tile_bytes];  // by step, so that two can be under way; by half
  alignas(64) float block[max_amx_rows * panel_width];
  TileSums<many> sums(count);
  for (int64_t first = 0; first < k; first += int8_block) {
    const int64_t steps = amx_steps(k - first < int8_block ? k - first : int8_block);
    const auto* scales = reinterpret_cast<const float*>(bytes);
    const Vec::F left_scale = Vec::load(scales), right_scale = Vec::load(scales + Vec::width);
    bytes += panel_width * sizeof(float);
    sums.clear();
    for (int64_t step = 0; step < steps; ++step) {
      auto& own = wide[step % 2];
      for (int64_t row = 0; row < tile_bytes; row += 64) {
        __builtin_prefetch(bytes + prefetch_bytes);
        widen_e4m3(bytes, own[0] + row, own[1] + row);
        bytes += 2 * panel_width;
      }
      sums.add(packed, own[0], own[1], 64);
      packed += count * tile_inputs / 2;
    }
    sums.store(block);
    for (int m = 0; m < count; ++m) {
      const float* own = block + m * panel_width;
      float* to = out + m * panel_width;
      add_block(Vec::load(own), left_scale, first == 0, to);
      add_block(Vec::load(own + Vec::width), right_scale, first == 0, to + Vec::width);
    }
  }
}

inline void multiply_e4m3_amx(const void* panel, const uint32_t* packed, int count, int64_t k,
                              float* out) {
  const auto multiply = count > tile_rows ? multiply_e4m3_tiles<true> : multiply_e4m3_tiles<false>;
  multiply(panel, packed, count, k, out);
}

constexpr Product e4m3_amx_product() {
  return {max_amx_rows, e4m3_amx_panel_bytes, pack_e4m3_panel<E4m3Tiles>, amx_row_words,
          pack_amx_rows, multiply_e4m3_amx};
}

}  // namespace
