// Attention over a paged cache, over `Vec`; and the table of what rows.inl and this offer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "elementwise.inl"
#include "level.h"
#include "rows.inl"

namespace {

constexpr float lowest = -3.0e38f;
constexpr int64_t line_bytes = 64;

inline float lane_max(Vec::F x) {
  float lanes[Vec::width];
  Vec::store(lanes, x);
  for (int half = Vec::width / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i)
      lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

inline float first_lane(Vec::F x) {
  float lanes[Vec::width];
  Vec::store(lanes, x);
  return lanes[0];
}

// Keys come in tiles that begin at fixed positions of the sequence. A query's scores within a tile
// are sums over the head in order, a key a lane; softmax is online, tile by tile (Milakov and
// Gimelshein, 2018). So a query's result depends on its own position only: not on whether it was
// computed alone or with others, nor on what lies behind it.

constexpr int tile_keys = 64;
constexpr int most_rows = 4;      // query rows that share loads of keys and values
constexpr int score_vectors = 4;  // vectors of keys whose scores are summed at a time, at most
constexpr int value_vectors = Vec::width == 16 ? 4 : 2;  // vectors of a value at a time

inline int64_t padded(int64_t n) { return (n + Vec::width - 1) / Vec::width * Vec::width; }

// What is known of one query after some tiles.
struct Running {
  float* sums;     // [width], of the weights, by lane
  float* maximum;  // of the scores
  float* values;   // [padded head_dim], weighted and summed
};

struct AttendScratch {
  float *keys, *values, *weights, *sums, *maxima, *results;

  AttendScratch(float* at, int64_t rows, int64_t head_dim) {
    keys = at;                                        // [head_dim, tile_keys]
    values = keys + head_dim * tile_keys;             // [tile_keys, padded head_dim]
    weights = values + tile_keys * padded(head_dim);  // [most_rows, tile_keys]
    sums = weights + most_rows * tile_keys;           // [rows, width]
    maxima = sums + rows * Vec::width;                // [rows]
    results = maxima + padded(rows);                  // [rows, padded head_dim]
  }

  static size_t floats(int64_t rows, int64_t head_dim) {
    const int64_t tile = tile_keys * (head_dim + padded(head_dim) + most_rows);
    return tile + rows * Vec::width + padded(rows) + rows * padded(head_dim);
  }

  Running row(int64_t r, int64_t head_dim) const {
    return {sums + r * Vec::width, maxima + r, results + r * padded(head_dim)};
  }
};

inline Vec::F load_cached(const float* p) { return Vec::load(p); }
inline Vec::F load_cached(const uint16_t* p) { return Vec::load_bfloat16(p); }
inline float widened(float x) { return x; }
inline float widened(uint16_t x) { return from_bfloat16(x); }

// Some channels of a vector of keys, of which the first `count` are there, as columns.
inline int64_t transpose_block(const float* keys, const int64_t* at, int count, float* out) {
  Vec::F rows[Vec::width];
#pragma GCC unroll 16
  for (int j = 0; j < Vec::width; ++j) rows[j] = j < count ? Vec::load(keys + at[j]) : Vec::zero();
  Vec::transpose(rows);
#pragma GCC unroll 16
  for (int j = 0; j < Vec::width; ++j) Vec::store(out + j * tile_keys, rows[j]);
  return Vec::width;
}

// Channels go in pairs, which are one word.
inline int64_t transpose_block(const uint16_t* keys, const int64_t* at, int count, float* out) {
  Vec::F rows[Vec::width];
#pragma GCC unroll 16
  for (int j = 0; j < Vec::width; ++j) {
    rows[j] = j < count ? Vec::as_float(Vec::loadi(keys + at[j])) : Vec::zero();
  }
  Vec::transpose(rows);
  const Vec::I upper = Vec::set1i(static_cast<int32_t>(0xffff0000u));
#pragma GCC unroll 16
  for (int j = 0; j < Vec::width; ++j) {
    const Vec::I pair = Vec::as_bits(rows[j]);
    Vec::store(out + 2 * j * tile_keys, Vec::as_float(Vec::shift_left(pair, 16)));
    Vec::store(out + (2 * j + 1) * tile_keys, Vec::as_float(Vec::bit_and(pair, upper)));
  }
  return 2 * Vec::width;
}

// out [head_dim, tile_keys] = the keys at `at`, transposed; lanes beyond `count` are zeros up to
// the next multiple of score_vectors.
template <class Cached>
void transpose_keys(const Cached* keys, const int64_t* at, int count, int64_t head_dim,
                    float* out) {
  constexpr int64_t block = Vec::width * sizeof(float) / sizeof(Cached);
  constexpr int step = score_vectors * Vec::width;
  const int end = (count + step - 1) / step * step;
  for (int first = 0; first < end; first += Vec::width) {
    int64_t i = 0;
    while (i + block <= head_dim) {
      i += transpose_block(keys + i, at + first, count - first, out + i * tile_keys + first);
    }
    for (; i < head_dim; ++i) {
      for (int j = first; j < first + Vec::width; ++j) {
        out[i * tile_keys + j] = j < count ? widened(keys[at[j] + i]) : 0.0f;
      }
    }
  }
}

// scores [rows, tile_keys] of `count` keys, rounded up as above.
template <int rows>
void score(const float* const* queries, const float* keys, int count, int64_t head_dim,
           float* scores) {
  // Enough sums to hide the latency of an addition, few enough for the registers.
  constexpr int key_vectors = rows <= 2 ? score_vectors : score_vectors / 2;
  constexpr int step = key_vectors * Vec::width;
  for (int first = 0; first < count; first += step) {
    Vec::F sums[rows][key_vectors];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < key_vectors; ++v) sums[r][v] = Vec::zero();
    }
    const float* column = keys + first;
    for (int64_t i = 0; i < head_dim; ++i, column += tile_keys) {
      Vec::F key[key_vectors];
#pragma GCC unroll 4
      for (int v = 0; v < key_vectors; ++v) key[v] = Vec::load(column + v * Vec::width);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const Vec::F value = Vec::set1(queries[r][i]);
#pragma GCC unroll 4
        for (int v = 0; v < key_vectors; ++v) sums[r][v] = Vec::fma(value, key[v], sums[r][v]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < key_vectors; ++v) {
        Vec::store(scores + r * tile_keys + first + v * Vec::width, sums[r][v]);
      }
    }
  }
}

