#include "attention_half.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "bfloat16.h"

namespace {

constexpr int max_tile = 32 * 32;  // floats: rows of a group times a panel's width, in any level
constexpr int most_group_rows = 32;

// Query rows that go through a key head's tiles together in prefill: enough to pay for bringing a
// tile into shape, few enough to keep what is known of them in the cache.
constexpr int64_t job_rows = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The `thread`-th of equal shares of 0..n.
int64_t share(int64_t n, int thread, int threads) { return n * thread / threads; }

}  // namespace

AttentionHalf::AttentionHalf(const Level& level, int threads)
    : level_(level), pool_(threads), thread_scratch_(threads) {}

// --- linear ----------------------------------------------------------------------------------

size_t AttentionHalf::linear_bytes(WeightFormat format, int64_t inputs, int64_t outputs) const {
  const Product& product = level_.products[static_cast<int>(format)];
  return ceil_div(outputs, level_.panel_width) * product.panel_bytes(inputs);
}

void AttentionHalf::pack(WeightFormat format, const float* weight, int64_t inputs, int64_t outputs,
                         uint8_t* panels) const {
  const Product& product = level_.products[static_cast<int>(format)];
  const int64_t half = level_.panel_width / 2;
  for (int64_t first = 0; first < outputs; first += 2 * half) {
    const int64_t there = outputs - first;
    const int64_t valid[2] = {std::min(half, there), std::clamp(there - half, int64_t{0}, half)};
    const float* left = weight + first * inputs;
    const float* channels[2] = {left, left + valid[0] * inputs};
    product.pack_panel(channels, valid, inputs, panels);
    panels += product.panel_bytes(inputs);
  }
}

// Floats between rows that hold whole panels.
int64_t AttentionHalf::stride_of(const Linear& linear) const {
  return ceil_div(linear.outputs, level_.panel_width) * level_.panel_width;
}

// Pack rows as the linear wants them, in as few groups as hold them, of about the same size;
// read(row, thread, buffer) gives a row, maybe put into the buffer.
template <class Read>
void AttentionHalf::pack_rows(const Linear& linear, int64_t rows, Read read) {
  const Product& product = level_.products[static_cast<int>(linear.format)];
  const int64_t k = linear.inputs, parts = ceil_div(rows, level_.max_rows);
  const size_t row_words = product.row_words(k);
  words_ = packed_.of<uint32_t>(rows * row_words);
  groups_.clear();
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t from = rows * p / parts, to = rows * (p + 1) / parts;
    groups_.push_back({from, static_cast<int>(to - from)});
  }
  buffer_floats_ = level_.max_rows * k;
  pool_.run([&](int thread) {
    float* buffer_of_group = buffer(thread);
    const float* read_rows[most_group_rows];
    for (int64_t g = share(parts, thread, pool_.threads());
         g < share(parts, thread + 1, pool_.threads()); ++g) {
      const auto [first, count] = groups_[g];
      for (int m = 0; m < count; ++m) read_rows[m] = read(first + m, buffer_of_group + m * k);
      product.pack_rows(read_rows, count, k, words_ + first * row_words);
    }
  });
}

// write(row, column, values, width) for all pieces of the packed rows' products, with no two
// threads at the same piece.
template <class Write>
void AttentionHalf::multiply(const Linear& linear, Write write) {
  const Product& product = level_.products[static_cast<int>(linear.format)];
  const size_t row_words = product.row_words(linear.inputs);
  const size_t panel_bytes = product.panel_bytes(linear.inputs);
  const auto groups = static_cast<int64_t>(groups_.size());
  const int64_t pieces = ceil_div(linear.outputs, level_.panel_width) * groups;
  pool_.run([&](int thread) {
    alignas(64) float tile[max_tile];
    const int64_t end = share(pieces, thread + 1, pool_.threads());
    for (int64_t piece = share(pieces, thread, pool_.threads()); piece < end; ++piece) {
      const int64_t panel = piece / groups, column = panel * level_.panel_width;
      const auto [first, count] = groups_[piece % groups];
      product.multiply(linear.panels + panel * panel_bytes, words_ + first * row_words, count,
                       linear.inputs, tile);
      const int64_t width = std::min<int64_t>(level_.panel_width, linear.outputs - column);
      for (int m = 0; m < count; ++m) {
        write(first + m, column, tile + m * level_.panel_width, width);
      }
    }
  });
}

void AttentionHalf::store(const Linear& linear, float* out, int64_t stride) {
  multiply(linear, [&](int64_t row, int64_t column, const float* values, int64_t width) {
    float* to = out + row * stride + column;
    std::memcpy(to, values, width * sizeof(float));
    if (linear.bias != nullptr) level_.add_scaled(linear.bias + column, 1.0f, to, width);
  });
}

void AttentionHalf::add(const Linear& linear, float* out) {
  multiply(linear, [&](int64_t row, int64_t column, const float* values, int64_t width) {
    float* to = out + row * linear.outputs + column;
    level_.add_scaled(values, 1.0f, to, width);
    if (linear.bias != nullptr) level_.add_scaled(linear.bias + column, 1.0f, to, width);
  });
}

