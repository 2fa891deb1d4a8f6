#include "attention_half.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "phases.h"

namespace {

constexpr int max_tile = 32 * 32;  // floats: rows of a group times a panel's width, in any level
constexpr int most_group_rows = 32;

// Query rows that go through a key head's tiles together in prefill: enough to pay for bringing a
// tile into shape, few enough to keep what is known of them in the cache.
constexpr int64_t job_rows = 96;

}  // namespace

AttentionHalf::AttentionHalf(const Level& level, ThreadPool& pool) : level_(level), pool_(pool) {}

template <class Work>
void AttentionHalf::add_phase(int64_t count, Work work) {
  phases_.push_back(phase_of(count, pool_.threads(), work));
}

void AttentionHalf::run() {
  pool_.run(phases_);
  phases_.clear();
}

// --- linear ----------------------------------------------------------------------------------

size_t AttentionHalf::linear_bytes(WeightFormat format, int64_t inputs, int64_t outputs) const {
  const Product& product = level_.products[static_cast<int>(format)];
  return ceil_div(outputs, level_.panel_width) * product.panel_bytes(inputs);
}

bool AttentionHalf::pack(WeightFormat format, const float* weight, int64_t inputs, int64_t outputs,
                         uint8_t* panels) const {
  const Product& product = level_.products[static_cast<int>(format)];
  const int64_t half = level_.panel_width / 2;
  bool kept = true;
  for (int64_t first = 0; first < outputs; first += 2 * half) {
    const int64_t there = outputs - first;
    const int64_t valid[2] = {std::min(half, there), std::clamp(there - half, int64_t{0}, half)};
    const float* left = weight + first * inputs;
    const float* channels[2] = {left, left + valid[0] * inputs};
    kept &= product.pack_panel(channels, valid, inputs, panels);
    panels += product.panel_bytes(inputs);
  }
  return kept;
}

// Floats between rows that hold whole panels.
int64_t AttentionHalf::stride_of(const Linear& linear) const {
  return ceil_div(linear.outputs, level_.panel_width) * level_.panel_width;
}

// In as few groups as hold these rows, of about the same size; words_ has room for any of the
// linears' rows.
void AttentionHalf::group(int64_t rows, std::initializer_list<const Linear*> linears) {
  int64_t most = most_group_rows;
  for (const Linear* linear : linears) {
    most = std::min<int64_t>(most, product_of(*linear).max_rows);
  }
  const int64_t parts = ceil_div(rows, most);
  groups_.clear();
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t from = share(rows, p, parts), to = share(rows, p + 1, parts);
    groups_.push_back({from, static_cast<int>(to - from)});
  }
  size_t words = 0;
  for (const Linear* linear : linears) {
    words = std::max(words, rows * product_of(*linear).row_words(linear->inputs));
  }
  words_ = words_scratch_.of<uint32_t>(words);
}

// A phase that packs the rows, read(row), as the linear wants them.
template <class Read>
void AttentionHalf::pack_rows(const Linear& linear, Read read) {
  const Product& product = product_of(linear);
  const int64_t k = linear.inputs;
  add_phase(static_cast<int64_t>(groups_.size()), [=, this, &product](int64_t g) {
    const float* rows[most_group_rows];
    const auto [first, count] = groups_[g];
    for (int m = 0; m < count; ++m) rows[m] = read(first + m);
    product.pack_rows(rows, count, k, words_ + first * product.row_words(k));
  });
}

// A phase that does write(row, column, values, width) with all pieces of the packed rows' products.
template <class Write>
void AttentionHalf::multiply(const Linear& linear, Write write) {
  const auto groups = static_cast<int64_t>(groups_.size());
  const int64_t pieces = ceil_div(linear.outputs, level_.panel_width) * groups;
  add_phase(pieces, [=, this, &linear](int64_t piece) {
    const Product& product = product_of(linear);
    const int64_t k = linear.inputs, panel = piece / groups, column = panel * level_.panel_width;
    const auto [first, count] = groups_[piece % groups];
    alignas(64) float tile[max_tile];
    product.multiply(linear.panels + panel * product.panel_bytes(k),
                     words_ + first * product.row_words(k), count, k, tile);
    const int64_t width = std::min<int64_t>(level_.panel_width, linear.outputs - column);
    for (int m = 0; m < count; ++m) write(first + m, column, tile + m * level_.panel_width, width);
  });
}

