// The part of gated DeltaNet between its projections: convolution and recurrence, over many sequences.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "level.h"
#include "scratch.h"
#include "thread_pool.h"

// One layer. Rows of its input hold queries and keys of all key heads, values and then gates of all
// value heads, side by side; value_heads / key_heads neighbours share a query and a key.
struct DeltaNetLayer {
  const float *weights;  // [taps, channels] of the convolution, whose channels come before the gates
  const float *time_bias, *decay_factor;  // [value_heads]
  const float* norm;                      // [value_dim]
  int64_t key_heads, value_heads, key_dim, value_dim, taps;
  float eps;

  int64_t key_size() const { return key_heads * key_dim; }
  int64_t value_size() const { return value_heads * value_dim; }
  int64_t channels() const { return 2 * key_size() + value_size(); }
};

// A step's sequences: s has the rows row_starts[s] to row_starts[s + 1] - 1, of which the first is
// its token at first_positions[s], and its state is in slots[s].
struct DeltaNetStep {
  const int64_t *row_starts, *first_positions, *slots;
  int64_t sequences;
};

// past: [slots, taps - 1, channels]. state: [slots, value_heads, key_dim, value_dim].
struct DeltaNetState {
  float *past, *state;
};

// Scratch, and threads that others may share. Not for two threads at once.
class DeltaNet {
 public:
  DeltaNet(const Level& level, ThreadPool& pool) : level_(level), pool_(pool) {}

  // out [T, value size] = what the rows of input [T, channels + value size] read of the states,
  // normed and gated, while the states take them in. rates: [T, 2 * value_heads], rates of all
  // heads and then decays, as projected. A sequence at position 0 begins with nothing.
  void recur(const DeltaNetLayer& layer, const DeltaNetStep& step, const float* input,
             const float* rates, const DeltaNetState& state, float* out);

 private:
  void list_convolutions(const DeltaNetLayer& layer, const DeltaNetStep& step, const float* input,
                         const DeltaNetState& state);
  void list_heads(const DeltaNetLayer& layer, const DeltaNetStep& step, const float* input,
                  const float* rates, const DeltaNetState& state, float* out);
  template <class Work>
  void add_phase(size_t count, std::atomic<size_t>& next, Work work);

  const Level& level_;
  ThreadPool& pool_;
  std::vector<ThreadPool::Phase> phases_;
  std::vector<ConvolutionJob> convolutions_;
  std::vector<DeltaJob> heads_;
  std::atomic<size_t> next_convolution_{0}, next_head_{0};
  Scratch mixed_scratch_, job_scratch_;
  float* mixed_ = nullptr;  // [T, channels], after the convolution
};
