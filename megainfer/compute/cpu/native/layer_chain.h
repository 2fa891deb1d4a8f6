// Whole layers in one process: the attention half, the gate, its experts, and their sum.
#pragma once

#include <cstdint>

#include "attention_half.h"
#include "experts.h"
#include "scratch.h"

// One layer, its cache, and its experts' packed weights, all of them here. counts [E]: where the
// choices of each expert are added up.
struct ChainLayer {
  const AttentionLayer* attention;
  const GateLayer* gate;
  LayerCache cache;
  ExpertWeights experts;
  int64_t* counts;
};

// What separate processes do for a step, in the same order of operations and so with the same
// results, without messages in between. Not for two threads at once.
class LayerChain {
 public:
  LayerChain(AttentionHalf& half, Experts& experts) : half_(half), experts_(experts) {}

  // x [T, D] goes through `count` layers. type: of what the experts read and write. times
  // [count * 3 + 1], seconds of the monotonic clock: when each layer began, when its experts did, and
  // when their sums were to be added to x; at last the end of it all. totals [3]: the seconds of
  // attention, of experts and of adding, over all layers.
  void run(const ChainLayer* layers, int64_t count, const StepRows& step, RowType type, float* x,
           double* times, double* totals);

 private:
  void compute_experts(const ChainLayer& layer, const Slot& slot, RowType type);
  void add_outputs(RowType type, int64_t values, float* x);

  AttentionHalf& half_;
  Experts& experts_;
  Scratch hidden_scratch_, out_scratch_, rows_scratch_, ids_scratch_, weights_scratch_;
  Scratch widened_scratch_, counts_scratch_;
  void* out_ = nullptr;
};
