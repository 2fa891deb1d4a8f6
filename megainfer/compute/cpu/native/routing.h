// How a row's experts are chosen of its router's logits, and what that sends to each expert node.
#pragma once

#include <cstdint>

#include "level.h"

enum class RouterScore : int32_t {
  softmax = 0,
  sigmoid = 1,
  sqrt_softplus = 2,
  logit = 3,
  sparsemixer = 4,
  constant = 5,
};

// See RouterSpec of models/spec/router.py. groups: how many, 0 where experts are not grouped, of
// which `kept_groups` are chosen from, by the sum of their best `ranked_by`. selection_bias [E] is
// null where there is none, table [V, K] where experts are not looked up by token.
struct Router {
  const float* selection_bias;
  const int64_t* table;
  int64_t experts, top_k, groups, kept_groups, ranked_by;
  float epsilon, least_sum, scale, jitter;
  RouterScore score;
  int32_t normalise;
  RowType weight_type;  // what chosen weights are rounded to, before they are scaled
};

// What goes to each expert node: of `counts[n]` rows their index, local ids (-1: not there) and
// weights, [num_nodes, T], [num_nodes, T, K] and [num_nodes, T, K].
struct Scatter {
  int64_t* counts;
  int64_t* rows;
  int32_t* ids;
  float* weights;
};

// Where each expert lives: its node and its id there, both [E, num_ways]. A token takes the way that
// it has; there is a single one where no expert's tokens are shared out.
struct Homes {
  const int64_t* nodes;
  const int32_t* local_ids;
  int64_t num_nodes, num_ways;
};

// Floats of scratch that `choose_experts` needs.
int64_t choose_scratch(const Router& router);

// ids and weights [K], best first, the lower expert where two are equal. scores [E] are the logits,
// and are overwritten.
void choose_experts(const Level& level, const Router& router, int64_t token_id, float* scores,
                    float* scratch, int64_t* ids, float* weights);

// Spread choices [T, K] over the nodes. ways [T]: which of each home's; of a single one they may be
// null.
void plan_scatter(const Homes& homes, const int64_t* chosen, const float* weights,
                  const int64_t* ways, int64_t rows, int64_t top_k, const Scatter& scatter);