void AttentionHalf::linear(const Linear& linear, const float* x, int64_t rows, float* out) {
  pack_rows(linear, rows, [&](int64_t row, float*) { return x + row * linear.inputs; });
  store(linear, out, linear.outputs);
}

void AttentionHalf::norm(const float* x, const float* weight, float eps, int64_t rows,
                         int64_t width, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    level_.rows.rms_norm(x + r * width, weight, eps, width, out + r * width);
  }
}

void AttentionHalf::head(const Linear& linear, const float* norm, float eps, const float* x,
                         const int64_t* rows, int64_t count, float* out) {
  pack_rows(linear, count, [&](int64_t row, float* buffer) {
    level_.rows.rms_norm(x + rows[row] * linear.inputs, norm, eps, linear.inputs, buffer);
    return buffer;
  });
  store(linear, out, linear.outputs);
}

// --- attention -------------------------------------------------------------------------------

void AttentionHalf::attend(const AttentionLayer& layer, const StepRows& step,
                           const LayerCache& cache, float* x) {
  const int64_t hidden = layer.qkv.inputs, q_size = layer.heads * layer.head_dim;
  pack_rows(layer.qkv, step.rows, [&](int64_t row, float* buffer) {
    level_.rows.rms_norm(x + row * hidden, layer.norm, layer.eps, hidden, buffer);
    return buffer;
  });
  qkv_stride_ = stride_of(layer.qkv);
  qkv_ = qkv_scratch_.of<float>(step.rows * qkv_stride_);
  store(layer.qkv, qkv_, qkv_stride_);
  finish_qkv(layer, step, cache);
  context_ = context_scratch_.of<float>(step.rows * q_size);
  run_jobs(jobs(layer, step, cache), cache.type);
  pack_rows(layer.out, step.rows, [&](int64_t row, float*) { return context_ + row * q_size; });
  add(layer.out, x);
}

// Queries, keys and values from their projections to what attention multiplies.
void AttentionHalf::finish_qkv(const AttentionLayer& layer, const StepRows& step,
                               const LayerCache& cache) {
  const int64_t q_size = layer.heads * layer.head_dim, kv_size = layer.kv_heads * layer.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(layer.head_dim));
  pool_.run([&](int thread) {
    for (int64_t r = share(step.rows, thread, pool_.threads());
         r < share(step.rows, thread + 1, pool_.threads()); ++r) {
      float* row = qkv_ + r * qkv_stride_;
      finish_row(layer, row, layer.rotary + step.positions[r] * 2 * layer.head_dim);
      write_cache(cache, row + q_size, cache.keys, step.slots[r], kv_size);
      write_cache(cache, row + q_size + kv_size, cache.values, step.slots[r], kv_size);
      for (int64_t i = 0; i < q_size; ++i) row[i] *= scale;
    }
  });
}

void AttentionHalf::finish_row(const AttentionLayer& layer, float* row, const float* rotary) const {
  const int64_t d = layer.head_dim, q_size = layer.heads * d, kv_size = layer.kv_heads * d;
  const auto rms_norm = [&](float* x, const float* weight, int64_t n) {
    level_.rows.rms_norm(x, weight, layer.eps, n, x);
  };
  const bool full = layer.q_norm != nullptr && !layer.norm_each_head;
  if (full) {
    rms_norm(row, layer.q_norm, q_size);
    rms_norm(row + q_size, layer.k_norm, kv_size);
  }
  if (layer.clip > 0.0f) {
    for (int64_t i = 0; i < q_size + 2 * kv_size; ++i) {
      row[i] = std::clamp(row[i], -layer.clip, layer.clip);
    }
  }
  for (int64_t head = 0; head < layer.heads + layer.kv_heads; ++head) {
    float* at = row + head * d;
    if (layer.q_norm != nullptr && !full) {
      rms_norm(at, head < layer.heads ? layer.q_norm : layer.k_norm, d);
    }
    level_.rows.rotate(at, rotary, rotary + d, d);
  }
}

void AttentionHalf::write_cache(const LayerCache& cache, const float* row, void* to, int64_t slot,
                                int64_t size) const {
  if (cache.type == RowType::f32) {
    std::memcpy(static_cast<float*>(to) + slot * size, row, size * sizeof(float));
  } else {
    level_.narrow(row, static_cast<uint16_t*>(to) + slot * size, size);
  }
}

