// One layer's attention: what it is made of, and what is done with one row beside products.
#pragma once

#include <cstdint>

#include "level.h"

// y = W x + bias with W [outputs, inputs] packed; bias is null where there is none.
struct Linear {
  const uint8_t* panels;
  const float* bias;
  int64_t inputs, outputs;
  WeightFormat format;
};

// One layer's attention. qkv gives queries, keys, values and, where it is gated, what the output is
// gated with. q_norm and k_norm have no weight where there are none; they go over each head by
// itself or over all of them, before or after the rotation. rotary: [positions, 2, rotary_dim],
// cosines and signed sines, null where positions don't enter. sinks: [heads] or null. clip bounds
// q, k and v, window and chunk what a query sees, unless 0. scale: of scores. residual: of what is
// added. Queries at position p are multiplied with
// 1 + temperature_scale * ln(1 + floor((p + 1) / temperature_floor)), unless that scale is 0.
struct AttentionLayer {
  Linear qkv, out;
  Norm norm, q_norm, k_norm;
  const float *rotary, *sinks;
  int64_t heads, kv_heads, head_dim, rotary_dim, window, chunk;
  float clip, scale, residual, temperature_floor, temperature_scale;
  int32_t norm_each_head, norm_after_rope, interleaved, gated;
};

// One layer's keys and values: blocks of cache_block_tokens, each of kv_heads shares.
struct LayerCache {
  uint8_t* data;
  CacheType type;
};

// Bytes of one key head in a block of the cache.
int64_t share_bytes(const AttentionLayer& layer, const LayerCache& cache);

// Asks for the memory that the token in this slot of the cache will be written to.
void ask_for_slot(const AttentionLayer& layer, const LayerCache& cache, int64_t slot);

// Queries and keys of a row from their projections to what attention multiplies.
void finish_row(const Level& level, const AttentionLayer& layer, int64_t position, float* row);

// Keeps a row's keys and values.
void write_cache(const Level& level, const AttentionLayer& layer, const LayerCache& cache,
                 const float* row, int64_t slot);

// out [heads * head_dim] *= sigmoid of the row's gate, which is overwritten.
void gate_output(const Level& level, const AttentionLayer& layer, float* row, float* out);
