// Attention over a paged cache, over `Vec`.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "elementwise.inl"
#include "level.h"
#include "paged_cache.inl"
#include "product.inl"
#include "rows.inl"

namespace {

// Keys come in tiles that begin at fixed positions of the sequence. A query's scores within a tile
// are sums over the head in order, a key a lane; softmax is online, tile by tile (Milakov and
// Gimelshein, 2018). So a query's result depends on its own position only: not on whether it was
// computed alone or with others, nor on what lies behind it.

constexpr float lowest = -3.0e38f;
constexpr int tile_blocks = 4;
constexpr int tile_keys = tile_blocks * block_tokens;
constexpr int block_vectors = block_tokens / Vec::width;

// Query rows that share loads of keys and values, and blocks of keys whose scores are summed at a
// time: as many as there are registers for the sums.
constexpr int most_rows = Vec::width == 4 ? 2 : 6;
constexpr int score_blocks = Vec::width == 16 ? tile_blocks : 1;
constexpr int value_vectors = Vec::width == 8 ? 2 : 4;  // vectors of a value at a time

inline int64_t padded(int64_t n) { return (n + Vec::width - 1) / Vec::width * Vec::width; }

// What is known of one query after some tiles.
struct Running {
  float* sums;     // [width], of the weights, by lane
  float* maximum;  // of the scores
  float* values;   // [padded head_dim], weighted and summed
};

struct AttendScratch {
  float *queries, *weights, *sums, *maxima, *results;

  AttendScratch(float* at, int64_t rows, int64_t head_dim) {
    results = at;                                  // [rows, padded head_dim]
    weights = results + rows * padded(head_dim);   // [most_rows, tile_keys]
    sums = weights + most_rows * tile_keys;        // [rows, width]
    maxima = sums + rows * Vec::width;             // [rows]
    queries = maxima + padded(rows);               // groups of rows, each [head_dim, its rows]
  }

  static size_t floats(int64_t rows, int64_t head_dim) {
    return rows * (padded(head_dim) + Vec::width + head_dim) + most_rows * tile_keys + padded(rows);
  }

