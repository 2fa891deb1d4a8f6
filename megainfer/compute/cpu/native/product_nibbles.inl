// Products with weights of four bits, looked up in registers; rows are floats.
// `product_nibbles_vnni.inl` quantises them instead.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nibbles.inl"
#include "product_int8.inl"

namespace {

inline size_t nibble_row_words(int64_t k) {
  return words_of(k, nibbles_per_word) * nibbles_per_word;
}

inline void pack_nibble_rows(const float* const* rows, int count, int64_t k, uint32_t* packed) {
  pack_padded_rows(rows, count, k, nibble_row_words(k), packed);
}

// visit(words of scales, the group's number in its block, its words of codes, how many, whether it
// is the first) for all groups of a panel, in order.
template <class Format, class Visit>
inline void for_groups(const uint32_t* header, int64_t k, Visit visit) {
  for (int64_t start = 0; start < k; start += nibble_block) {
    const uint32_t* words = header + Format::header_words * panel_width;
#pragma GCC unroll 4
    for (int number = 0; number < nibble_block / Format::group; ++number) {
      const int64_t left = k - start - number * Format::group;
      if (left <= 0) break;
      const int64_t count = words_of(left < Format::group ? left : Format::group, nibbles_per_word);
      visit(header, number, words, count, start == 0 && number == 0);
      words += count * panel_width;
    }
    header = words;
  }
}

template <class Format>
struct NibbleKernel {
  template <int rows>
  static void run(const void* panel, const uint32_t* packed, int64_t k, float* out) {
    const auto* x = reinterpret_cast<const float*>(packed);
    const auto visit = [&](const uint32_t* header, int number, const uint32_t* words,
                           int64_t count, bool first) {
      const typename Format::Scales left(header, number), right(header + Vec::width, number);
      Vec::F sums[rows][2];
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) sums[m][0] = sums[m][1] = Vec::zero();
      for (; count > 0; --count) {
        prefetch_weights(words);
        const Vec::I codes[2] = {Vec::loadi(words), Vec::loadi(words + Vec::width)};
#pragma GCC unroll 8
        for (int i = 0; i < nibbles_per_word; ++i) {
          const Vec::F left_weight = left.weight(looked_up(codes[0], i));
          const Vec::F right_weight = right.weight(looked_up(codes[1], i));
#pragma GCC unroll 16
          for (int m = 0; m < rows; ++m) {
            const Vec::F value = Vec::set1(x[m]);
            sums[m][0] = Vec::fma(value, left_weight, sums[m][0]);
            sums[m][1] = Vec::fma(value, right_weight, sums[m][1]);
          }
          x += rows;
        }
        words += panel_width;
      }
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        add_block(sums[m][0], left.scale, first, out + m * panel_width);
        add_block(sums[m][1], right.scale, first, out + m * panel_width + Vec::width);
      }
    };
    for_groups<Format>(static_cast<const uint32_t*>(panel), k, visit);
  }

  // What the table has for the i-th code of each word.
  static Vec::F looked_up(Vec::I words, int i) {
    return Vec::lookup(Vec::shift_right(words, nibble_bit(i)), Format::table);
  }
};

template <class Format>
constexpr Product nibble_product() {
  return {Vec::max_rows, nibble_panel_bytes<Format>, pack_nibble_panel<Format>, nibble_row_words,
          pack_nibble_rows, multiply_rows<NibbleKernel<Format>>};
}

}  // namespace
