// Drawing a token from a row of logits, over `Vec`.
//
// What is cut is decided by thresholds, not ranks: tokens that tie are kept or dropped together. For
// top_k the logits themselves must tie: unequal ones may be equally likely after rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "level.h"
#include "rows.inl"

namespace {

constexpr int64_t draw_block = 64;  // tokens that are added up at once
constexpr int draw_bins = 1024;     // of floats from 0 to 1, by exponent and three bits more
constexpr float least_likelihood = 1e-34f;  // below it a token counts as impossible
// Beside the best one's likelihood of 1: all that top_k and top_p usually need.
constexpr float usual_least = 1e-6f;

inline int64_t draw_blocks(int64_t n) { return (n + draw_block - 1) / draw_block; }

size_t draw_scratch(int64_t n) { return draw_blocks(n) * (2 * draw_block + 2); }

// Tokens by likelihood: how many are in a bin, and their sum.
struct Bins {
  uint32_t counts[draw_bins];
  double sums[draw_bins];
};

inline int bin_of(float likelihood) {
  uint32_t bits;
  std::memcpy(&bits, &likelihood, sizeof bits);
  return static_cast<int>(bits >> 20);
}

// One row's tokens: how likely each is beside the best one, 0 from n to the end of its block.
class Draw {
 public:
  // largest: of the logits; finite.
  Draw(const float* logits, int64_t n, float largest, float temperature, float* scratch)
      : logits_(logits),
        n_(n),
        blocks_(draw_blocks(n)),
        likely_(scratch),
        some_(scratch + blocks_ * draw_block),
        sums_(reinterpret_cast<double*>(some_ + blocks_ * draw_block)) {
    const Vec::F best = Vec::set1(-largest), divisor = Vec::set1(temperature);
    std::memcpy(likely_, logits, n * sizeof(float));
    std::fill(likely_ + n, likely_ + blocks_ * draw_block, -__builtin_inff());
    for (float* at = likely_; at < end(); at += Vec::width) {
      const Vec::F scaled = Vec::div(Vec::add(Vec::load(at), best), divisor);
      Vec::store(at, exponential(scaled));
    }
    drop_below(least_likelihood);
  }

  void drop_below(float least) {
    for (float* at = likely_; at < end(); ++at) *at = *at < least ? 0.0f : *at;
  }

  // All but the top_k best, and those of the rest that aren't among the likeliest which together
  // have a share of top_p.
  void cut(int64_t top_k, double top_p) {
    if (top_k >= n_ && top_p >= 1.0) return;
    if (!cut_above(top_k, top_p, usual_least)) cut_above(top_k, top_p, least_likelihood);
  }

  // The token at which the running sum passes this share, in [0, 1), of all; -1 where all were
  // dropped.
  int64_t at(double share) {
    const double target = share * add_up();
    double sum = 0.0;
    int64_t block = 0;
    for (; block + 1 < blocks_ && sum + sums_[block] <= target; ++block) sum += sums_[block];
    // Roundings apart, it is in this one; a last block of zeros has nothing to give.
    while (block > 0 && sums_[block] == 0.0) --block;
    int64_t last = -1;
    for (int64_t i = block * draw_block; i < (block + 1) * draw_block; ++i) {
      if (likely_[i] == 0.0f) continue;
      last = i;
      sum += likely_[i];
      if (sum > target) break;
    }
    return last;
  }

 private:
  const float* end() const { return likely_ + blocks_ * draw_block; }

  // The sum of all, and that of each block.
  double add_up() {
    double total = 0.0;
    for (int64_t b = 0; b < blocks_; ++b) {
      const float* at = likely_ + b * draw_block;
      Vec::F sum = Vec::load(at);
      for (int i = Vec::width; i < draw_block; i += Vec::width) {
        sum = Vec::add(sum, Vec::load(at + i));
      }
      sums_[b] = lane_sum(sum);
      total += sums_[b];
    }
    return total;
  }