  Running row(int64_t r, int64_t head_dim) const {
    return {sums + r * Vec::width, maxima + r, results + r * padded(head_dim)};
  }
};

// One key head's share of the blocks of a tile.
struct Tile {
  const uint32_t* keys[tile_blocks];
  const uint32_t* values[tile_blocks];
  const uint32_t* next[tile_blocks];  // the keys that are visited after these
  const uint16_t* scales[tile_blocks];  // of values, then of keys, where there are some
  int64_t first_position;
  int count;  // of positions
};

// Memory is kept busy while what is here is computed with: each line read asks for one that is
// read a half tile later.
// Inlined by force: GCC may drop the call of a function that does nothing but prefetch.
__attribute__((always_inline)) inline void ask_for(const uint32_t* words) {
  __builtin_prefetch(words);
}

// scores [rows, tile_keys] of `blocks` blocks of keys; meanwhile asks for their values.
template <class Format, int rows, int blocks>
void score(const float* queries, const uint32_t* const* keys, const uint32_t* const* values,
           int64_t head_dim, float* scores) {
  constexpr int vectors = blocks * block_vectors;
  Vec::F sums[rows][vectors];
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[r][v] = Vec::zero();
  }
  for (int64_t at = 0; at < half_words<Format>(head_dim); at += block_tokens) {
#pragma GCC unroll 4
    for (int b = 0; b < blocks; ++b) ask_for(values[b] + at);
#pragma GCC unroll 4
    for (int i = 0; i < Format::per_word; ++i, queries += rows) {
      Vec::F key[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        key[v] = Format::weight(keys[v / block_vectors] + at + v % block_vectors * Vec::width, i);
      }
#pragma GCC unroll 6
      for (int r = 0; r < rows; ++r) {
        const Vec::F value = Vec::set1(queries[r]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[r][v] = Vec::fma(value, key[v], sums[r][v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      Vec::store(scores + r * tile_keys + v * Vec::width, sums[r][v]);
    }
  }
}

template <class Format, int rows, int blocks = score_blocks>
void score_all(const float* queries, const uint32_t* const* keys, const uint32_t* const* values,
               int count, int64_t head_dim, float* scores) {
  for (; count >= blocks; count -= blocks) {
    score<Format, rows, blocks>(queries, keys, values, head_dim, scores);
    keys += blocks;
    values += blocks;
    scores += blocks * block_tokens;
  }
  if constexpr (blocks > 1) {
    score_all<Format, rows, blocks - 1>(queries, keys, values, count, head_dim, scores);
  }
}

// Keys that a query sees, counted from a tile's first.
struct Seen {
  int first, end;
};

// Scores of the keys that are seen become weights, the others' 0 up to the end of `blocks`; returns
// what the results of earlier tiles are to be multiplied with.
inline float weigh(float* scores, Seen seen, int blocks, const Running& running) {
  const int end = blocks * block_tokens;
  if (seen.end <= seen.first) {
    std::memset(scores, 0, end * sizeof(float));
    return 1.0f;
  }
  for (int i = 0; i < seen.first; ++i) scores[i] = lowest;
  for (int i = seen.end; i < end; ++i) scores[i] = lowest;
  Vec::F best = Vec::load(scores);
  for (int i = Vec::width; i < end; i += Vec::width) best = Vec::max(best, Vec::load(scores + i));
  const float before = *running.maximum, tile = Vec::largest(best);
  const float now = tile > before ? tile : before;
  const float scale = Vec::first(exponential(Vec::set1(before - now)));
  exponentials(scores, now, end);
  for (int i = 0; i < seen.first; ++i) scores[i] = 0.0f;
  for (int i = seen.end; i < end; ++i) scores[i] = 0.0f;
  Vec::F sums = Vec::mul(Vec::load(running.sums), Vec::set1(scale));
  for (int i = 0; i < end; i += Vec::width) sums = Vec::add(sums, Vec::load(scores + i));
  Vec::store(running.sums, sums);
  *running.maximum = now;
  return scale;
}

// sums += weight x value of the i-th token of these words.
template <class Format, int rows, int vectors>
void add_token(const float* weights, const uint32_t* words, int i, Vec::F (&sums)[rows][vectors]) {
  Vec::F value[vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) value[v] = Format::weight(words + v * Vec::width, i);
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r) {
    const Vec::F weight = Vec::set1(weights[r * tile_keys + i]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[r][v] = Vec::fma(weight, value[v], sums[r][v]);
  }
}

// results = results * scale + weights x the values of `count` positions, `vectors` vectors from
// channel `first` on; meanwhile asks for the next keys.
template <class Format, int rows, int vectors>
void add_values(const float* weights, const float* scales, const Tile& tile, int count,
                float* const* results, int64_t head_dim, int64_t first) {
  Vec::F sums[rows][vectors];
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r) {
    const Vec::F scale = Vec::set1(scales[r]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      sums[r][v] = Vec::mul(Vec::load(results[r] + first + v * Vec::width), scale);
    }
  }
  for (int b = 0; b * block_tokens < count; ++b, weights += block_tokens) {
    const int left = count - b * block_tokens, tokens = left < block_tokens ? left : block_tokens;
    int64_t at = first;
    int t = 0;
    for (; t + Format::per_word <= tokens; t += Format::per_word, at += head_dim) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) ask_for(tile.next[b] + at + v * Vec::width);
#pragma GCC unroll 4
      for (int i = 0; i < Format::per_word; ++i) {
        add_token<Format>(weights + t, tile.values[b] + at, i, sums);
      }
    }
    for (int i = 0; t + i < tokens; ++i) {
      add_token<Format>(weights + t, tile.values[b] + at, i, sums);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      Vec::store(results[r] + first + v * Vec::width, sums[r][v]);
    }
  }
}

template <class Format, int rows>
void add_all_values(const float* weights, const float* scales, const Tile& tile, int count,
                    float* const* results, int64_t head_dim) {
  constexpr int step = value_vectors * Vec::width;
  int64_t first = 0;
  for (; first + step <= head_dim; first += step) {
    add_values<Format, rows, value_vectors>(weights, scales, tile, count, results, head_dim, first);
  }
  for (; first < head_dim; first += Vec::width) {
    add_values<Format, rows, 1>(weights, scales, tile, count, results, head_dim, first);
  }
}

// Of a tile's positions, those that a row of the job sees; none where the end comes first.
inline Seen find_seen(const AttentionJob& job, const Tile& tile, int64_t row) {
  const int64_t position = job.first_position + row / job.group;
  const int64_t end = position + 1 - tile.first_position;
  const int64_t first = job.sees_all() ? 0 : job.first_seen(position) - tile.first_position;
  return {static_cast<int>(first > 0 ? first : 0),
          static_cast<int>(end < tile.count ? end : tile.count)};
}

// What codes of a tile's blocks are multiplied with; floats with nothing.
template <class Format, bool scaled = Format::scaled>
struct TileScales {
  TileScales(const Tile&, int, int64_t) {}
  void scale_scores(float*) const {}
  void scale_weights(float*, Seen) const {}
};

template <class Format>
struct TileScales<Format, true> {
  alignas(64) float of_values[tile_keys], of_keys[tile_keys];
  int end;

