// Attention of many heads to the same rows of a paged cache, over `Vec`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "attention.inl"
#include "elementwise.inl"
#include "level.h"
#include "rows.inl"

namespace {

// As in attention.inl: keys come in tiles that begin at fixed positions, a query's scores are sums
// over channels in order, softmax is online. A cached row is a key, and its first `rank` channels
// are its value, for all heads. So a tile is brought into the two shapes that sums want, float32
// with tokens side by side and with channels side by side, and all rows of a job pass over it.

struct LatentScratch {
  float *rows, *keys, *weights, *sums, *maxima, *results, *queries;
  int64_t row_stride, result_stride;

  LatentScratch(float* at, const LatentJob& job) {
    const int64_t count = job.tokens * job.heads;
    row_stride = padded(job.width);
    result_stride = padded(job.rank);
    rows = at;                                   // [tile_keys, row_stride]
    keys = rows + tile_keys * row_stride;        // [tile_blocks, width, block_tokens]
    results = keys + tile_keys * row_stride;     // [count, result_stride]
    weights = results + count * result_stride;   // [most_rows, tile_keys]
    sums = weights + most_rows * tile_keys;      // [count, Vec::width]
    maxima = sums + count * Vec::width;          // [count]
    queries = maxima + padded(count);            // groups of rows, each [width, its rows]
  }

  Running row(int64_t r) const {
    return {sums + r * Vec::width, maxima + r, results + r * result_stride};
  }
};

size_t latent_scratch(const LatentJob& job) {
  const int64_t count = job.tokens * job.heads;
  return 2 * tile_keys * padded(job.width) + most_rows * tile_keys + padded(count) +
         count * (padded(job.rank) + Vec::width + job.width);
}

// A block is [block_tokens, width].
template <class Element>
struct FloatLatents {
  static void write(const float* row, int64_t, int64_t width, int64_t offset, void* block) {
    Element* kept = static_cast<Element*>(block) + offset * width;
    if constexpr (sizeof(Element) == sizeof(float)) {
      std::memcpy(kept, row, width * sizeof(float));
    } else {
      narrow(row, kept, width);
    }
  }

  static void read(const void* block, int64_t, int64_t width, int64_t offset, float* row) {
    const Element* kept = static_cast<const Element*>(block) + offset * width;
    if constexpr (sizeof(Element) == sizeof(float)) {
      std::memcpy(row, kept, width * sizeof(float));
    } else {
      widen(kept, row, width);
    }
  }
};

// A block is codes [block_tokens, width], then scales in bf16 [block_tokens, latent_scales(rank)].
template <class Codes>
struct CodeLatents {
  static void write(const float* row, int64_t rank, int64_t width, int64_t offset, void* block) {
    uint8_t* codes = static_cast<uint8_t*>(block) + offset * width;
    auto* scale = reinterpret_cast<uint16_t*>(static_cast<uint8_t*>(block) + block_tokens * width) +
                  offset * latent_scales(rank);
    for (int64_t first = 0; first < width; ++scale) {
      const int64_t count = group_length(first, rank, width);
      *scale = find_scale<Codes>(row + first, count);
      quantise<Codes>(row + first, count, *scale, codes + first);
      first += count;
    }
  }

  static void read(const void* block, int64_t rank, int64_t width, int64_t offset, float* row) {
    const uint8_t* codes = static_cast<const uint8_t*>(block) + offset * width;
    const auto* scale = reinterpret_cast<const uint16_t*>(static_cast<const uint8_t*>(block) +
                                                          block_tokens * width) +
                        offset * latent_scales(rank);
    for (int64_t first = 0; first < width; ++scale) {
      const int64_t count = group_length(first, rank, width);
      const float size = from_bfloat16(*scale);
      for (int64_t i = first; i < first + count; ++i) row[i] = Codes::number(codes[i]) * size;
      first += count;
    }
  }

