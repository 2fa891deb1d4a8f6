#include "layer_chain.h"

#include <ctime>

namespace {

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

void LayerChain::run(const ChainLayer* layers, int64_t count, const StepRows& step, RowType type,
                     float* x, double* times, double* totals) {
  const ExpertShape& shape = experts_.shape();
  const int64_t rows = step.rows, values = rows * shape.hidden;
  const size_t bytes = values * (type == RowType::f32 ? sizeof(float) : sizeof(uint16_t));
  auto* hidden = hidden_scratch_.of<uint8_t>(bytes);
  out_ = out_scratch_.of<uint8_t>(bytes);
  int64_t chosen = 0;  // rows that chose an expert here: all of them
  const Scatter scatter{&chosen, rows_scratch_.of<int64_t>(rows),
                        ids_scratch_.of<int32_t>(rows * shape.top_k),
                        weights_scratch_.of<float>(rows * shape.top_k)};
  const Slot slot{hidden, scatter.ids, scatter.weights, out_, rows};
  for (int64_t l = 0; l < count; ++l) {
    const ChainLayer& layer = layers[l];
    times[3 * l] = now();
    half_.attend(*layer.attention, step, layer.cache, x);
    half_.gate(*layer.gate, x, step.token_ids, nullptr, rows, type, hidden, scatter);
    times[3 * l + 1] = now();
    compute_experts(layer, slot, type);
    times[3 * l + 2] = now();
    add_outputs(type, values, x);
  }
  times[3 * count] = now();
  for (int stage = 0; stage < 3; ++stage) {
    totals[stage] = 0;
    for (int64_t i = stage; i < 3 * count; i += 3) totals[stage] += times[i + 1] - times[i];
  }
}

void LayerChain::compute_experts(const ChainLayer& layer, const Slot& slot, RowType type) {
  const int64_t experts = experts_.shape().experts;
  auto* counts = counts_scratch_.of<int64_t>(experts);
  experts_.forward(layer.experts, &slot, 1, type, counts);
  for (int64_t e = 0; e < experts; ++e) layer.counts[e] += counts[e];
}

void LayerChain::add_outputs(RowType type, int64_t values, float* x) {
  const Level& level = half_.level();
  const float* sums = static_cast<const float*>(out_);
  if (type == RowType::bf16) {
    float* widened = widened_scratch_.of<float>(values);
    level.widen(static_cast<const uint16_t*>(out_), widened, values);
    sums = widened;
  }
  level.add_scaled(sums, 1.0f, x, values);
}