// Scores of the first `visible` keys become weights, the others' 0 up to `count`; returns what the
// results of earlier tiles are to be multiplied with.
inline float weigh(float* scores, int visible, int count, const Running& running) {
  const auto end = static_cast<int>(padded(count));
  if (visible <= 0) {
    std::memset(scores, 0, end * sizeof(float));
    return 1.0f;
  }
  for (int i = visible; i < end; ++i) scores[i] = lowest;
  Vec::F best = Vec::load(scores);
  for (int i = Vec::width; i < end; i += Vec::width) best = Vec::max(best, Vec::load(scores + i));
  const float before = *running.maximum, tile = lane_max(best);
  const float now = tile > before ? tile : before;
  const float scale = first_lane(exponential(Vec::set1(before - now)));
  exponentials(scores, now, end);
  for (int i = visible; i < end; ++i) scores[i] = 0.0f;
  Vec::F sums = Vec::mul(Vec::load(running.sums), Vec::set1(scale));
  for (int i = 0; i < end; i += Vec::width) sums = Vec::add(sums, Vec::load(scores + i));
  Vec::store(running.sums, sums);
  *running.maximum = now;
  return scale;
}

// results = results * scale + weights x values, `vectors` vectors from channel `first` on.
template <int rows, int vectors, class Cached>
void add_values(const float* weights, const float* scales, const Cached* values, const int64_t* at,
                int count, float* const* results, int64_t first) {
  Vec::F sums[rows][vectors];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    const Vec::F scale = Vec::set1(scales[r]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      sums[r][v] = Vec::mul(Vec::load(results[r] + first + v * Vec::width), scale);
    }
  }
  for (int j = 0; j < count; ++j) {
    const Cached* row = values + at[j] + first;
    Vec::F value[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) value[v] = load_cached(row + v * Vec::width);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const Vec::F weight = Vec::set1(weights[r * tile_keys + j]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] = Vec::fma(weight, value[v], sums[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      Vec::store(results[r] + first + v * Vec::width, sums[r][v]);
    }
  }
}

