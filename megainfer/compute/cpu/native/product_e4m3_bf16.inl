// Products with FP8 weights as bf16 (AVX-512 BF16), which has all of their numbers: rows are rounded
// to bf16, pairs are added in f32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "e4m3.inl"
#include "product_bf16.inl"
#include "product_int8.inl"

namespace {

inline size_t e4m3_row_words(int64_t k) { return 2 * words_of(k, e4m3_per_word); }

inline void pack_e4m3_rows(const float* const* rows, int count, int64_t k, uint32_t* packed) {
  pack_bfloat16_rows(rows, count, k, packed);
  for (auto j = bfloat16_row_words(k); j < e4m3_row_words(k); ++j) {
    for (int m = 0; m < count; ++m) packed[j * count + m] = 0;
  }
}

// Of codes in units of 16 bits, the upper eight zeros, their numbers in bf16.
inline __m512bh e4m3_pairs(Vec::I codes) {
  // Subnormal codes' numbers: m * 2^-9.
  const __m512i small = _mm512_castsi128_si512(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  const __m512i size = _mm512_and_si512(codes, _mm512_set1_epi16(0x7f));
  const __m512i sign = _mm512_slli_epi16(_mm512_andnot_si512(_mm512_set1_epi16(0x7f), codes), 8);
  const __m512i normal =
      _mm512_add_epi16(_mm512_slli_epi16(size, 4), _mm512_set1_epi16(120 << 7));
  const __mmask32 is_small = _mm512_cmplt_epu16_mask(size, _mm512_set1_epi16(8));
  const __m512i number = _mm512_mask_permutexvar_epi16(normal, is_small, size, small);
  return (__m512bh)_mm512_or_si512(number, sign);
}

struct E4m3Bfloat16Kernel {
  template <int rows>
  static void run(const void* panel, const uint32_t* packed, int64_t k, float* out) {
    const auto* words = static_cast<const uint32_t*>(panel);
    const Vec::I low = Vec::set1i(0x00ff00ff);
    for (int64_t b = 0; b < blocks_of(k); ++b) {
      const Vec::F left_scale = Vec::load(reinterpret_cast<const float*>(words));
      const Vec::F right_scale = Vec::load(reinterpret_cast<const float*>(words) + Vec::width);
      words += panel_width;
      Vec::F sums[rows][2];
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) sums[m][0] = sums[m][1] = Vec::zero();
      for (int64_t j = block_words(k, b); j > 0; --j) {
        prefetch_weights(words);
        const Vec::I codes[2] = {Vec::loadi(words), Vec::loadi(words + Vec::width)};
#pragma GCC unroll 2
        for (int pair = 0; pair < 2; ++pair) {
          const __m512bh left = e4m3_pairs(Vec::bit_and(Vec::shift_right(codes[0], 8 * pair), low));
          const __m512bh right =
              e4m3_pairs(Vec::bit_and(Vec::shift_right(codes[1], 8 * pair), low));
#pragma GCC unroll 16
          for (int m = 0; m < rows; ++m) {
            const auto value = (__m512bh)Vec::set1i(static_cast<int32_t>(packed[m]));
            sums[m][0] = _mm512_dpbf16_ps(sums[m][0], left, value);
            sums[m][1] = _mm512_dpbf16_ps(sums[m][1], right, value);
          }
          packed += rows;
        }
        words += panel_width;
      }
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        add_block(sums[m][0], left_scale, b == 0, out + m * panel_width);
        add_block(sums[m][1], right_scale, b == 0, out + m * panel_width + Vec::width);
      }
    }
  }
};

constexpr Product e4m3_bf16_product() {
  return {Vec::max_rows, int8_panel_bytes<>, pack_e4m3_panel<E4m3Words>, e4m3_row_words,
          pack_e4m3_rows, multiply_rows<E4m3Bfloat16Kernel>};
}

}  // namespace
