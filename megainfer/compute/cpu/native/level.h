// What one instruction set offers. Everything that is fast is behind these function pointers; the
// rest of the library is compiled for the baseline.
#pragma once

#include <cstddef>
#include <cstdint>

#include "delta_jobs.h"

enum class WeightFormat : int32_t {
  f32 = 0,
  bf16 = 1,
  int8 = 2,
  int4 = 3,
  int4_128 = 4,
  mxfp4 = 5,
  fp8 = 6,
  int8_32 = 7,
};
constexpr int weight_formats = 8;

// A matrix product y = x W^T of a few rows x [rows, K] with W [N, K], its weights in one format.
//
// Weights are packed in panels of `Level::panel_width` output channels. Within one, K runs
// outermost, in words of 32 bits: one f32, two bf16 or four int8, consecutive in K, so that a
// vector of words holds as many channels. K is padded with zeros to whole words. int8 comes in
// blocks of K, each preceded by a float scale a channel, and so does FP8; four bits as nibbles.inl
// says.
//
// Rows are packed in groups of 1 to `max_rows` whose elements lie side by side. A row's
// sums run over K in order whatever its group, hence they don't depend on it.
struct Product {
  int max_rows;
  // Bytes of one panel.
  size_t (*panel_bytes)(int64_t k);
  // Pack a panel of two halves, each `panel_width / 2` channels (rows of K floats) of which only
  // the first `valid` are there; the others become zeros. False where a weight isn't finite and the
  // format, FP8 or one of four bits, has nothing like it.
  bool (*pack_panel)(const float* const channels[2], const int64_t valid[2], int64_t k,
                     void* panel);
  // Words of one packed row.
  size_t (*row_words)(int64_t k);
  // Pack `count` rows of K floats into count * row_words(k) words.
  void (*pack_rows)(const float* const* rows, int count, int64_t k, uint32_t* packed);
  // out [count, panel_width] = the packed rows times one panel.
  void (*multiply)(const void* panel, const uint32_t* packed, int count, int64_t k, float* out);
};

enum class RowType : int32_t { f32 = 0, bf16 = 1 };

// What keys and values are cached in: floats, or codes of eight bits and their scales.
enum class CacheType : int32_t { f32 = 0, bf16 = 1, int8 = 2, e4m3 = 3 };
constexpr int cache_types = 4;

// Tokens of a block of the KV cache, whose layout is paged_cache.inl's own.
constexpr int64_t cache_block_tokens = 16;

constexpr bool has_scales(CacheType type) {
  return type == CacheType::int8 || type == CacheType::e4m3;
}

constexpr int64_t element_bytes(CacheType type) {
  return type == CacheType::f32 ? 4 : type == CacheType::bf16 ? 2 : 1;
}

// Channels of a latent that share a scale; the rotated key beside it has one of its own.
constexpr int64_t latent_group = 128;

constexpr int64_t latent_scales(int64_t rank) { return (rank + latent_group - 1) / latent_group + 1; }

enum class NormKind : int32_t { rms = 0, layer = 1 };

// What rows are normalised with: x / sqrt(mean(x^2) + eps) * weight, or the same of x - mean(x);
// and a bias is added unless it is null.
struct Norm {
  const float *weight, *bias;
  float eps;
  NormKind kind;
};

// Some tokens that follow each other in one sequence, their queries of some key heads, and the
// sequence's cached keys and values.
struct AttentionJob {
  const float* queries;  // the first token's first head in question; heads lie side by side
  int64_t query_stride;  // floats between tokens
  float* out;            // like queries, of the same heads
  int64_t out_stride;
  int64_t tokens, first_position;
  int64_t kv_heads, group, head_dim;  // `group` queries share a key head
  const void* cache;                  // of block 0, of the first key head in question
  int64_t block_words, share_words;   // 32-bit words between blocks, and between key heads
  const int64_t* blocks;              // where the sequence's tokens lie
  const float* sinks;                 // a query's score without a value, or null
  float scale;                        // of scores
  int64_t window, chunk;              // 0: none

  bool sees_all() const { return window == 0 && chunk == 0; }

  // The first position that the query at this one sees: so many back, its own chunk's at most.
  int64_t first_seen(int64_t position) const {
    int64_t first = 0;
    if (window > 0 && position >= window) first = position + 1 - window;
    if (chunk > 0 && position / chunk * chunk > first) first = position / chunk * chunk;
    return first;
  }
};

enum class ActivationKind : int32_t { silu = 0, gelu = 1, gelu_tanh = 2 };

