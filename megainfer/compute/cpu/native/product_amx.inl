// Products of bf16 with bf16 in tiles (AMX): rows are rounded to bf16, pairs are added in f32.
// Inputs are filled up with zeros to whole tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "elementwise.inl"
#include "product.inl"
#include "tiles.h"

namespace {

constexpr int max_amx_rows = 2 * tile_rows;
static_assert(panel_width == 2 * tile_rows);

inline int64_t amx_steps(int64_t k) { return (k + tile_inputs - 1) / tile_inputs; }

inline size_t amx_row_words(int64_t k) { return amx_steps(k) * tile_inputs / 2; }

// Of each step, 32 inputs of each row.
inline void pack_amx_rows(const float* const* rows, int count, int64_t k, uint32_t* packed) {
  auto* out = reinterpret_cast<uint16_t*>(packed);
  for (int64_t first = 0; first < k; first += tile_inputs) {
    for (int m = 0; m < count; ++m, out += tile_inputs) {
      const int64_t length = k - first < tile_inputs ? k - first : tile_inputs;
      narrow(rows[m] + first, out, length);
      std::memset(out + length, 0, (tile_inputs - length) * sizeof *out);
    }
  }
}

inline size_t amx_panel_bytes(int64_t k) {
  return amx_row_words(k) * panel_width * sizeof(uint32_t);
}

inline bool pack_amx_panel(const float* const channels[2], const int64_t valid[2], int64_t k,
                           void* panel) {
  const size_t there = plain_panel_bytes<WidenedBfloat16>(k);
  std::memset(static_cast<uint8_t*>(panel) + there, 0, amx_panel_bytes(k) - there);
  return plain_pack_panel<WidenedBfloat16>(channels, valid, k, panel);
}

template <bool many>
void multiply_tiles(const void* panel, const uint32_t* packed, int count, int64_t k, float* out) {
  const auto* words = static_cast<const uint32_t*>(panel);
  TileSums<many> sums(count);
  sums.clear();
  for (int64_t step = amx_steps(k); step > 0; --step) {
    for (int pair = 0; pair < tile_rows; ++pair) prefetch_weights(words + pair * panel_width);
    sums.add(packed, words, words + tile_rows, panel_width * sizeof *words);
    words += tile_rows * panel_width;
    packed += count * tile_inputs / 2;
  }
  sums.store(out);
}

inline void multiply_amx(const void* panel, const uint32_t* packed, int count, int64_t k,
                         float* out) {
  const auto multiply = count > tile_rows ? multiply_tiles<true> : multiply_tiles<false>;
  multiply(panel, packed, count, k, out);
}

constexpr Product amx_bfloat16_product() {
  return {max_amx_rows, amx_panel_bytes, pack_amx_panel, amx_row_words, pack_amx_rows,
          multiply_amx};
}

}  // namespace