// A sequence's single token is one job over all heads, which lie side by side in the cache, unless
// there are too few jobs for the threads; of several tokens a job takes some, and one head.
std::vector<AttentionJob> AttentionHalf::jobs(const AttentionLayer& layer, const StepRows& step,
                                              const LayerCache& cache) const {
  const int64_t d = layer.head_dim, q_size = layer.heads * d;
  const int64_t group = layer.heads / layer.kv_heads;
  const size_t element = cache.type == RowType::f32 ? sizeof(float) : sizeof(uint16_t);
  const bool few = step.sequences < 2 * pool_.threads() && pool_.threads() > 1;
  std::vector<AttentionJob> made;
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int64_t begin = step.row_starts[s], end = step.row_starts[s + 1];
    const bool single = end - begin == 1;
    const int64_t tokens = single ? 1 : std::max(int64_t{1}, job_rows / group);
    const int64_t heads = single && !few ? layer.kv_heads : 1;
    for (int64_t row = begin; row < end; row += tokens) {
      for (int64_t head = 0; head < layer.kv_heads; head += heads) {
        const size_t offset = head * d * element;
        made.push_back({
            .queries = qkv_ + row * qkv_stride_ + head * group * d,
            .query_stride = qkv_stride_,
            .out = context_ + row * q_size + head * group * d,
            .out_stride = q_size,
            .tokens = std::min(tokens, end - row),
            .first_position = step.positions[row],
            .kv_heads = heads,
            .group = group,
            .head_dim = d,
            .keys = static_cast<const uint8_t*>(cache.keys) + offset,
            .values = static_cast<const uint8_t*>(cache.values) + offset,
            .slot_stride = layer.kv_heads * d,
            .blocks = step.blocks + s * step.blocks_a_sequence,
            .block_size = cache.block_size,
        });
      }
    }
  }
  return made;
}

// Jobs differ in length, so each thread takes the next one when it is done.
void AttentionHalf::run_jobs(const std::vector<AttentionJob>& jobs, RowType type) {
  buffer_floats_ = 0;
  for (const AttentionJob& job : jobs) {
    const int64_t rows = job.tokens * job.kv_heads * job.group;
    buffer_floats_ = std::max(buffer_floats_, level_.rows.attend_scratch(rows, job.head_dim));
  }
  std::atomic<size_t> next{0};
  pool_.run([&](int thread) {
    float* scratch = buffer(thread);
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < jobs.size();) {
      level_.rows.attend[static_cast<int>(type)](jobs[i], scratch);
    }
  });
}

// --- gate ------------------------------------------------------------------------------------

void AttentionHalf::gate(const GateLayer& layer, const float* x, int64_t rows, RowType type,
                         void* hidden, const Scatter& scatter) {
  const int64_t width = layer.router.inputs;
  pack_rows(layer.router, rows, [&](int64_t row, float* buffer) -> const float* {
    float* narrow_to = type == RowType::f32 ? static_cast<float*>(hidden) + row * width : buffer;
    level_.rows.rms_norm(x + row * width, layer.norm, layer.eps, width, narrow_to);
    if (type == RowType::bf16) {
      level_.narrow(buffer, static_cast<uint16_t*>(hidden) + row * width, width);
    }
    return narrow_to;
  });
  logits_stride_ = stride_of(layer.router);
  logits_ = logits_scratch_.of<float>(rows * logits_stride_);
  store(layer.router, logits_, logits_stride_);
  chosen_ = choice_scratch_.of<int64_t>(rows * layer.top_k);
  chosen_weights_ = rows_scratch_.of<float>(rows * layer.top_k);
  pool_.run([&](int thread) {
    for (int64_t r = share(rows, thread, pool_.threads());
         r < share(rows, thread + 1, pool_.threads()); ++r) {
      choose(layer, r);
    }
  });
  plan(layer, rows, scatter);
}

// The best experts of a row, best first, the lower one where two are equal.
void AttentionHalf::choose(const GateLayer& layer, int64_t row) {
  const int64_t experts = layer.router.outputs, k = layer.top_k;
  float* scores = logits_ + row * logits_stride_;
  int64_t* ids = chosen_ + row * k;
  float* weights = chosen_weights_ + row * k;
  level_.rows.softmax(scores, experts);
  int64_t found = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (found == k && !(scores[e] > weights[k - 1])) continue;
    int64_t at = found < k ? found++ : k - 1;
    for (; at > 0 && scores[e] > weights[at - 1]; --at) {
      weights[at] = weights[at - 1];
      ids[at] = ids[at - 1];
    }
    weights[at] = scores[e];
    ids[at] = e;
  }
  float sum = 0.0f;
  for (int64_t i = 0; i < k; ++i) sum += weights[i];
  for (int64_t i = 0; i < k; ++i) {
    if (layer.normalise) weights[i] /= sum;
    if (layer.weight_type == RowType::bf16) weights[i] = from_bfloat16(to_bfloat16(weights[i]));
  }
}

void AttentionHalf::plan(const GateLayer& layer, int64_t rows, const Scatter& scatter) const {
  const int64_t k = layer.top_k;
  for (int64_t node = 0; node < layer.num_nodes; ++node) {
    int64_t* to_rows = scatter.rows + node * rows;
    int64_t count = 0;
    for (int64_t r = 0; r < rows; ++r) {
      int32_t* ids = scatter.ids + (node * rows + count) * k;
      float* weights = scatter.weights + (node * rows + count) * k;
      bool any = false;
      for (int64_t i = 0; i < k; ++i) {
        const int64_t expert = chosen_[r * k + i];
        const bool here = layer.nodes[expert] == node;
        ids[i] = here ? layer.local_ids[expert] : -1;
        weights[i] = here ? chosen_weights_[r * k + i] : 0.0f;
        any |= here;
      }
      if (any) to_rows[count++] = r;
    }
    scatter.counts[node] = count;
  }
}