// inner = kind(min(gate, limit)) * (clamp(up, -limit, limit) + up_offset); alpha is of silu.
struct Activation {
  ActivationKind kind;
  float limit, alpha, up_offset;
};

// Some tokens that follow each other in one sequence, their queries of some heads in the space of
// latents, and the sequence's cached rows, which all heads attend to.
struct LatentJob {
  const float* queries;  // the first token's first head in question, [width]; heads side by side
  int64_t query_stride;  // floats between tokens
  float* out;            // like queries, [rank] a head
  int64_t out_stride;
  int64_t tokens, first_position, heads;
  int64_t rank, width;  // channels of a row that are its value, and all, which are its key
  float scale;          // of scores
  const void* cache;    // of block 0
  int64_t block_bytes;
  const int64_t* blocks;  // where the sequence's tokens lie
};

// How a row's token is to be drawn; see `choose` of kernels/reference/sampling.py. top_k: the number
// of tokens where there is none.
struct DrawWish {
  double top_p, min_p, uniform;
  int64_t top_k;
  float temperature;
};

// What the attention half of a layer needs besides products. Each row's additions are in an order
// that its own length alone decides.
struct RowFunctions {
  // out = x / sqrt(mean(x^2) + eps) * weight over n floats; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // out = norm of n floats; out may be x.
  void (*normalise)(const Norm& norm, const float* x, int64_t n, float* out);
  // Rotate n channels of a head in place: head[i] * cos[i] + its partner * signed_sin[i]. Partners
  // are n / 2 apart, or neighbours.
  void (*rotate)(float* head, const float* cos, const float* signed_sin, int64_t n);
  void (*rotate_neighbours)(float* head, const float* cos, const float* signed_sin, int64_t n);
  // x = softmax(x) over n floats.
  void (*softmax)(float* x, int64_t n);
  // Where the largest of n > 0 floats is, the first of several; -1 where one is NaN.
  int64_t (*argmax)(const float* x, int64_t n);
  // x = 1 / (1 + e^-x).
  void (*sigmoid)(float* x, int64_t n);
  // Floats of scratch that `draw` needs for n of them.
  size_t (*draw_scratch)(int64_t n);
  // A token of n logits; -1 where none is finite or one is NaN or +inf, and where the wish leaves
  // none.
  int64_t (*draw)(const float* logits, int64_t n, const DrawWish& wish, float* scratch);
  // Keep one token of one key head, key and value of head_dim floats, as the one at `offset` in
  // this head's share of a block; by the cache's type. head_dim fills words.
  void (*write_cached[cache_types])(const float* key, const float* value, int64_t head_dim,
                                  int64_t offset, void* share);
  // Floats of scratch that `attend` needs for a job of these many query rows.
  size_t (*attend_scratch)(int64_t rows, int64_t head_dim);
  // Causal attention of one job as far back as its queries see, while memory is asked for what
  // `next` begins with; by the cache's type.
  void (*attend[cache_types])(const AttentionJob& job, const AttentionJob& next, float* scratch);
  // Keep one token's row, `rank` channels of `width` being its latent, as the one at `offset` of a
  // block; by the cache's type.
  void (*write_latent[cache_types])(const float* row, int64_t rank, int64_t width, int64_t offset,
                                    void* block);
  // Floats of scratch that `attend_latents` needs.
  size_t (*latent_scratch)(const LatentJob& job);
  // Causal attention of one job; by the cache's type.
  void (*attend_latents[cache_types])(const LatentJob& job, float* scratch);
};

struct Level {
  const char* name;
  int panel_width;
  Product products[weight_formats];
  // out [count, panel_width / 2] = silu(left half) * right half of tile [count, panel_width].
  void (*swiglu)(const float* tile, int count, float* out, int64_t out_stride);
  // The same with any activation, each row [panel_width] of the tile times its weight, plus bias
  // [panel_width]; both may be null.
  void (*activate)(const Activation& activation, const float* weights, const float* bias,
                   const float* tile, int count, float* out, int64_t out_stride);
  // y += weight * x over `n` floats.
  void (*add_scaled)(const float* x, float weight, float* y, int64_t n);
  void (*widen)(const uint16_t* bf16, float* out, int64_t n);
  void (*narrow)(const float* x, uint16_t* bf16, int64_t n);
  float (*read_all)(const float* x, int64_t n);
  RowFunctions rows;
  DeltaFunctions delta;
};

// The levels that were built, each with what the one before it needs.
extern const Level* const levels[];
extern const int num_levels;

// The same, best last; null beyond them.
const Level* level_of_rank(int rank);

// The level of this name if this machine can run it, else null.
const Level* find_level(const char* name);
// The best that this machine can run.
const Level* best_level();
