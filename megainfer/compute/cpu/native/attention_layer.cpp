#include "attention_layer.h"

#include <algorithm>
#include <cmath>

namespace {

constexpr int64_t line_bytes = 64;

void finish_head(const Level& level, const AttentionLayer& layer, const Norm& norm,
                 const float* rotary, float* head) {
  const int64_t d = layer.head_dim, n = layer.rotary_dim;
  const bool normed = norm.weight != nullptr && layer.norm_each_head;
  if (normed && !layer.norm_after_rope) level.rows.normalise(norm, head, d, head);
  if (rotary != nullptr) {
    const auto rotate = layer.interleaved ? level.rows.rotate_neighbours : level.rows.rotate;
    rotate(head, rotary, rotary + n, n);
  }
  if (normed && layer.norm_after_rope) level.rows.normalise(norm, head, d, head);
}

void heat_queries(const AttentionLayer& layer, int64_t position, float* row) {
  const float steps = (static_cast<float>(position) + 1.0f) / layer.temperature_floor;
  const float factor = 1.0f + layer.temperature_scale * std::log1p(std::floor(steps));
  for (int64_t i = 0; i < layer.heads * layer.head_dim; ++i) row[i] *= factor;
}

}  // namespace

int64_t share_bytes(const AttentionLayer& layer, const LayerCache& cache) {
  const int64_t scales = has_scales(cache.type) ? sizeof(uint16_t) : 0;
  return 2 * cache_block_tokens * (layer.head_dim * element_bytes(cache.type) + scales);
}

// A key is a column of its block: so many lines, scales after them.
void ask_for_slot(const AttentionLayer& layer, const LayerCache& cache, int64_t slot) {
  const int64_t size = share_bytes(layer, cache);
  const uint8_t* share = cache.data + slot / cache_block_tokens * layer.kv_heads * size;
  for (int64_t head = 0; head < layer.kv_heads; ++head, share += size) {
    for (int64_t byte = size / 2; byte < size; byte += line_bytes) {
      __builtin_prefetch(share + byte, 1);
    }
  }
}

void finish_row(const Level& level, const AttentionLayer& layer, int64_t position, float* row) {
  const int64_t d = layer.head_dim, q_size = layer.heads * d, kv_size = layer.kv_heads * d;
  if (layer.q_norm.weight != nullptr && !layer.norm_each_head) {
    level.rows.normalise(layer.q_norm, row, q_size, row);
    level.rows.normalise(layer.k_norm, row + q_size, kv_size, row + q_size);
  }
  if (layer.clip > 0.0f) {
    for (int64_t i = 0; i < q_size + 2 * kv_size; ++i) {
      row[i] = std::clamp(row[i], -layer.clip, layer.clip);
    }
  }
  const float* rotary =
      layer.rotary == nullptr ? nullptr : layer.rotary + position * 2 * layer.rotary_dim;
  for (int64_t head = 0; head < layer.heads + layer.kv_heads; ++head) {
    const Norm& norm = head < layer.heads ? layer.q_norm : layer.k_norm;
    finish_head(level, layer, norm, rotary, row + head * d);
  }
  if (layer.temperature_scale != 0.0f) heat_queries(layer, position, row);
}

void write_cache(const Level& level, const AttentionLayer& layer, const LayerCache& cache,
                 const float* row, int64_t slot) {
  const int64_t d = layer.head_dim, size = share_bytes(layer, cache);
  const int64_t block = slot / cache_block_tokens, offset = slot % cache_block_tokens;
  const auto write = level.rows.write_cached[static_cast<int>(cache.type)];
  for (int64_t head = 0; head < layer.kv_heads; ++head) {
    const float* key = row + (layer.heads + head) * d;
    uint8_t* share = cache.data + (block * layer.kv_heads + head) * size;
    write(key, key + layer.kv_heads * d, d, offset, share);
  }
}

void gate_output(const Level& level, const AttentionLayer& layer, float* row, float* out) {
  const int64_t size = layer.heads * layer.head_dim;
  float* gate = row + size + 2 * layer.kv_heads * layer.head_dim;
  level.rows.sigmoid(gate, size);
  for (int64_t i = 0; i < size; ++i) out[i] *= gate[i];
}