 private:
  // Channels that share a scale with the one at `first`.
  static int64_t group_length(int64_t first, int64_t rank, int64_t width) {
    return first < rank ? std::min(latent_group, rank - first) : width - rank;
  }
};

inline const uint8_t* find_block(const LatentJob& job, int64_t block) {
  return static_cast<const uint8_t*>(job.cache) + job.blocks[block] * job.block_bytes;
}

// The first `count` tokens of a block, as rows and as keys; the other keys become zeros.
template <class Latents>
void take_block(const LatentJob& job, int64_t block, int count, float* rows, int64_t stride,
                float* keys) {
  const uint8_t* cached = find_block(job, block);
  for (int t = 0; t < count; ++t) {
    Latents::read(cached, job.rank, job.width, t, rows + t * stride);
  }
  for (int t = count; t < block_tokens; ++t) std::memset(rows + t * stride, 0, job.width * 4);
  for (int64_t c = 0; c < job.width; ++c, keys += block_tokens) {
    for (int t = 0; t < block_tokens; ++t) keys[t] = rows[t * stride + c];
  }
}

// Memory brings the blocks that are visited after these meanwhile.
inline void ask_for_block(const LatentJob& job, int64_t block) {
  constexpr int64_t line_bytes = 64;
  const uint8_t* cached = find_block(job, block);
  for (int64_t at = 0; at < job.block_bytes; at += line_bytes) __builtin_prefetch(cached + at);
}

// The tile that begins at a block, of a job that sees `context` positions.
template <class Latents>
Tile take_tile(const LatentJob& job, const LatentScratch& scratch, int64_t block,
               int64_t context) {
  Tile tile;
  const int64_t left = context - block * block_tokens;
  tile.first_position = block * block_tokens;
  tile.count = static_cast<int>(left < tile_keys ? left : tile_keys);
  for (int b = 0; b < tile_blocks; ++b) {
    float* rows = scratch.rows + b * block_tokens * scratch.row_stride;
    float* keys = scratch.keys + b * block_tokens * job.width;
    const int64_t there = left - b * block_tokens;
    if (there > 0) {
      const int count = static_cast<int>(there < block_tokens ? there : block_tokens);
      take_block<Latents>(job, block + b, count, rows, scratch.row_stride, keys);
      if (there > tile_keys) ask_for_block(job, block + b + tile_blocks);
    }
    tile.keys[b] = reinterpret_cast<const uint32_t*>(keys);
    tile.values[b] = tile.next[b] = reinterpret_cast<const uint32_t*>(rows);
  }
  return tile;
}

template <int rows>
void add_latents(const float* weights, const float* scales, const Tile& tile, int count,
                 float* const* results, int64_t rank, int64_t stride) {
  constexpr int step = value_vectors * Vec::width;
  int64_t first = 0;
  for (; first + step <= rank; first += step) {
    add_values<Float32, rows, value_vectors>(weights, scales, tile, count, results, stride, first);
  }
  for (; first < rank; first += Vec::width) {
    add_values<Float32, rows, 1>(weights, scales, tile, count, results, stride, first);
  }
}

// A tile as these rows see it: row r is a head of token r / heads.
template <int rows>
void visit_latents(const LatentJob& job, const Tile& tile, const LatentScratch& scratch,
                   int64_t first_row) {
  const auto seen = [&](int64_t row) {
    const int64_t seen = job.first_position + row / job.heads + 1 - tile.first_position;
    return static_cast<int>(seen < tile.count ? seen : tile.count);
  };
  const int count = seen(first_row + rows - 1);
  if (count <= 0) return;
  const int blocks = (count + block_tokens - 1) / block_tokens;
  score_all<Float32, rows>(scratch.queries + first_row * job.width, tile.keys, tile.values, blocks,
                           job.width, scratch.weights);
  float scales[rows];
  float* results[rows];
  for (int r = 0; r < rows; ++r) {
    const Running running = scratch.row(first_row + r);
    scales[r] = weigh(scratch.weights + r * tile_keys, {0, seen(first_row + r)}, blocks,
                      running);
    results[r] = running.values;
  }
  add_latents<rows>(scratch.weights, scales, tile, count, results, job.rank, scratch.row_stride);
}

template <int rows = most_rows>
void visit_some_latents(const LatentJob& job, const Tile& tile, const LatentScratch& scratch,
                        int64_t first_row, int64_t left) {
  if (left >= rows) {
    visit_latents<rows>(job, tile, scratch, first_row);
  } else if constexpr (rows > 1) {
    visit_some_latents<rows - 1>(job, tile, scratch, first_row, left);
  }
}

// Queries times the scale of scores, those that are visited together side by side.
inline void take_latent_queries(const LatentJob& job, const LatentScratch& scratch) {
  const int64_t count = job.tokens * job.heads, width = job.width;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t lane = r % most_rows, first = r - lane;
    const int64_t together = count - first < most_rows ? count - first : most_rows;
    const float* query = job.queries + r / job.heads * job.query_stride + r % job.heads * width;
    float* to = scratch.queries + first * width + lane;
    for (int64_t i = 0; i < width; ++i) to[i * together] = query[i] * job.scale;
  }
}

template <class Latents>
void attend_latents(const LatentJob& job, float* scratch_memory) {
  const int64_t count = job.tokens * job.heads, context = job.first_position + job.tokens;
  const LatentScratch scratch(scratch_memory, job);
  std::memset(scratch.sums, 0, count * Vec::width * sizeof(float));
  std::memset(scratch.results, 0, count * scratch.result_stride * sizeof(float));
  for (int64_t r = 0; r < count; ++r) scratch.maxima[r] = lowest;
  take_latent_queries(job, scratch);
  for (int64_t block = 0; block * block_tokens < context; block += tile_blocks) {
    const Tile tile = take_tile<Latents>(job, scratch, block, context);
    for (int64_t r = 0; r < count; r += most_rows) {
      visit_some_latents(job, tile, scratch, r, count - r);
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    const Running running = scratch.row(r);
    const float inverse = 1.0f / lane_sum(Vec::load(running.sums));
    float* out = job.out + r / job.heads * job.out_stride + r % job.heads * job.rank;
    for (int64_t i = 0; i < job.rank; ++i) out[i] = running.values[i] * inverse;
  }
}

}  // namespace