void AttentionHalf::store(const Linear& linear, float* out, int64_t stride) {
  multiply(linear,
           [=, this, &linear](int64_t row, int64_t column, const float* values, int64_t width) {
             float* to = out + row * stride + column;
             std::memcpy(to, values, width * sizeof(float));
             if (linear.bias != nullptr) level_.add_scaled(linear.bias + column, 1.0f, to, width);
           });
}

// out += weight times all that the linear gives.
void AttentionHalf::add(const Linear& linear, float weight, float* out) {
  multiply(linear,
           [=, this, &linear](int64_t row, int64_t column, const float* values, int64_t width) {
             float* to = out + row * linear.outputs + column;
             level_.add_scaled(values, weight, to, width);
             if (linear.bias != nullptr) level_.add_scaled(linear.bias + column, weight, to, width);
           });
}

void AttentionHalf::linear(const Linear& linear, const float* x, int64_t rows, float* out) {
  group(rows, {&linear});
  pack_rows(linear, [=, &linear](int64_t row) { return x + row * linear.inputs; });
  store(linear, out, linear.outputs);
  run();
}

void AttentionHalf::norm(const Norm& norm, const float* x, int64_t rows, int64_t width,
                         float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    level_.rows.normalise(norm, x + r * width, width, out + r * width);
  }
}

void AttentionHalf::head(const Linear& linear, const Norm& norm, const float* x,
                         const int64_t* rows, int64_t count, float* out) {
  const int64_t width = linear.inputs;
  group(count, {&linear});
  normed_ = normed_scratch_.of<float>(count * width);
  pack_rows(linear, [=, this, &norm](int64_t row) {
    float* normed = normed_ + row * width;
    level_.rows.normalise(norm, x + rows[row] * width, width, normed);
    return normed;
  });
  store(linear, out, linear.outputs);
  run();
}

void AttentionHalf::argmax(const float* x, int64_t count, int64_t width, int64_t* best) {
  add_phase(count, [=, this](int64_t r) { best[r] = level_.rows.argmax(x + r * width, width); });
  run();
}

// A task a thread, each with scratch of its own.
void AttentionHalf::draw(const float* x, int64_t count, int64_t width, const DrawWish* wishes,
                         int64_t* tokens) {
  const size_t floats = (level_.rows.draw_scratch(width) + 15) / 16 * 16;
  const auto tasks = static_cast<uint32_t>(pool_.threads());
  float* scratch = job_scratch_.of<float>(floats * tasks);
  next_job_.store(0, std::memory_order_relaxed);
  phases_.push_back({tasks, [=, this](uint32_t task) {
                       const auto rows = static_cast<size_t>(count);
                       for (size_t r; (r = next_job_.fetch_add(1)) < rows;) {
                         tokens[r] = level_.rows.draw(x + r * width, width, wishes[r],
                                                      scratch + task * floats);
                       }
                     }});
  run();
}

// --- attention -------------------------------------------------------------------------------

void AttentionHalf::attend(const AttentionLayer& layer, const StepRows& step,
                           const LayerCache& cache, float* x) {
  const int64_t hidden = layer.qkv.inputs, q_size = layer.heads * layer.head_dim;
  qkv_stride_ = stride_of(layer.qkv);
  normed_ = normed_scratch_.of<float>(step.rows * hidden);
  qkv_ = qkv_scratch_.of<float>(step.rows * qkv_stride_);
  context_ = context_scratch_.of<float>(step.rows * q_size);
  group(step.rows, {&layer.qkv, &layer.out});
  list_jobs(layer, step, cache);

  pack_rows(layer.qkv, [=, this, &layer](int64_t row) {
    float* normed = normed_ + row * hidden;
    level_.rows.normalise(layer.norm, x + row * hidden, hidden, normed);
    return normed;
  });
  store(layer.qkv, qkv_, qkv_stride_);
  add_phase(step.rows, [=, this, &layer, &step, &cache](int64_t r) {
    if (r + 1 < step.rows) ask_for_slot(layer, cache, step.slots[r + 1]);
    float* row = qkv_ + r * qkv_stride_;
    finish_row(level_, layer, step.positions[r], row);
    write_cache(level_, layer, cache, row, step.slots[r]);
  });
  add_jobs(cache.type);
  pack_rows(layer.out, [=, this, &layer](int64_t row) {
    float* context = context_ + row * q_size;
    if (layer.gated) gate_output(level_, layer, qkv_ + row * qkv_stride_, context);
    return context;
  });
  add(layer.out, layer.residual, x);
  run();
}