template <int rows, class Cached>
void add_all_values(const float* weights, const float* scales, const Cached* values,
                    const int64_t* at, int count, float* const* results, int64_t head_dim) {
  constexpr int step = value_vectors * Vec::width;
  int64_t first = 0;
  for (; first + step <= head_dim; first += step) {
    add_values<rows, value_vectors>(weights, scales, values, at, count, results, first);
  }
  for (; first < head_dim; first += Vec::width) {
    add_values<rows, 1>(weights, scales, values, at, count, results, first);
  }
}

// One tile of one key head, as all queries of a job see it.
template <class Cached>
struct Tile {
  const float* keys;  // [head_dim, tile_keys]
  const Cached* values;
  const int64_t* at;  // where each key's value lies
  int64_t first_position;
  int count;
};

template <int rows, class Cached>
void visit_rows(const AttentionJob& job, const Tile<Cached>& tile, const AttendScratch& scratch,
                int64_t head, int64_t first_row) {
  const float* queries[rows];
  float scales[rows];
  float* results[rows];
  const int64_t row_of_head = head * job.tokens * job.group;
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    const int64_t token = (first_row + r) / job.group, member = (first_row + r) % job.group;
    queries[r] =
        job.queries + token * job.query_stride + (head * job.group + member) * job.head_dim;
  }
  score<rows>(queries, tile.keys, tile.count, job.head_dim, scratch.weights);
  for (int r = 0; r < rows; ++r) {
    const int64_t position = job.first_position + (first_row + r) / job.group;
    const int64_t seen = position + 1 - tile.first_position;
    const Running running = scratch.row(row_of_head + first_row + r, job.head_dim);
    scales[r] = weigh(scratch.weights + r * tile_keys,
                      static_cast<int>(seen < tile.count ? seen : tile.count), tile.count, running);
    results[r] = running.values;
  }
  add_all_values<rows>(scratch.weights, scales, tile.values, tile.at, tile.count, results,
                       padded(job.head_dim));
}

template <int rows = most_rows, class Cached>
void visit(const AttentionJob& job, const Tile<Cached>& tile, const AttendScratch& scratch,
           int64_t head, int64_t first_row, int64_t left) {
  if (left >= rows) {
    visit_rows<rows>(job, tile, scratch, head, first_row);
  } else if constexpr (rows > 1) {
    visit<rows - 1>(job, tile, scratch, head, first_row, left);
  }
}

template <class Cached>
void visit_tile(const AttentionJob& job, const Tile<Cached>& tile, const AttendScratch& scratch,
                int64_t head) {
  const int64_t rows = job.tokens * job.group;
  for (int64_t r = 0; r < rows; r += most_rows) visit(job, tile, scratch, head, r, rows - r);
}

// A copy of the tile's values whose rows are padded with zeros to whole vectors.
template <class Cached>
void pad_values(const Cached* values, const int64_t* at, int count, int64_t head_dim, float* out) {
  for (int j = 0; j < count; ++j) {
    float* row = out + j * padded(head_dim);
    for (int64_t i = 0; i < head_dim; ++i) row[i] = widened(values[at[j] + i]);
    for (int64_t i = head_dim; i < padded(head_dim); ++i) row[i] = 0.0f;
  }
}

// Offsets of the slots of `count` positions from `first` on.
inline void locate(const AttentionJob& job, int64_t first, int count, int64_t* at) {
  if (count == 0) return;
  int64_t block = first / job.block_size, offset = first % job.block_size;
  for (int j = 0; j < count; ++j) {
    at[j] = (job.blocks[block] * job.block_size + offset) * job.slot_stride;
    if (++offset == job.block_size) {
      ++block;
      offset = 0;
    }
  }
}