  TileScales(const Tile& tile, int blocks, int64_t head_dim) : end(blocks * block_tokens) {
    for (int b = 0; b < blocks; ++b) {
      float *values = of_values + b * block_tokens, *keys = of_keys + b * block_tokens;
      for (int t = 0; t < block_tokens; ++t) {
        values[t] = from_bfloat16(tile.scales[b][t]) * Format::lift;
        keys[t] = from_bfloat16(tile.scales[b][block_tokens + t]) * Format::settle;
      }
      ask_for(tile.next[b] + half_words<Format>(head_dim));
    }
  }

  void scale_scores(float* scores) const { scale(scores, of_keys); }

  // What isn't seen stays 0, whatever its scale is.
  void scale_weights(float* weights, Seen seen) const {
    if (seen.end <= seen.first) return;
    scale(weights, of_values);
    for (int i = 0; i < seen.first; ++i) weights[i] = 0.0f;
    for (int i = seen.end; i < end; ++i) weights[i] = 0.0f;
  }

 private:
  void scale(float* x, const float* factors) const {
    for (int i = 0; i < end; i += Vec::width) {
      Vec::store(x + i, Vec::mul(Vec::load(x + i), Vec::load(factors + i)));
    }
  }
};

// A tile as these rows of one key head's queries see it.
template <class Format, int rows>
void visit_rows(const AttentionJob& job, const Tile& tile, const AttendScratch& scratch,
                int64_t head, int64_t first_row) {
  const int count = find_seen(job, tile, first_row + rows - 1).end;
  if (count <= 0) return;
  const int blocks = (count + block_tokens - 1) / block_tokens;
  const int64_t row_of_head = head * job.tokens * job.group + first_row;
  score_all<Format, rows>(scratch.queries + row_of_head * job.head_dim, tile.keys, tile.values,
                          blocks, job.head_dim, scratch.weights);
  const TileScales<Format> cached(tile, blocks, job.head_dim);
  float scales[rows];
  float* results[rows];
  for (int r = 0; r < rows; ++r) {
    const Running running = scratch.row(row_of_head + r, job.head_dim);
    const Seen seen = find_seen(job, tile, first_row + r);
    float* weights = scratch.weights + r * tile_keys;
    cached.scale_scores(weights);
    scales[r] = weigh(weights, seen, blocks, running);
    cached.scale_weights(weights, seen);
    results[r] = running.values;
  }
  add_all_values<Format, rows>(scratch.weights, scales, tile, count, results, job.head_dim);
}

template <class Format, int rows = most_rows>
void visit(const AttentionJob& job, const Tile& tile, const AttendScratch& scratch, int64_t head,
           int64_t first_row, int64_t left) {
  if (left >= rows) {
    visit_rows<Format, rows>(job, tile, scratch, head, first_row);
  } else if constexpr (rows > 1) {
    visit<Format, rows - 1>(job, tile, scratch, head, first_row, left);
  }
}

// Queries times `scale`, those that are visited together side by side.
inline void take_queries(const AttentionJob& job, const AttendScratch& scratch, float scale) {
  const int64_t rows = job.tokens * job.group, d = job.head_dim;
  for (int64_t r = 0; r < job.kv_heads * rows; ++r) {
    const int64_t head = r / rows, own = r % rows, lane = own % most_rows, first = own - lane;
    const int64_t together = rows - first < most_rows ? rows - first : most_rows;
    const float* query = job.queries + own / job.group * job.query_stride +
                         (head * job.group + own % job.group) * d;
    float* to = scratch.queries + (head * rows + first) * d + lane;
    for (int64_t i = 0; i < d; ++i) to[i * together] = query[i] * scale;
  }
}

// What is known before any tile: nothing, or a sink's score.
inline void clear(const AttentionJob& job, const AttendScratch& scratch) {
  const int64_t rows_of_head = job.tokens * job.group, rows = rows_of_head * job.kv_heads;
  std::memset(scratch.sums, 0, rows * Vec::width * sizeof(float));
  std::memset(scratch.results, 0, rows * padded(job.head_dim) * sizeof(float));
  for (int64_t r = 0; r < rows; ++r) {
    scratch.maxima[r] = lowest;
    if (job.sinks == nullptr) continue;
    scratch.maxima[r] = job.sinks[r / rows_of_head * job.group + r % job.group];
    scratch.sums[r * Vec::width] = 1.0f;
  }
}

// Weighted sums, times `scale`, by the sums of weights.
inline void write_results(const AttentionJob& job, const AttendScratch& scratch, float scale) {
  const int64_t rows_of_head = job.tokens * job.group;
  for (int64_t r = 0; r < rows_of_head * job.kv_heads; ++r) {
    const int64_t head = r / rows_of_head, own = r % rows_of_head;
    const Running running = scratch.row(r, job.head_dim);
    const float inverse = scale / lane_sum(Vec::load(running.sums));
    float* out = job.out + own / job.group * job.out_stride +
                 (head * job.group + own % job.group) * job.head_dim;
    for (int64_t i = 0; i < job.head_dim; ++i) out[i] = running.values[i] * inverse;
  }
}

// One key head's share of a block; of the last one where the sequence has fewer.
inline const uint32_t* find_share(const AttentionJob& job, int64_t block, int64_t head) {
  const int64_t last = (job.first_position + job.tokens - 1) / block_tokens;
  return static_cast<const uint32_t*>(job.cache) +
         job.blocks[block < last ? block : last] * job.block_words +
         head * job.share_words;
}

template <class Format>
const uint32_t* find_keys(const AttentionJob& job, int64_t block, int64_t head) {
  return find_share(job, block, head) + half_words<Format>(job.head_dim);
}

// The block that the first tile begins at: with what the first token sees.
inline int64_t find_first_block(const AttentionJob& job) {
  return job.first_seen(job.first_position) / tile_keys * tile_blocks;
}

// The tile that begins at a block, as a key head has it; what follows is the next head's, the next
// tile's or the next job's.
template <class Format>
Tile find_tile(const AttentionJob& job, const AttentionJob& next, int64_t block, int64_t head) {
  const int64_t left = job.first_position + job.tokens - block * block_tokens;
  const bool last_head = head + 1 == job.kv_heads, last_tile = left <= tile_keys;
  const AttentionJob& follower = last_head && last_tile ? next : job;
  const int64_t after = !last_head  ? block
                        : last_tile ? find_first_block(next)
                                    : block + tile_blocks;
  Tile tile;
  tile.first_position = block * block_tokens;
  tile.count = static_cast<int>(last_tile ? left : tile_keys);
  for (int b = 0; b < tile_blocks; ++b) {
    tile.keys[b] = find_keys<Format>(job, block + b, head);
    tile.values[b] = find_share(job, block + b, head);
    tile.scales[b] =
        reinterpret_cast<const uint16_t*>(tile.keys[b] + half_words<Format>(job.head_dim));
    tile.next[b] = find_keys<Format>(follower, after + b, last_head ? 0 : head + 1);
  }
  return tile;
}

// The tile without the blocks that this row and those after it don't see.
inline Tile without_unseen(const AttentionJob& job, Tile tile, int64_t row) {
  const int unseen = std::min(find_seen(job, tile, row).first / block_tokens, tile_blocks);
  tile.first_position += unseen * block_tokens;
  tile.count -= unseen * block_tokens;
  for (int b = 0; b + unseen < tile_blocks; ++b) {
    tile.keys[b] = tile.keys[b + unseen];
    tile.values[b] = tile.values[b + unseen];
    tile.scales[b] = tile.scales[b + unseen];
    tile.next[b] = tile.next[b + unseen];
  }
  return tile;
}

template <class Format>
void attend(const AttentionJob& job, const AttentionJob& next, float* scratch_memory) {
  const int64_t rows = job.tokens * job.group, context = job.first_position + job.tokens;
  const AttendScratch scratch(scratch_memory, rows * job.kv_heads, job.head_dim);
  clear(job, scratch);
  take_queries(job, scratch, job.scale * Format::lift);
  for (int64_t block = find_first_block(job); block * block_tokens < context;
       block += tile_blocks) {
    for (int64_t head = 0; head < job.kv_heads; ++head) {
      const Tile tile = find_tile<Format>(job, next, block, head);
      for (int64_t r = 0; r < rows; r += most_rows) {
        if (job.sees_all()) {
          visit<Format>(job, tile, scratch, head, r, rows - r);
        } else {
          visit<Format>(job, without_unseen(job, tile, r), scratch, head, r, rows - r);
        }
      }
    }
  }
  write_results(job, scratch, Format::settle);
}

}  // namespace
