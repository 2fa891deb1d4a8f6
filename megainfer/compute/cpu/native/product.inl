// The matrix products of level.h over `Vec`, the vector of the level that includes this file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "level.h"

namespace {

constexpr int panel_width = 2 * Vec::width;

// Weights are read once, in order, across panels and experts: asking for them `prefetch_bytes`
// ahead, which a level chooses, keeps memory busy while few rows are multiplied with what is here.
inline void prefetch_weights(const uint32_t* words) {
  const char* ahead = reinterpret_cast<const char*>(words) + prefetch_bytes;
  __builtin_prefetch(ahead);
  if (panel_width * sizeof(uint32_t) > 64) __builtin_prefetch(ahead + 64);
}

inline int64_t words_of(int64_t k, int per_word) { return (k + per_word - 1) / per_word; }

// --- weights in f32 --------------------------------------------------------------------------

struct Float32 {
  static constexpr int per_word = 1;     // weights in a word
  static constexpr int activations = 1;  // packed activations that meet one word

  static uint32_t weight_word(const float* w) {
    uint32_t word;
    std::memcpy(&word, w, sizeof word);
    return word;
  }

  // One word of each channel, as floats that multiply the i-th activation.
  static Vec::F weight(const uint32_t* words, int) {
    return Vec::load(reinterpret_cast<const float*>(words));
  }
};

// --- weights in bf16, widened in registers ---------------------------------------------------

struct WidenedBfloat16 {
  static constexpr int per_word = 2;
  static constexpr int activations = 2;

  static uint32_t weight_word(const float* w) {
    return to_bfloat16(w[0]) | static_cast<uint32_t>(to_bfloat16(w[1])) << 16;
  }

  static Vec::F weight(const uint32_t* words, int i) {
    Vec::I pair = Vec::loadi(words);
    Vec::I half = i == 0 ? Vec::shift_left(pair, 16)
                         : Vec::bit_and(pair, Vec::set1i(static_cast<int32_t>(0xffff0000u)));
    return Vec::as_float(half);
  }
};

// --- products whose activations are floats ---------------------------------------------------

// Padding makes reads of whole words safe: the channel's last one, filled up with zeros.
template <class Format>
uint32_t padded_word(const float* w, int64_t k, int64_t at) {
  float piece[4] = {0, 0, 0, 0};
  for (int i = 0; i < Format::per_word && at + i < k; ++i) piece[i] = w[at + i];
  return Format::weight_word(piece);
}

template <class Format>
size_t plain_panel_bytes(int64_t k) {
  return words_of(k, Format::per_word) * panel_width * sizeof(uint32_t);
}

// Words of a channel that are packed before the next channel's turn: the lines that they are
// scattered over are still in the first cache when its neighbours fill them.
constexpr int64_t packed_at_once = 64;

// Words `first` to `last` of a channel, each a panel's width from the next.
template <class Format>
void pack_channel(const float* channel, int64_t k, int64_t first, int64_t last, uint32_t* out) {
  const int64_t whole = std::clamp(k / Format::per_word, first, last);
  for (int64_t j = first; j < whole; ++j) {
    out[j * panel_width] = Format::weight_word(channel + j * Format::per_word);
  }
  for (int64_t j = whole; j < last; ++j) {
    out[j * panel_width] = padded_word<Format>(channel, k, j * Format::per_word);
  }
}

template <class Format>
bool plain_pack_panel(const float* const channels[2], const int64_t valid[2], int64_t k,
                      void* panel) {
  auto* words = static_cast<uint32_t*>(panel);
  std::memset(words, 0, plain_panel_bytes<Format>(k));
  const int64_t end = words_of(k, Format::per_word);
  for (int64_t first = 0; first < end; first += packed_at_once) {
    const int64_t last = std::min(first + packed_at_once, end);
    for (int half = 0; half < 2; ++half) {
      for (int64_t c = 0; c < valid[half]; ++c) {
        uint32_t* out = words + half * Vec::width + c;
        pack_channel<Format>(channels[half] + c * k, k, first, last, out);
      }
    }
  }
  return true;
}

template <class Format>
size_t float_row_words(int64_t k) {
  return words_of(k, Format::per_word) * Format::activations;
}

inline void pack_padded_rows(const float* const* rows, int count, int64_t k, int64_t padded,
                             uint32_t* packed) {
  auto* out = reinterpret_cast<float*>(packed);
  for (int m = 0; m < count; ++m) {
    const float* row = rows[m];
    for (int64_t i = 0; i < k; ++i) out[i * count + m] = row[i];
    for (int64_t i = k; i < padded; ++i) out[i * count + m] = 0.0f;
  }
}

template <class Format>
void pack_float_rows(const float* const* rows, int count, int64_t k, uint32_t* packed) {
  pack_padded_rows(rows, count, k, static_cast<int64_t>(float_row_words<Format>(k)), packed);
}

template <class Format, int rows>
void multiply_float(const void* panel, const uint32_t* packed, int64_t k, float* out) {
  const auto* words = static_cast<const uint32_t*>(panel);
  const auto* x = reinterpret_cast<const float*>(packed);
  Vec::F sums[rows][2];
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m) sums[m][0] = sums[m][1] = Vec::zero();
  for (int64_t j = words_of(k, Format::per_word); j > 0; --j) {
    prefetch_weights(words);
#pragma GCC unroll 4
    for (int i = 0; i < Format::activations; ++i) {
      const Vec::F left = Format::weight(words, i);
      const Vec::F right = Format::weight(words + Vec::width, i);
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
    Vec::store(out + m * panel_width, sums[m][0]);
    Vec::store(out + m * panel_width + Vec::width, sums[m][1]);
  }
}

template <class Format>
struct FloatKernel {
  template <int rows>
  static void run(const void* panel, const uint32_t* packed, int64_t k, float* out) {
    multiply_float<Format, rows>(panel, packed, k, out);
  }
};

// --- choosing the kernel for a number of rows ------------------------------------------------

template <class Kernel, int rows = Vec::max_rows>
void multiply_rows(const void* panel, const uint32_t* packed, int count, int64_t k, float* out) {
  if (count == rows) {
    Kernel::template run<rows>(panel, packed, k, out);
  } else if constexpr (rows > 1) {
    multiply_rows<Kernel, rows - 1>(panel, packed, count, k, out);
  }
}

template <class Format>
constexpr Product float_product() {
  return {Vec::max_rows, plain_panel_bytes<Format>, plain_pack_panel<Format>,
          float_row_words<Format>, pack_float_rows<Format>, multiply_rows<FloatKernel<Format>>};
}

}  // namespace
