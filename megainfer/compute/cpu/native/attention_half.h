// What an attention node computes of a layer: attention with its projections, and the gate.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "attention_layer.h"
#include "level.h"
#include "routing.h"
#include "scratch.h"
#include "thread_pool.h"

// A step's rows: token, position and slot of each, and the sequences that they are of. Sequence s
// has the rows row_starts[s] to row_starts[s + 1] - 1, at consecutive positions, and its tokens lie
// in the blocks of blocks[s, blocks_a_sequence].
struct StepRows {
  const int64_t *token_ids, *positions, *slots, *row_starts, *blocks;
  int64_t rows, sequences, blocks_a_sequence;
};

// Norm and router of one layer. linear: of the router; without panels where its score is constant.
struct GateLayer {
  Linear linear;
  Norm norm;
  Homes homes;
  Router router;
};

// Scratch, and threads that others may share. Not for two threads at once.
class AttentionHalf {
 public:
  AttentionHalf(const Level& level, ThreadPool& pool);

  size_t linear_bytes(WeightFormat format, int64_t inputs, int64_t outputs) const;
  bool pack(WeightFormat format, const float* weight, int64_t inputs, int64_t outputs,
            uint8_t* panels) const;

  // x [T, D] += attention of its norm; the rows' keys and values go into the cache.
  void attend(const AttentionLayer& layer, const StepRows& step, const LayerCache& cache, float* x);
  // hidden [T, D] = norm of x; which rows of it go where. token_ids [T]. ways: see `plan_scatter`.
  void gate(const GateLayer& layer, const float* x, const int64_t* token_ids, const int64_t* ways,
            int64_t rows, RowType type, void* hidden, const Scatter& scatter);
  // out [S, outputs] = linear of the norms of these rows of x.
  void head(const Linear& linear, const Norm& norm, const float* x, const int64_t* rows,
            int64_t count, float* out);
  // best [count] = where the largest of each row of x [count, width] is, -1 where one is NaN.
  void argmax(const float* x, int64_t count, int64_t width, int64_t* best);
  // tokens [count] = drawn from the rows of x [count, width], each as it wishes.
  void draw(const float* x, int64_t count, int64_t width, const DrawWish* wishes, int64_t* tokens);
  // out [T, outputs] = linear of x [T, inputs].
  void linear(const Linear& linear, const float* x, int64_t rows, float* out);
  // out [T, D] = norm of x.
  void norm(const Norm& norm, const float* x, int64_t rows, int64_t width, float* out);
  // x = 1 / (1 + e^-x).
  void sigmoid(float* x, int64_t count) { level_.rows.sigmoid(x, count); }

  const Level& level() const { return level_; }

 private:
  // Rows that are packed together.
  struct Group {
    int64_t first;
    int count;
  };

  template <class Work>
  void add_phase(int64_t count, Work work);
  void run();
  void group(int64_t rows, std::initializer_list<const Linear*> linears);
  template <class Read>
  void pack_rows(const Linear& linear, Read read);
  template <class Write>
  void multiply(const Linear& linear, Write write);
  void store(const Linear& linear, float* out, int64_t stride);
  void add(const Linear& linear, float weight, float* out);
  int64_t stride_of(const Linear& linear) const;
  const Product& product_of(const Linear& linear) const {
    return level_.products[static_cast<int>(linear.format)];
  }

  void list_jobs(const AttentionLayer& layer, const StepRows& step, const LayerCache& cache);
  void add_jobs(CacheType type);

  const Level& level_;
  ThreadPool& pool_;
  std::vector<ThreadPool::Phase> phases_;
  std::vector<Group> groups_;
  std::vector<AttentionJob> jobs_;
  std::atomic<size_t> next_job_{0};

  Scratch words_scratch_, normed_scratch_, qkv_scratch_, context_scratch_, job_scratch_;
  Scratch logits_scratch_, choose_scratch_, chosen_scratch_, weights_scratch_;
  uint32_t* words_ = nullptr;  // the packed rows
  float *normed_ = nullptr, *qkv_ = nullptr, *context_ = nullptr, *logits_ = nullptr;
  float* choosing_ = nullptr;  // scratch of each row
  int64_t qkv_stride_ = 0, logits_stride_ = 0;
  int64_t* chosen_ = nullptr;        // [T, K], experts, best first
  float* chosen_weights_ = nullptr;  // [T, K]
};
