// How keys and values lie in the cache, over the formats of product.inl.
#pragma once

#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "codes.inl"
#include "elementwise.inl"
#include "level.h"
#include "product.inl"

namespace {

// A key head's share of a block of `block_tokens`, in words of 32 bits (one f32, two bf16, four
// codes): values [block_tokens / per_word, head_dim], then keys [head_dim / per_word,
// block_tokens]. So a vector of keys is one channel of as many tokens, a vector of values as many
// channels of one token; what shares a word is channels of a key, tokens of a value. Values are
// first because whole vectors of the last one are read even where head_dim is no multiple of a
// vector. Behind codes are their scales in bf16, of each token's value, then of each one's key: a
// token that comes later changes nothing of those that are there.

constexpr int block_tokens = cache_block_tokens;

// As a cache has it, a format of product.inl.
template <class Format>
struct FloatCache : Format {
  static constexpr bool scaled = false;
  static constexpr float lift = 1.0f, settle = 1.0f;
};

template <class Codes>
struct CodeCache {
  static constexpr int per_word = 4;
  static constexpr bool scaled = true;
  static constexpr float lift = Codes::lift, settle = Codes::settle;

  static Vec::F weight(const uint32_t* words, int i) {
    return Codes::widen(Vec::loadi(words), i);
  }
};

template <class Format>
int64_t half_words(int64_t head_dim) {
  return block_tokens / Format::per_word * head_dim;
}

inline void write_cached_f32(const float* key, const float* value, int64_t head_dim,
                             int64_t offset, void* share) {
  auto* values = static_cast<float*>(share);
  float* keys = values + half_words<Float32>(head_dim) + offset;
  std::memcpy(values + offset * head_dim, value, head_dim * sizeof(float));
  for (int64_t i = 0; i < head_dim; ++i) keys[i * block_tokens] = key[i];
}

// Halves of words, not words: the other half may be another thread's token.
inline void write_cached_bf16(const float* key, const float* value, int64_t head_dim,
                              int64_t offset, void* share) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  constexpr int64_t at_once = 64;
  uint16_t piece[at_once];
  auto* values = static_cast<uint16_t*>(share) + offset / 2 * 2 * head_dim + offset % 2;
  auto* keys = static_cast<uint32_t*>(share) + half_words<WidenedBfloat16>(head_dim) + offset;
  for (int64_t first = 0; first < head_dim; first += at_once) {
    const int64_t count = head_dim - first < at_once ? head_dim - first : at_once;
    narrow(value + first, piece, count);
    for (int64_t i = 0; i < count; ++i) values[2 * (first + i)] = piece[i];
    narrow(key + first, piece, count);
    for (int64_t i = 0; i < count; i += 2) {
      uint32_t* word = keys + (first + i) / 2 * block_tokens;
      *word = piece[i] | static_cast<uint32_t>(piece[i + 1]) << 16;
    }
  }
}

template <class Codes>
void write_cached_codes(const float* key, const float* value, int64_t head_dim, int64_t offset,
                        void* share) {
  constexpr int64_t at_once = 64, per_word = CodeCache<Codes>::per_word;
  const int64_t half = half_words<CodeCache<Codes>>(head_dim);
  auto* values = static_cast<uint8_t*>(share) + offset / per_word * per_word * head_dim;
  auto* keys = static_cast<uint32_t*>(share) + half + offset;
  auto* scales = reinterpret_cast<uint16_t*>(static_cast<uint32_t*>(share) + 2 * half) + offset;
  const uint16_t value_scale = find_scale<Codes>(value, head_dim);
  const uint16_t key_scale = find_scale<Codes>(key, head_dim);
  scales[0] = value_scale;
  scales[block_tokens] = key_scale;
  uint8_t piece[at_once];
  for (int64_t first = 0; first < head_dim; first += at_once) {
    const int64_t count = head_dim - first < at_once ? head_dim - first : at_once;
    quantise<Codes>(value + first, count, value_scale, piece);
    for (int64_t i = 0; i < count; ++i) values[per_word * (first + i) + offset % per_word] = piece[i];
    quantise<Codes>(key + first, count, key_scale, piece);
    for (int64_t i = 0; i < count; i += per_word) {
      std::memcpy(keys + (first + i) / per_word * block_tokens, piece + i, per_word);
    }
  }
}

}  // namespace