  void fill_bins(float least) {
    std::memset(&bins_, 0, sizeof bins_);
    for (const float* at = likely_; at < end(); at += draw_block) {
      bool any = false;
      for (int64_t i = 0; i < draw_block; ++i) any |= at[i] >= least;
      if (!any) continue;
      for (int64_t i = 0; i < draw_block; ++i) {
        if (at[i] < least) continue;
        const int bin = bin_of(at[i]);
        ++bins_.counts[bin];
        bins_.sums[bin] += at[i];
      }
    }
  }

  // The logits in a bin and those above, in some_; how many.
  int64_t gather_logits(int lowest) {
    int64_t count = 0;
    for (int64_t i = 0; i < n_; ++i) {
      if (likely_[i] > 0.0f && bin_of(likely_[i]) >= lowest) some_[count++] = logits_[i];
    }
    return count;
  }

  // The likelihoods in a bin, in some_; how many.
  int64_t gather(int bin) {
    int64_t count = 0;
    for (int64_t i = 0; i < n_; ++i) {
      if (likely_[i] > 0.0f && bin_of(likely_[i]) == bin) some_[count++] = likely_[i];
    }
    return count;
  }

  // False, and nothing happened, where tokens below `least` would have to be looked at.
  bool cut_above(int64_t top_k, double top_p, float least) {
    fill_bins(least);
    const bool all = least == least_likelihood;
    if (top_k < n_) {
      const int bin = bin_of_rank(top_k);
      if (bin < 0 && !all) return false;
      if (bin >= 0) {
        drop_worse(top_k, bin);
        fill_bins(least);
      }
    }
    if (top_p >= 1.0) return true;
    const float last = end_of_nucleus(top_p * add_up());
    if (last == 0.0f && !all) return false;
    drop_below(last);
    return true;
  }

  // Where the k-th best is; -1 where the bins hold fewer.
  int bin_of_rank(int64_t k) const {
    int64_t counted = 0;
    for (int bin = draw_bins - 1; bin >= 0; --bin) {
      counted += bins_.counts[bin];
      if (counted >= k) return bin;
    }
    return -1;
  }

  // All whose logits are below the k-th best, which is in `bin`, or by a rounding one below.
  void drop_worse(int64_t k, int bin) {
    const int64_t count = gather_logits(bin - 1);
    std::nth_element(some_, some_ + (k - 1), some_ + count, std::greater<float>());
    const float kth = some_[k - 1];
    for (int64_t i = 0; i < n_; ++i) likely_[i] = logits_[i] < kth ? 0.0f : likely_[i];
  }

  // The likelihood with which the sum of the best reaches `mass`; 0 where the bins hold less.
  float end_of_nucleus(double mass) {
    double sum = 0.0;
    for (int bin = draw_bins - 1; bin >= 0; --bin) {
      if (sum + bins_.sums[bin] >= mass && bins_.counts[bin] > 0) {
        const int64_t count = gather(bin);
        std::sort(some_, some_ + count, std::greater<float>());
        int64_t i = 0;
        for (; i + 1 < count && sum + some_[i] < mass; ++i) sum += some_[i];
        return some_[i];
      }
      sum += bins_.sums[bin];
    }
    return 0.0f;
  }

  const float* logits_;
  const int64_t n_, blocks_;
  float *likely_, *some_;
  double* sums_;
  Bins bins_;
};

// Of a row whose largest logit is finite.
int64_t draw_usable(const float* logits, int64_t n, float largest, const DrawWish& wish,
                    float* scratch) {
  Draw row(logits, n, largest, wish.temperature, scratch);
  if (wish.min_p > 0.0) row.drop_below(static_cast<float>(wish.min_p));
  row.cut(wish.top_k, wish.top_p);
  return row.at(wish.uniform);
}

int64_t draw(const float* logits, int64_t n, const DrawWish& wish, float* scratch) {
  // What isn't so would index bins and blocks that there aren't.
  const float largest = largest_of(logits, n);
  const bool usable = std::isfinite(largest) && wish.temperature > 0.0f && wish.top_k > 0;
  return usable ? draw_usable(logits, n, largest, wish, scratch) : -1;
}

}  // namespace
