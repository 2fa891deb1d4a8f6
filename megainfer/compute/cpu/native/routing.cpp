#include "routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "bfloat16.h"

namespace {

constexpr float nowhere = -std::numeric_limits<float>::infinity();

// ln(1 + e^x) is x where e^-x vanishes beside it.
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

void score(const Level& level, const Router& router, float* scores) {
  switch (router.score) {
    case RouterScore::softmax:
      return level.rows.softmax(scores, router.experts);
    case RouterScore::sigmoid:
      return level.rows.sigmoid(scores, router.experts);
    case RouterScore::sqrt_softplus:
      for (int64_t e = 0; e < router.experts; ++e) scores[e] = std::sqrt(softplus(scores[e]));
      return;
    case RouterScore::constant:
      return std::fill(scores, scores + router.experts, 1.0f);
    case RouterScore::logit:
    case RouterScore::sparsemixer:
      return;
  }
}

// The k best of n, best first, the first where two are equal.
void find_best(const float* scores, int64_t n, int64_t k, int64_t* ids, float* best) {
  int64_t found = 0;
  for (int64_t e = 0; e < n; ++e) {
    if (found == k && !(scores[e] > best[k - 1])) continue;
    int64_t at = found < k ? found++ : k - 1;
    for (; at > 0 && scores[e] > best[at - 1]; --at) {
      best[at] = best[at - 1];
      ids[at] = ids[at - 1];
    }
    best[at] = scores[e];
    ids[at] = e;
  }
}

// -inf where an expert is in none of the best groups. scratch: 2 floats a group.
void leave_groups(const Router& router, float* scores, float* scratch) {
  const int64_t groups = router.groups, size = router.experts / groups;
  float *ranks = scratch, *left = scratch + groups;
  for (int64_t g = 0; g < groups; ++g) {
    float best[2] = {nowhere, nowhere};
    for (const float* s = scores + g * size; s < scores + (g + 1) * size; ++s) {
      if (*s > best[0]) {
        best[1] = best[0];
        best[0] = *s;
      } else {
        best[1] = std::max(best[1], *s);
      }
    }
    ranks[g] = router.ranked_by == 1 ? best[0] : best[0] + best[1];
    left[g] = 1.0f;
  }
  for (int64_t kept = 0; kept < router.kept_groups; ++kept) {
    const int64_t best = std::max_element(ranks, ranks + groups) - ranks;
    left[best] = 0.0f;
    ranks[best] = nowhere;
  }
  for (int64_t g = 0; g < groups; ++g) {
    if (left[g] != 0.0f) std::fill(scores + g * size, scores + (g + 1) * size, nowhere);
  }
}

// By scores that aren't the weights: biased, or of some groups only. scratch: [E] of them, and what
// leaving groups needs.
void choose_apart(const Router& router, const float* scores, float* scratch, int64_t* ids,
                  float* weights) {
  const int64_t experts = router.experts, k = router.top_k;
  std::copy(scores, scores + experts, scratch);
  if (router.selection_bias != nullptr) {
    for (int64_t e = 0; e < experts; ++e) scratch[e] += router.selection_bias[e];
  }
  if (router.groups != 0) leave_groups(router, scratch, scratch + experts);
  find_best(scratch, experts, k, ids, weights);
  for (int64_t i = 0; i < k; ++i) weights[i] = scores[ids[i]];
}

// The two best, each weighted by a softmax over the logits near it; the second's leaves out the
// first. scratch [E].
void choose_sparsely(const Level& level, const Router& router, const float* logits, float* scratch,
                     int64_t* ids, float* weights) {
  for (int i = 0; i < 2; ++i) {
    const auto out = [&](int64_t e) { return i == 1 && e == ids[0]; };
    int64_t at = out(0) ? 1 : 0;
    for (int64_t e = at + 1; e < router.experts; ++e) {
      if (!out(e) && logits[e] > logits[at]) at = e;
    }
    const float best = logits[at];
    for (int64_t e = 0; e < router.experts; ++e) {
      const float distance = (best - logits[e]) / std::max(std::fabs(logits[e]), best);
      scratch[e] = out(e) || distance > 2.0f * router.jitter ? nowhere : logits[e];
    }
    level.rows.softmax(scratch, router.experts);
    ids[i] = at;
    weights[i] = scratch[at];
  }
}

void choose(const Level& level, const Router& router, int64_t token_id, float* scores,
            float* scratch, int64_t* ids, float* weights) {
  const int64_t k = router.top_k;
  if (router.score == RouterScore::sparsemixer) {
    return choose_sparsely(level, router, scores, scratch, ids, weights);
  }
  score(level, router, scores);
  if (router.table != nullptr) {
    const int64_t* entry = router.table + token_id * k;
    std::copy(entry, entry + k, ids);
    for (int64_t i = 0; i < k; ++i) weights[i] = scores[ids[i]];
  } else if (router.selection_bias != nullptr || router.groups != 0) {
    choose_apart(router, scores, scratch, ids, weights);
  } else {
    find_best(scores, router.experts, k, ids, weights);
  }
  if (router.score == RouterScore::logit) level.rows.softmax(weights, k);
}

}  // namespace

int64_t choose_scratch(const Router& router) { return router.experts + 2 * router.groups; }

void choose_experts(const Level& level, const Router& router, int64_t token_id, float* scores,
                    float* scratch, int64_t* ids, float* weights) {
  choose(level, router, token_id, scores, scratch, ids, weights);
  const int64_t k = router.top_k;
  float sum = 0.0f;
  for (int64_t i = 0; i < k; ++i) sum += weights[i];
  sum = std::max(sum + router.epsilon, router.least_sum);
  for (int64_t i = 0; i < k; ++i) {
    if (router.normalise) weights[i] /= sum;
    if (router.weight_type == RowType::bf16) weights[i] = from_bfloat16(to_bfloat16(weights[i]));
    weights[i] *= router.scale;
  }
}

void plan_scatter(const Homes& homes, const int64_t* chosen, const float* weights,
                  const int64_t* ways, int64_t rows, int64_t top_k, const Scatter& scatter) {
  for (int64_t node = 0; node < homes.num_nodes; ++node) {
    int64_t* to_rows = scatter.rows + node * rows;
    int64_t count = 0;
    for (int64_t r = 0; r < rows; ++r) {
      int32_t* to_ids = scatter.ids + (node * rows + count) * top_k;
      float* to_weights = scatter.weights + (node * rows + count) * top_k;
      const int64_t way = homes.num_ways == 1 ? 0 : ways[r];
      bool any = false;
      for (int64_t i = 0; i < top_k; ++i) {
        const int64_t home = chosen[r * top_k + i] * homes.num_ways + way;
        const bool here = homes.nodes[home] == node;
        to_ids[i] = here ? homes.local_ids[home] : -1;
        to_weights[i] = here ? weights[r * top_k + i] : 0.0f;
        any |= here;
      }
      if (any) to_rows[count++] = r;
    }
    scatter.counts[node] = count;
  }
}
