// What gated DeltaNet needs of an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

// A causal convolution of some neighbouring channels over consecutive tokens of one sequence.
struct ConvolutionJob {
  const float* inputs;  // [tokens, channels], the first token's first channel
  int64_t input_stride;
  float* past;  // [taps - 1, channels], the inputs before these, oldest first; then the last of all
  const float* weights;  // [taps, channels], the newest input's last
  int64_t channel_stride;  // of past and weights
  float* out;              // like inputs
  int64_t out_stride;
  int64_t tokens, channels, taps;
};

// Consecutive tokens of one sequence through one value head; each row's first float in question,
// and the floats between rows.
struct DeltaJob {
  const float *query, *key, *value;  // after the convolution
  int64_t mixed_stride;
  const float *rate, *decay;  // one a row, as projected
  int64_t rate_stride;
  const float* gate;
  int64_t gate_stride;
  float* out;
  int64_t out_stride;
  float* state;  // [key_dim, value_dim]
  int64_t tokens, key_dim, value_dim;
  float time_bias, decay_factor;  // a state is multiplied with e^(-factor softplus(decay + bias))
  const float* norm;              // [value_dim]
  float eps;
};

struct DeltaFunctions {
  // silu of each channel's weighted sum of its last `taps` inputs. Each channel by itself, and its
  // additions in the order of the taps, however a sequence is cut.
  void (*convolve)(const ConvolutionJob& job);
  // Floats of scratch that `recur` needs.
  size_t (*scratch)(int64_t tokens, int64_t key_dim, int64_t value_dim);
  // The gated delta rule, as kernels/reference/delta_net.py has it, then each row's norm and gate.
  // Token after token, however a sequence is cut.
  void (*recur)(const DeltaJob& job, float* scratch);
};