template <class Cached>
void visit_head(const AttentionJob& job, const int64_t* at, int64_t first_position, int count,
                const AttendScratch& scratch, int64_t head) {
  const auto* keys = static_cast<const Cached*>(job.keys) + head * job.head_dim;
  const auto* values = static_cast<const Cached*>(job.values) + head * job.head_dim;
  transpose_keys(keys, at, count, job.head_dim, scratch.keys);
  if (job.head_dim % Vec::width == 0) {
    const Tile<Cached> tile{scratch.keys, values, at, first_position, count};
    visit_tile(job, tile, scratch, head);
    return;
  }
  pad_values(values, at, count, job.head_dim, scratch.values);
  int64_t padded_at[tile_keys];
  for (int j = 0; j < count; ++j) padded_at[j] = j * padded(job.head_dim);
  const Tile<float> tile{scratch.keys, scratch.values, padded_at, first_position, count};
  visit_tile(job, tile, scratch, head);
}

inline void clear(const AttentionJob& job, const AttendScratch& scratch) {
  const int64_t rows = job.tokens * job.kv_heads * job.group;
  std::memset(scratch.sums, 0, rows * Vec::width * sizeof(float));
  std::memset(scratch.results, 0, rows * padded(job.head_dim) * sizeof(float));
  for (int64_t r = 0; r < rows; ++r) scratch.maxima[r] = lowest;
}

inline void write_results(const AttentionJob& job, const AttendScratch& scratch) {
  const int64_t rows_of_head = job.tokens * job.group;
  for (int64_t r = 0; r < rows_of_head * job.kv_heads; ++r) {
    const int64_t head = r / rows_of_head, own = r % rows_of_head;
    const Running running = scratch.row(r, job.head_dim);
    const float inverse = 1.0f / lane_sum(Vec::load(running.sums));
    float* out = job.out + own / job.group * job.out_stride +
                 (head * job.group + own % job.group) * job.head_dim;
    for (int64_t i = 0; i < job.head_dim; ++i) out[i] = running.values[i] * inverse;
  }
}

// Read a tile's slots in their order, line by line. Head by head they are no stream that hardware
// would see and run ahead of, and of prefetch instructions it drops what it has no room for.
template <class Cached>
void bring_near(const void* cached, const AttentionJob& job, const int64_t* at, int count) {
  const auto bytes = static_cast<int64_t>(job.kv_heads * job.head_dim * sizeof(Cached));
  for (int j = 0; j < count; ++j) {
    const auto* slot = reinterpret_cast<const char*>(static_cast<const Cached*>(cached) + at[j]);
    for (int64_t byte = 0; byte < bytes; byte += line_bytes) {
      static_cast<void>(*static_cast<const volatile char*>(slot + byte));
    }
  }
}

template <class Cached>
void attend(const AttentionJob& job, float* scratch_memory) {
  const int64_t rows = job.tokens * job.kv_heads * job.group;
  const AttendScratch scratch(scratch_memory, rows, job.head_dim);
  clear(job, scratch);
  const int64_t context = job.first_position + job.tokens;
  int64_t at[tile_keys];
  for (int64_t first = 0; first < context; first += tile_keys) {
    const auto count = static_cast<int>(context - first < tile_keys ? context - first : tile_keys);
    locate(job, first, count, at);
    bring_near<Cached>(job.keys, job, at, count);
    bring_near<Cached>(job.values, job, at, count);
    for (int64_t head = 0; head < job.kv_heads; ++head) {
      visit_head<Cached>(job, at, first, count, scratch, head);
    }
  }
  write_results(job, scratch);
}

constexpr RowFunctions row_functions() {
  return {
      rms_norm, rotate, softmax, argmax, sigmoid, AttendScratch::floats, {attend<float>, attend<uint16_t>}};
}

}  // namespace
