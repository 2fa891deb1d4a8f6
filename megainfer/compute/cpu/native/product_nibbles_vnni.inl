// Products of weights of four bits with int8 rows in integers (AVX-512 VNNI). Rows are quantised in
// the weights' groups, each row by itself, and a group's sums are exact. The instruction wants one
// side unsigned, which weights are once something was added to them; what that adds to a sum is
// taken off before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "product_nibbles.inl"

namespace {

// How a format's codes become bytes, and where sums begin.
template <class Format>
struct Unsigned;

// Codes as they are: sums are of codes, less the zero point times the row's sum.
template <int group>
struct Unsigned<Int4<group>> {
  static constexpr float row_factor = 1.0f;

  // Of a row's group: minus its sum, in the lower half of a word, as pairs of 16 bits are
  // multiplied.
  static int32_t start(int32_t row_sum) { return -row_sum & 0xffff; }

  struct Start {
    Vec::I zero;
    Start(const uint32_t* header, int number)
        : zero(Vec::bit_and(Vec::loadi(header + number * panel_width), Vec::set1i(0xff))) {}
    Vec::I sums(int32_t start) const {
      return _mm512_dpwssd_epi32(_mm512_setzero_si512(), zero, Vec::set1i(start));
    }
  };

  static Vec::I bytes(Vec::I codes) { return codes; }
};

// Twice a number, plus 12: so the row's scale is half of what it is.
template <>
struct Unsigned<Mxfp4> {
  static constexpr float row_factor = 0.5f;

  static int32_t start(int32_t row_sum) { return -12 * row_sum; }

  struct Start {
    Start(const uint32_t*, int) {}
    Vec::I sums(int32_t start) const { return Vec::set1i(start); }
  };

  static Vec::I bytes(Vec::I codes) {
    const __m128i table =
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes);
  }
};

template <class Format>
int64_t nibble_groups(int64_t k) {
  return (k + Format::group - 1) / Format::group;
}

// Of each group the scale, where sums start, and words of four inputs, two a word of codes.
template <class Format>
size_t vnni_nibble_row_words(int64_t k) {
  const int64_t groups = (k + Format::group - 1) / Format::group;
  return 2 * (groups + words_of(k, nibbles_per_word));
}

template <class Format>
void pack_vnni_nibble_rows(const float* const* rows, int count, int64_t k, uint32_t* packed) {
  int8_t bytes[int8_block];
  for (int64_t first = 0; first < k; first += Format::group) {
    const int64_t length = k - first < Format::group ? k - first : Format::group;
    const int64_t words = 2 * words_of(length, nibbles_per_word);
    for (int m = 0; m < count; ++m) {
      const float scale = quantise(rows[m] + first, length, bytes) * Unsigned<Format>::row_factor;
      int32_t sum = 0;
      for (int i = 0; i < Format::group; ++i) sum += bytes[i];
      const int32_t start = Unsigned<Format>::start(sum);
      std::memcpy(packed + m, &scale, sizeof scale);
      std::memcpy(packed + count + m, &start, sizeof start);
      for (int64_t j = 0; j < words; ++j) {
        std::memcpy(packed + (2 + j) * count + m, bytes + j * int8_per_word, sizeof(uint32_t));
      }
    }
    packed += (2 + words) * count;
  }
}

// What one group adds to out [rows, panel_width]; `first`: what it is. x: the packed rows from the
// group on. On its own, as `dot_block`.
template <class Format, int rows>
__attribute__((noinline)) void add_group(const uint32_t* header, int number, const uint32_t* words,
                                         int64_t count, const uint32_t* x, bool first, float* out) {
  using Codes = Unsigned<Format>;
  const auto* row_scales = reinterpret_cast<const float*>(x);
  const Vec::I low = Vec::set1i(0x0f0f0f0f);
  const typename Codes::Start left_start(header, number);
  const typename Codes::Start right_start(header + Vec::width, number);
  Vec::I sums[rows][2];
  x += rows;
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m) {
    sums[m][0] = left_start.sums(static_cast<int32_t>(x[m]));
    sums[m][1] = right_start.sums(static_cast<int32_t>(x[m]));
  }
  for (; count > 0; --count) {
    prefetch_weights(words);
    Vec::I left = Vec::loadi(words), right = Vec::loadi(words + Vec::width);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      x += rows;
      const Vec::I left_bytes = Codes::bytes(Vec::bit_and(left, low));
      const Vec::I right_bytes = Codes::bytes(Vec::bit_and(right, low));
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        const Vec::I value = Vec::set1i(static_cast<int32_t>(x[m]));
        sums[m][0] = _mm512_dpbusd_epi32(sums[m][0], left_bytes, value);
        sums[m][1] = _mm512_dpbusd_epi32(sums[m][1], right_bytes, value);
      }
      left = Vec::shift_right(left, 4);
      right = Vec::shift_right(right, 4);
    }
    words += panel_width;
  }
  const typename Format::Scales left(header, number), right(header + Vec::width, number);
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m) {
    const Vec::F scale = Vec::set1(row_scales[m]);
    float* own = out + m * panel_width;
    add_block(Vec::to_float(sums[m][0]), Vec::mul(left.scale, scale), first, own);
    add_block(Vec::to_float(sums[m][1]), Vec::mul(right.scale, scale), first, own + Vec::width);
  }
}

template <class Format>
struct VnniNibbleKernel {
  template <int rows>
  static void run(const void* panel, const uint32_t* packed, int64_t k, float* out) {
    const auto visit = [&](const uint32_t* header, int number, const uint32_t* words,
                           int64_t count, bool first) {
      add_group<Format, rows>(header, number, words, count, packed, first, out);
      packed += (2 + 2 * count) * rows;
    };
    for_groups<Format>(static_cast<const uint32_t*>(panel), k, visit);
  }
};

template <class Format>
constexpr Product vnni_nibble_product() {
  return {Vec::max_rows, nibble_panel_bytes<Format>, pack_nibble_panel<Format>,
          vnni_nibble_row_words<Format>, pack_vnni_nibble_rows<Format>,
          multiply_rows<VnniNibbleKernel<Format>>};
}

}  // namespace
