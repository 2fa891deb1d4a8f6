// Products of bf16 with bf16 (AVX-512 BF16): rows are rounded to bf16, pairs are added in f32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bfloat16.h"
#include "product.inl"

namespace {

inline size_t bfloat16_row_words(int64_t k) { return words_of(k, WidenedBfloat16::per_word); }

inline void pack_bfloat16_rows(const float* const* rows, int count, int64_t k, uint32_t* packed) {
  for (int m = 0; m < count; ++m) {
    const float* row = rows[m];
    for (int64_t j = 0; j < k / 2; ++j) {
      packed[j * count + m] = WidenedBfloat16::weight_word(row + 2 * j);
    }
    if (k % 2 != 0) packed[k / 2 * count + m] = to_bfloat16(row[k - 1]);
  }
}

struct Bfloat16Kernel {
  template <int rows>
  static void run(const void* panel, const uint32_t* packed, int64_t k, float* out) {
    const auto* words = static_cast<const uint32_t*>(panel);
    Vec::F sums[rows][2];
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) sums[m][0] = sums[m][1] = Vec::zero();
    for (int64_t j = words_of(k, WidenedBfloat16::per_word); j > 0; --j) {
      prefetch_weights(words);
      const auto left = (__m512bh)Vec::loadi(words);
      const auto right = (__m512bh)Vec::loadi(words + Vec::width);
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        const auto pair = (__m512bh)Vec::set1i(static_cast<int32_t>(packed[m]));
        sums[m][0] = _mm512_dpbf16_ps(sums[m][0], left, pair);
        sums[m][1] = _mm512_dpbf16_ps(sums[m][1], right, pair);
      }
      packed += rows;
      words += panel_width;
    }
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
      Vec::store(out + m * panel_width, sums[m][0]);
      Vec::store(out + m * panel_width + Vec::width, sums[m][1]);
    }
  }
};

constexpr Product bfloat16_product() {
  return {Vec::max_rows, plain_panel_bytes<WidenedBfloat16>, plain_pack_panel<WidenedBfloat16>,
          bfloat16_row_words, pack_bfloat16_rows, multiply_rows<Bfloat16Kernel>};
}

}  // namespace
