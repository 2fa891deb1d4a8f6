// Products of int8 with int8 in integers (AVX-512 VNNI): rows are quantised like the weights, block
// by block of K, each row by itself. The instruction wants one side unsigned: the weights, which
// are stored plus 128; what that adds, 128 times the sum of the row's block, is taken off before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "product_int8.inl"

namespace {

// Of each block: the scale, the offset to start from, and the words.
template <int size>
size_t vnni_row_words(int64_t k) {
  return words_of(k, int8_per_word) + 2 * blocks_of<size>(k);
}

template <int size>
void pack_vnni_rows(const float* const* rows, int count, int64_t k, uint32_t* packed) {
  int8_t bytes[int8_block];
  for (int64_t b = 0; b < blocks_of<size>(k); ++b) {
    const int64_t words = block_words<size>(k, b), start = b * size;
    const int64_t length = k - start < size ? k - start : size;
    for (int m = 0; m < count; ++m) {
      const float scale = quantise(rows[m] + start, length, bytes);
      int32_t sum = 0;
      for (int i = 0; i < size; ++i) sum += bytes[i];
      const int32_t offset = -128 * sum;
      std::memcpy(packed + m, &scale, sizeof scale);
      std::memcpy(packed + count + m, &offset, sizeof offset);
      for (int64_t j = 0; j < words; ++j) {
        std::memcpy(packed + (2 + j) * count + m, bytes + j * int8_per_word, sizeof(uint32_t));
      }
    }
    packed += (2 + words) * count;
  }
}

// sums [rows, panel_width] of one block. On its own, and through memory at its end, because GCC 12
// otherwise keeps the sums on the stack in the loop.
template <int rows>
__attribute__((noinline)) void dot_block(const uint32_t* words, const uint32_t* packed,
                                         int64_t count, int32_t* out) {
  Vec::I sums[rows][2];
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m) {
    sums[m][0] = sums[m][1] = Vec::set1i(static_cast<int32_t>(packed[m]));
  }
  for (; count > 0; --count) {
    prefetch_weights(words);
    packed += rows;
    const Vec::I left = Vec::loadi(words), right = Vec::loadi(words + Vec::width);
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
      const Vec::I value = Vec::set1i(static_cast<int32_t>(packed[m]));
      sums[m][0] = _mm512_dpbusd_epi32(sums[m][0], left, value);
      sums[m][1] = _mm512_dpbusd_epi32(sums[m][1], right, value);
    }
    words += panel_width;
  }
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m) {
    _mm512_storeu_si512(out + m * panel_width, sums[m][0]);
    _mm512_storeu_si512(out + m * panel_width + Vec::width, sums[m][1]);
  }
}

template <int size>
struct VnniKernel {
  template <int rows>
  static void run(const void* panel, const uint32_t* packed, int64_t k, float* out) {
    const auto* words = static_cast<const uint32_t*>(panel);
    alignas(64) int32_t sums[rows * panel_width];
    for (int64_t b = 0; b < blocks_of<size>(k); ++b) {
      const auto* row_scales = reinterpret_cast<const float*>(packed);
      const Vec::F left_scale = Vec::load(reinterpret_cast<const float*>(words));
      const Vec::F right_scale = Vec::load(reinterpret_cast<const float*>(words) + Vec::width);
      const int64_t length = block_words<size>(k, b);
      dot_block<rows>(words + panel_width, packed + rows, length, sums);
      for (int m = 0; m < rows; ++m) {
        const Vec::F scale = Vec::set1(row_scales[m]);
        const int32_t* own = sums + m * panel_width;
        float* left_out = out + m * panel_width;
        add_block(Vec::to_float(Vec::loadi(own)), Vec::mul(left_scale, scale), b == 0, left_out);
        add_block(Vec::to_float(Vec::loadi(own + Vec::width)), Vec::mul(right_scale, scale), b == 0,
                  left_out + Vec::width);
      }
      words += (1 + length) * panel_width;
      packed += (2 + length) * rows;
    }
  }
};

template <int size = int8_block>
constexpr Product vnni_product() {
  return {Vec::max_rows, int8_panel_bytes<size>, pack_int8_panel<0x80, size>, vnni_row_words<size>,
          pack_vnni_rows<size>, multiply_rows<VnniKernel<size>>};
}

}  // namespace