// A sequence's single token is one job over all heads, which lie side by side in the cache, unless
// there are too few jobs for the threads; of several tokens a job takes some, and one head.
void AttentionHalf::list_jobs(const AttentionLayer& layer, const StepRows& step,
                              const LayerCache& cache) {
  const int64_t d = layer.head_dim, q_size = layer.heads * d;
  const int64_t group = layer.heads / layer.kv_heads, size = share_bytes(layer, cache);
  const bool few = step.sequences < 2 * pool_.threads() && pool_.threads() > 1;
  jobs_.clear();
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int64_t begin = step.row_starts[s], end = step.row_starts[s + 1];
    const bool single = end - begin == 1;
    const int64_t parts = ceil_div(end - begin, std::max(int64_t{1}, job_rows / group));
    const int64_t heads = single && !few ? layer.kv_heads : 1;
    // The longest first, so that threads end together.
    for (int64_t part = parts; part-- > 0;) {
      const int64_t first = begin + share(end - begin, part, parts);
      for (int64_t head = 0; head < layer.kv_heads; head += heads) {
        jobs_.push_back({
            .queries = qkv_ + first * qkv_stride_ + head * group * d,
            .query_stride = qkv_stride_,
            .out = context_ + first * q_size + head * group * d,
            .out_stride = q_size,
            .tokens = begin + share(end - begin, part + 1, parts) - first,
            .first_position = step.positions[first],
            .kv_heads = heads,
            .group = group,
            .head_dim = d,
            .cache = cache.data + head * size,
            .block_words = layer.kv_heads * size / 4,
            .share_words = size / 4,
            .blocks = step.blocks + s * step.blocks_a_sequence,
            .sinks = layer.sinks == nullptr ? nullptr : layer.sinks + head * group,
            .scale = layer.scale,
            .window = layer.window,
            .chunk = layer.chunk,
        });
      }
    }
  }
}

// A phase with a task a thread, each with scratch of its own: jobs differ in length, so it takes
// the next one when it is done.
void AttentionHalf::add_jobs(CacheType type) {
  size_t floats = 0;
  for (const AttentionJob& job : jobs_) {
    const int64_t rows = job.tokens * job.kv_heads * job.group;
    floats = std::max(floats, level_.rows.attend_scratch(rows, job.head_dim));
  }
  floats = (floats + 15) / 16 * 16;  // each on lines of its own
  const auto tasks = static_cast<uint32_t>(pool_.threads());
  float* scratch = job_scratch_.of<float>(floats * tasks);
  next_job_.store(0, std::memory_order_relaxed);
  phases_.push_back({tasks, [=, this](uint32_t task) {
                       const auto attend = level_.rows.attend[static_cast<int>(type)];
                       for (size_t i; (i = next_job_.fetch_add(1)) < jobs_.size();) {
                         const AttentionJob& next = jobs_[std::min(i + tasks, jobs_.size() - 1)];
                         attend(jobs_[i], next, scratch + task * floats);
                       }
                     }});
}

// --- gate ------------------------------------------------------------------------------------

void AttentionHalf::gate(const GateLayer& layer, const float* x, const int64_t* token_ids,
                         const int64_t* ways, int64_t rows, RowType type, void* hidden,
                         const Scatter& scatter) {
  const Router& router = layer.router;
  const int64_t width = layer.linear.inputs, k = router.top_k;
  const int64_t scratch = choose_scratch(router);
  const bool wide = type == RowType::f32;
  group(rows, {&layer.linear});
  normed_ = wide ? static_cast<float*>(hidden) : normed_scratch_.of<float>(rows * width);
  logits_stride_ = stride_of(layer.linear);
  logits_ = logits_scratch_.of<float>(rows * logits_stride_);
  choosing_ = choose_scratch_.of<float>(rows * scratch);
  chosen_ = chosen_scratch_.of<int64_t>(rows * k);
  chosen_weights_ = weights_scratch_.of<float>(rows * k);
  const auto normalise = [=, this, &layer](int64_t row) {
    float* normed = normed_ + row * width;
    level_.rows.normalise(layer.norm, x + row * width, width, normed);
    if (!wide) level_.narrow(normed, static_cast<uint16_t*>(hidden) + row * width, width);
    return normed;
  };
  if (router.score == RouterScore::constant) {
    add_phase(rows, normalise);
  } else {
    pack_rows(layer.linear, normalise);
    store(layer.linear, logits_, logits_stride_);
  }
  add_phase(rows, [=, this, &router](int64_t row) {
    choose_experts(level_, router, token_ids[row], logits_ + row * logits_stride_,
                   choosing_ + row * scratch, chosen_ + row * k, chosen_weights_ + row * k);
  });
  run();
  plan_scatter(layer.homes, chosen_, chosen_weights_, ways, rows, k, scatter);
}
