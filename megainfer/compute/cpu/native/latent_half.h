// Multi-head latent attention of a layer: its projections, its cache, and what they attend to.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "attention_half.h"
#include "level.h"
#include "scratch.h"
#include "thread_pool.h"

// y = W x for each head, its own W [outputs, inputs] packed; a head's panels follow the last one's.
struct HeadsLinear {
  const uint8_t* panels;
  int64_t inputs, outputs;
  WeightFormat format;
};

// One layer's latent attention; see kernels/reference/latent_attention.py, whose absorbed form this
// is. q: of the queries' latent, or of the layer's input where q_down has no panels. kv_down gives
// the latent, then the key that is rotated. key_up: from a head's query to the space of latents.
// value_up: from there to its value. rotary: [positions, 2, rope], cosines and signed sines.
struct LatentLayer {
  Linear q_down, q, kv_down, out;
  HeadsLinear key_up, value_up;
  const float *norm, *q_norm, *kv_norm, *rotary;
  int64_t heads, nope, rope, rank, value;
  float eps, latent_eps, scale, residual;
};

// Scratch, beside that of the half whose products it uses. Not for two threads at once.
class LatentHalf {
 public:
  LatentHalf(AttentionHalf& half, ThreadPool& pool) : half_(half), pool_(pool) {}

  // x [T, D] += attention of its norm; the rows' latents and keys go into the cache, whose blocks
  // are [cache_block_tokens, rank + rope], then scales where there are some.
  void attend(const LatentLayer& layer, const StepRows& step, const LayerCache& cache, float* x);

 private:
  // Rows of a step that are attended together: so many that their queries stay small.
  struct Slab {
    int64_t first, count;
  };

  template <class Work>
  void add_phase(int64_t count, Work work);
  void run();
  void project(const LatentLayer& layer, const float* x, int64_t rows);
  void finish_rows(const LatentLayer& layer, const StepRows& step, const LayerCache& cache);
  void attend_slab(const LatentLayer& layer, const StepRows& step, const LayerCache& cache,
                   const Slab& slab);
  template <class Read, class Write>
  void multiply(const HeadsLinear& linear, int64_t heads, int64_t rows, Read read, Write write);
  void list_jobs(const LatentLayer& layer, const StepRows& step, const LayerCache& cache,
                 const Slab& slab);
  void add_jobs(CacheType type);

  AttentionHalf& half_;
  ThreadPool& pool_;
  std::vector<ThreadPool::Phase> phases_;
  std::vector<LatentJob> jobs_;
  std::atomic<size_t> next_job_{0};

  Scratch normed_scratch_, q_latent_scratch_, q_scratch_, latent_scratch_, words_scratch_;
  Scratch queries_scratch_, found_scratch_, context_scratch_, out_scratch_, job_scratch_;
  float *normed_ = nullptr, *q_ = nullptr, *latent_ = nullptr, *queries_ = nullptr;
  float *found_ = nullptr, *context_ = nullptr;
};
