// Products with int8 weights: a block of K shares one float scale a channel. The activations are
// floats; `product_vnni.inl` quantises them as well.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "product.inl"

namespace {

constexpr int int8_block = 128;       // of K; the last block may be shorter
constexpr int small_int8_block = 32;  // of `WeightFormat::int8_32`
constexpr int int8_per_word = 4;
constexpr float int8_max = 127.0f;

template <int size = int8_block>
int64_t blocks_of(int64_t k) {
  return (k + size - 1) / size;
}

template <int size = int8_block>
int64_t block_words(int64_t k, int64_t block) {
  const int64_t left = k - block * size;
  return words_of(left < size ? left : size, int8_per_word);
}

// The largest magnitude of n floats; at least infinity if one is NaN. As integers, magnitudes sort
// as they do as floats, and compilers vectorise their maximum.
inline float largest_magnitude(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  float value;
  std::memcpy(&value, &largest, sizeof value);
  return value;
}

// Quantise up to a block of floats, the rest of `out` being zeros; x is about scale * out. What is
// too small for a float's reciprocal becomes 0; what isn't finite makes the scale NaN.
inline float quantise(const float* x, int64_t n, int8_t out[int8_block]) {
  std::memset(out, 0, int8_block);
  const float largest = largest_magnitude(x, n);
  if (largest < 1e-30f) return 0.0f;
  if (!(largest <= 3.4028235e38f)) return NAN;
  const float inverse = int8_max / largest;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<int8_t>(static_cast<int32_t>(__builtin_rintf(x[i] * inverse)));
  }
  return largest / int8_max;
}

// Whether x is code times scale; the codes are then in `out`.
inline bool is_stored_by(float scale, const float* x, int64_t n, int8_t* out) {
  const float inverse = 1.0f / scale;
  for (int64_t i = 0; i < n; ++i) {
    const float step = __builtin_rintf(x[i] * inverse);
    if (step * scale != x[i] || step < -128.0f || step > 127.0f) return false;
    out[i] = static_cast<int8_t>(static_cast<int32_t>(step));
  }
  return true;
}

// The same as `quantise`, but what was stored by a scale of a float16 keeps its codes: the largest
// is one of 128 of them, and by hardly any of those is the scale as short.
inline float quantise_stored(const float* x, int64_t n, int8_t out[int8_block]) {
  constexpr int most = 128;
  constexpr uint32_t beyond_float16 = 0x1fff;
  const float scale = quantise(x, n, out);
  if (!(scale > 0.0f)) return scale;
  const float largest = largest_magnitude(x, n);
  uint32_t bits[most];
  for (int top = 1; top <= most; ++top) {
    const float candidate = largest / static_cast<float>(top);
    std::memcpy(bits + top - 1, &candidate, sizeof candidate);
  }
  bool positive = false;
  for (int64_t i = 0; i < n; ++i) positive |= x[i] == largest;
  int8_t codes[int8_block] = {};
  for (int top = most; top > 0; --top) {
    float candidate;
    std::memcpy(&candidate, bits + top - 1, sizeof candidate);
    if (top == most && positive) candidate = -candidate;  // of its codes only -128 is as large
    if ((bits[top - 1] & beyond_float16) != 0 || !is_stored_by(candidate, x, n, codes)) continue;
    std::memcpy(out, codes, int8_block);
    return candidate;
  }
  return scale;
}

template <int size = int8_block>
size_t int8_panel_bytes(int64_t k) {
  return (words_of(k, int8_per_word) + blocks_of<size>(k)) * panel_width * sizeof(uint32_t);
}

// A panel's blocks follow each other: scales [panel_width], then words [K / 4][panel_width]. Each
// byte is offset by `flip` (exclusive or): 0x80 makes int8 -128..127 unsigned 0..255. Smaller blocks
// than int8's own are those of checkpoints, whose codes are kept.
template <uint32_t flip, int size = int8_block>
bool pack_int8_panel(const float* const channels[2], const int64_t valid[2], int64_t k,
                     void* panel) {
  auto* out = static_cast<uint32_t*>(panel);
  int8_t bytes[int8_block];
  for (int64_t b = 0; b < blocks_of<size>(k); ++b) {
    const int64_t words = block_words<size>(k, b), start = b * size;
    const int64_t length = k - start < size ? k - start : size;
    for (int64_t c = 0; c < panel_width; ++c) {
      const int64_t half = c / Vec::width, own = c % Vec::width;
      const bool there = own < valid[half];
      const float* channel = there ? channels[half] + own * k + start : nullptr;
      constexpr auto quantised = size < int8_block ? quantise_stored : quantise;
      const float scale = quantised(channel, there ? length : 0, bytes);
      std::memcpy(out + c, &scale, sizeof scale);
      for (int64_t j = 0; j < words; ++j) {
        uint32_t word;
        std::memcpy(&word, bytes + j * int8_per_word, sizeof word);
        out[(1 + j) * panel_width + c] = word ^ flip * 0x01010101u;
      }
    }
    out += (1 + words) * panel_width;
  }
  return true;
}

// The i-th of four codes of each word.
struct Int8Code {
  static Vec::F weight(Vec::I words, int i) {
    return Vec::to_float(signed_byte(words, i));
  }
};

// out = the first block's sums, or out + the sums of a later one.
inline void add_block(Vec::F sums, Vec::F scale, bool first, float* out) {
  Vec::store(out, Vec::fma(sums, scale, first ? Vec::zero() : Vec::load(out)));
}

// Of codes of a byte each, whose panels are laid out as int8's.
template <class Code, int size = int8_block>
struct WidenedByteKernel {
  template <int rows>
  static void run(const void* panel, const uint32_t* packed, int64_t k, float* out) {
    const auto* words = static_cast<const uint32_t*>(panel);
    const auto* x = reinterpret_cast<const float*>(packed);
    for (int64_t b = 0; b < blocks_of<size>(k); ++b) {
      const Vec::F left_scale = Vec::load(reinterpret_cast<const float*>(words));
      const Vec::F right_scale = Vec::load(reinterpret_cast<const float*>(words) + Vec::width);
      words += panel_width;
      Vec::F sums[rows][2];
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) sums[m][0] = sums[m][1] = Vec::zero();
      for (int64_t j = block_words<size>(k, b); j > 0; --j) {
        prefetch_weights(words);
#pragma GCC unroll 4
        for (int i = 0; i < int8_per_word; ++i) {
          const Vec::F left = Code::weight(Vec::loadi(words), i);
          const Vec::F right = Code::weight(Vec::loadi(words + Vec::width), i);
#pragma GCC unroll 16
          for (int m = 0; m < rows; ++m) {
            const Vec::F value = Vec::set1(x[m]);
            sums[m][0] = Vec::fma(value, left, sums[m][0]);
            sums[m][1] = Vec::fma(value, right, sums[m][1]);
          }
          x += rows;
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

inline size_t widened_int8_row_words(int64_t k) {
  return words_of(k, int8_per_word) * int8_per_word;
}

inline void pack_widened_int8_rows(const float* const* rows, int count, int64_t k,
                                   uint32_t* packed) {
  pack_padded_rows(rows, count, k, widened_int8_row_words(k), packed);
}

template <int size = int8_block>
constexpr Product widened_int8_product() {
  return {Vec::max_rows, int8_panel_bytes<size>, pack_int8_panel<0, size>, widened_int8_row_words,
          pack_widened_int8_rows, multiply_rows<WidenedByteKernel<Int8Code, size>>};
}

}  // namespace
