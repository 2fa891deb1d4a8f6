#include "delta_net.h"

#include <algorithm>
#include <cstring>

namespace {

// Channels that a task convolves: enough to be worth a task, few enough for all threads.
constexpr int64_t most_channels = 256;

}  // namespace

// work(i, task) for 0 <= i < count by a task a thread, which takes the next one when it is done.
template <class Work>
void DeltaNet::add_phase(size_t count, std::atomic<size_t>& next, Work work) {
  next.store(0, std::memory_order_relaxed);
  const auto tasks = std::min<size_t>(count, pool_.threads());
  phases_.push_back({static_cast<uint32_t>(tasks), [=, &next](uint32_t task) {
                       for (size_t i; (i = next.fetch_add(1)) < count;) work(i, task);
                     }});
}

void DeltaNet::recur(const DeltaNetLayer& layer, const DeltaNetStep& step, const float* input,
                     const float* rates, const DeltaNetState& state, float* out) {
  mixed_ = mixed_scratch_.of<float>(step.row_starts[step.sequences] * layer.channels());
  list_convolutions(layer, step, input, state);
  list_heads(layer, step, input, rates, state, out);
  int64_t longest = 0;
  for (const DeltaJob& job : heads_) longest = std::max(longest, job.tokens);
  const size_t floats = level_.delta.scratch(longest, layer.key_dim, layer.value_dim);
  const size_t apart = (floats + 15) / 16 * 16;  // each task's on lines of its own
  float* scratch = job_scratch_.of<float>(apart * pool_.threads());
  add_phase(convolutions_.size(), next_convolution_,
            [this](size_t i, uint32_t) { level_.delta.convolve(convolutions_[i]); });
  add_phase(heads_.size(), next_head_, [=, this](size_t i, uint32_t task) {
    level_.delta.recur(heads_[i], scratch + task * apart);
  });
  pool_.run(phases_);
  phases_.clear();
}

void DeltaNet::list_convolutions(const DeltaNetLayer& layer, const DeltaNetStep& step,
                                 const float* input, const DeltaNetState& state) {
  const int64_t channels = layer.channels(), width = channels + layer.value_size();
  const int64_t past_floats = (layer.taps - 1) * channels;
  convolutions_.clear();
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int64_t begin = step.row_starts[s], end = step.row_starts[s + 1];
    float* past = state.past + step.slots[s] * past_floats;
    if (step.first_positions[s] == 0) std::memset(past, 0, past_floats * sizeof(float));
    for (int64_t first = 0; first < channels; first += most_channels) {
      convolutions_.push_back({
          .inputs = input + begin * width + first,
          .input_stride = width,
          .past = past + first,
          .weights = layer.weights + first,
          .channel_stride = channels,
          .out = mixed_ + begin * channels + first,
          .out_stride = channels,
          .tokens = end - begin,
          .channels = std::min(most_channels, channels - first),
          .taps = layer.taps,
      });
    }
  }
}

void DeltaNet::list_heads(const DeltaNetLayer& layer, const DeltaNetStep& step, const float* input,
                          const float* rates, const DeltaNetState& state, float* out) {
  const int64_t channels = layer.channels(), values = layer.value_size();
  const int64_t width = channels + values, shared = layer.value_heads / layer.key_heads;
  const int64_t head_floats = layer.key_dim * layer.value_dim;
  heads_.clear();
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int64_t begin = step.row_starts[s], end = step.row_starts[s + 1];
    float* own = state.state + step.slots[s] * layer.value_heads * head_floats;
    if (step.first_positions[s] == 0) {
      std::memset(own, 0, layer.value_heads * head_floats * sizeof(float));
    }
    for (int64_t head = 0; head < layer.value_heads; ++head) {
      const float* mixed = mixed_ + begin * channels;
      const float* rate = rates + begin * 2 * layer.value_heads + head;
      const int64_t of_key = head / shared * layer.key_dim, of_value = head * layer.value_dim;
      heads_.push_back({
          .query = mixed + of_key,
          .key = mixed + layer.key_size() + of_key,
          .value = mixed + 2 * layer.key_size() + of_value,
          .mixed_stride = channels,
          .rate = rate,
          .decay = rate + layer.value_heads,
          .rate_stride = 2 * layer.value_heads,
          .gate = input + begin * width + channels + of_value,
          .gate_stride = width,
          .out = out + begin * values + of_value,
          .out_stride = values,
          .state = own + head * head_floats,
          .tokens = end - begin,
          .key_dim = layer.key_dim,
          .value_dim = layer.value_dim,
          .time_bias = layer.time_bias[head],
          .decay_factor = layer.decay_factor[head],
          .norm = layer.norm,
          .eps = layer.eps,
      });
    }
  }
}
