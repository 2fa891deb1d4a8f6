#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

constexpr size_t line_bytes = 64;
constexpr int max_tile = 32 * 32;  // floats: rows of a group times a panel's width, in any level

// What reading a panel costs, in rows that are multiplied with it: decides only how work is split.
constexpr int64_t panel_cost = 4;

constexpr int64_t parts_a_thread = 2;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_plain(const Activation& activation) {
  return activation.kind == ActivationKind::silu && std::isinf(activation.limit) &&
         activation.alpha == 1.0f && activation.up_offset == 0.0f;
}

}  // namespace

Experts::Experts(const Level& level, WeightFormat format, const ExpertShape& shape,
                 ThreadPool& pool)
    : level_(level),
      product_(level.products[static_cast<int>(format)]),
      shape_(shape),
      plain_(is_plain(shape.activation) && !shape.weight_on_input),
      gate_panels_(ceil_div(shape.intermediate, level.panel_width / 2)),
      down_panels_(ceil_div(shape.hidden, level.panel_width)),
      gate_panel_bytes_(product_.panel_bytes(shape.hidden)),
      down_panel_bytes_(product_.panel_bytes(shape.intermediate)),
      inner_stride_(gate_panels_ * level.panel_width / 2),
      pool_(pool) {}

bool Experts::pack_gate_up(const float* gate_up, uint8_t* packed) const {
  const int64_t half = level_.panel_width / 2;
  bool kept = true;
  for (int64_t p = 0; p < gate_panels_; ++p) {
    const int64_t first = p * half, there = std::min(half, shape_.intermediate - first);
    const float* gate = gate_up + first * shape_.hidden;
    const float* channels[2] = {gate, gate + shape_.intermediate * shape_.hidden};
    const int64_t valid[2] = {there, there};
    kept &= product_.pack_panel(channels, valid, shape_.hidden, packed + p * gate_panel_bytes_);
  }
  return kept;
}

bool Experts::pack_down(const float* down, uint8_t* packed) const {
  const int64_t half = level_.panel_width / 2;
  bool kept = true;
  for (int64_t p = 0; p < down_panels_; ++p) {
    const int64_t first = p * 2 * half, there = shape_.hidden - first;
    const float* left = down + first * shape_.intermediate;
    const int64_t valid[2] = {std::min(half, there), std::clamp(there - half, int64_t{0}, half)};
    const float* channels[2] = {left, left + valid[0] * shape_.intermediate};
    kept &=
        product_.pack_panel(channels, valid, shape_.intermediate, packed + p * down_panel_bytes_);
  }
  return kept;
}

void Experts::pack_gate_up_bias(const float* bias, float* packed) const {
  const int64_t half = level_.panel_width / 2;
  std::fill(packed, packed + gate_up_channels(), 0.0f);
  for (int64_t p = 0; p < gate_panels_; ++p) {
    const float* gate = bias + p * half;
    const int64_t there = std::min(half, shape_.intermediate - p * half);
    std::copy(gate, gate + there, packed + 2 * p * half);
    const float* up = gate + shape_.intermediate;
    std::copy(up, up + there, packed + (2 * p + 1) * half);
  }
}

void Experts::forward(const ExpertWeights& weights, const Slot* slots, int num_slots, RowType type,
                      int64_t* counts) {
  lay_out(slots, num_slots, type);
  sort(weights, slots, num_slots, counts);
  group(counts);
  const size_t choices = choices_.size();
  input_words_ = packed_inputs_.of<uint32_t>(choices * product_.row_words(shape_.hidden));
  inner_values_ = inner_.of<float>(choices * inner_stride_);
  inner_words_ = packed_inner_.of<uint32_t>(choices * product_.row_words(shape_.intermediate));
  // One thread reads weights in one go; several share smaller parts, so that one that was held up
  // leaves the rest to the others.
  const int64_t parts = pool_.threads() == 1 ? 1 : parts_a_thread * pool_.threads();
  const auto phase = [&](auto work) {
    return ThreadPool::Phase{static_cast<uint32_t>(parts),
                             [=](uint32_t task) { work(Part{task, parts}); }};
  };
  std::vector<ThreadPool::Phase> phases = {
      phase([=, this](Part part) { read_rows(part, type); }),
      phase([=, this](Part part) { pack_inputs(part); }),
      phase([&, this](Part part) { multiply_gate_up(part, weights); }),
      phase([=, this](Part part) { pack_inner(part); }),
      phase([&, this](Part part) { multiply_down(part, weights); }),
  };
  if (type == RowType::bf16) phases.push_back(phase([=, this](Part part) { write_rows(part); }));
  pool_.run(phases);
}

// Where each row is read, summed up and written; floats are read and summed up in their slots.
void Experts::lay_out(const Slot* slots, int num_slots, RowType type) {
  hidden_.clear();
  out_.clear();
  const size_t row_bytes = shape_.hidden * (type == RowType::f32 ? sizeof(float) : 2);
  for (int s = 0; s < num_slots; ++s) {
    for (int64_t r = 0; r < slots[s].rows; ++r) {
      hidden_.push_back(static_cast<const uint8_t*>(slots[s].hidden) + r * row_bytes);
      out_.push_back(static_cast<uint8_t*>(slots[s].out) + r * row_bytes);
    }
  }
  rows_ = static_cast<int64_t>(hidden_.size());
  inputs_.resize(rows_);
  sums_.resize(rows_);
  const bool wide = type == RowType::f32;
  float* inputs = wide ? nullptr : wide_inputs_.of<float>(rows_ * shape_.hidden);
  float* sums = wide ? nullptr : wide_sums_.of<float>(rows_ * shape_.hidden);
  for (int64_t r = 0; r < rows_; ++r) {
    inputs_[r] = wide ? static_cast<const float*>(hidden_[r]) : inputs + r * shape_.hidden;
    sums_[r] = wide ? static_cast<float*>(out_[r]) : sums + r * shape_.hidden;
  }
}

// Each choice's expert, or -1. Slots are memory that their sender can write at any time: what was
// checked once must not be read again.
void Experts::read_ids(const ExpertWeights& weights, const Slot* slots, int num_slots) {
  const auto here = [&](int32_t id) {
    return id >= 0 && id < shape_.experts && weights.gate_up[id] != nullptr;
  };
  ids_.resize(rows_ * shape_.top_k);
  int32_t* to = ids_.data();
  for (int s = 0; s < num_slots; ++s) {
    for (int64_t i = 0; i < slots[s].rows * shape_.top_k; ++i) {
      const int32_t id = __atomic_load_n(slots[s].ids + i, __ATOMIC_RELAXED);
      *to++ = here(id) ? id : -1;
    }
  }
}

// A counting sort of all choices by expert, in row order within one: the order in which a row's
// experts are added depends on nothing else.
void Experts::sort(const ExpertWeights& weights, const Slot* slots, int num_slots,
                   int64_t* counts) {
  read_ids(weights, slots, num_slots);
  std::fill(counts, counts + shape_.experts, 0);
  for (const int32_t id : ids_) {
    if (id >= 0) ++counts[id];
  }
  std::vector<int64_t> next(shape_.experts);
  int64_t total = 0;
  for (int64_t e = 0; e < shape_.experts; ++e) {
    next[e] = total;
    total += counts[e];
  }
  choices_.resize(total);
  const int32_t* ids = ids_.data();
  int64_t row = 0;
  for (int s = 0; s < num_slots; ++s) {
    for (int64_t r = 0; r < slots[s].rows; ++r, ++row) {
      for (int64_t i = r * shape_.top_k; i < (r + 1) * shape_.top_k; ++i) {
        const int32_t id = *ids++;
        if (id >= 0) choices_[next[id]++] = {row, slots[s].weights[i]};
      }
    }
  }
}

// Each expert's choices in as few groups as hold them, of about the same size.
void Experts::group(const int64_t* counts) {
  groups_.clear();
  active_.clear();
  int64_t first = 0;
  for (int64_t e = 0; e < shape_.experts; ++e) {
    if (counts[e] == 0) continue;
    const int64_t parts = ceil_div(counts[e], product_.max_rows);
    const auto begin = static_cast<int64_t>(groups_.size());
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t from = counts[e] * p / parts, to = counts[e] * (p + 1) / parts;
      groups_.push_back({first + from, static_cast<int>(to - from)});
    }
    active_.push_back({e, counts[e], begin, begin + parts});
    first += counts[e];
  }
}

void Experts::read_rows(Part part, RowType type) {
  for (int64_t r = part.begin(rows_); r < part.end(rows_); ++r) {
    if (type == RowType::bf16) {
      level_.widen(static_cast<const uint16_t*>(hidden_[r]), const_cast<float*>(inputs_[r]),
                   shape_.hidden);
    }
    std::memset(sums_[r], 0, shape_.hidden * sizeof(float));
  }
}

void Experts::pack_inputs(Part part) {
  const auto groups = static_cast<int64_t>(groups_.size());
  const size_t row_words = product_.row_words(shape_.hidden);
  const float* rows[max_tile];
  for (int64_t g = part.begin(groups); g < part.end(groups); ++g) {
    const auto [first, count] = groups_[g];
    for (int m = 0; m < count; ++m) rows[m] = inputs_[choices_[first + m].row];
    product_.pack_rows(rows, count, shape_.hidden, input_words_ + first * row_words);
  }
}

void Experts::pack_inner(Part part) {
  const auto groups = static_cast<int64_t>(groups_.size());
  const size_t row_words = product_.row_words(shape_.intermediate);
  const float* rows[max_tile];
  for (int64_t g = part.begin(groups); g < part.end(groups); ++g) {
    const auto [first, count] = groups_[g];
    for (int m = 0; m < count; ++m) rows[m] = inner_values_ + (first + m) * inner_stride_;
    product_.pack_rows(rows, count, shape_.intermediate, inner_words_ + first * row_words);
  }
}

// visit(active expert, panel) for this part of all experts' panels.
template <class Visit>
void Experts::for_panels(Part part, int64_t panels, Visit visit) const {
  int64_t total = 0;
  for (const Active& a : active_) total += (a.choices + panel_cost) * panels;
  const int64_t from = part.begin(total), to = part.end(total);
  int64_t start = 0;
  for (const Active& a : active_) {
    const int64_t cost = a.choices + panel_cost;
    const auto at = [&](int64_t position) {
      return std::clamp(ceil_div(position - start, cost), int64_t{0}, panels);
    };
    for (int64_t p = at(from); p < at(to); ++p) visit(a, p);
    start += cost * panels;
  }
}

// What goes into down, of the products of one panel.
void Experts::activate(const Group& group, const float* bias, const float* tile,
                       float* out) const {
  if (plain_ && bias == nullptr) return level_.swiglu(tile, group.count, out, inner_stride_);
  float weights[max_tile];
  for (int m = 0; m < group.count; ++m) weights[m] = choices_[group.first + m].weight;
  level_.activate(shape_.activation, shape_.weight_on_input ? weights : nullptr, bias, tile,
                  group.count, out, inner_stride_);
}

void Experts::multiply_gate_up(Part part, const ExpertWeights& weights) {
  alignas(line_bytes) float tile[max_tile];
  const size_t row_words = product_.row_words(shape_.hidden);
  for_panels(part, gate_panels_, [&](const Active& a, int64_t p) {
    const uint8_t* panel = weights.gate_up[a.expert] + p * gate_panel_bytes_;
    const float* bias = weights.gate_up_bias == nullptr
                            ? nullptr
                            : weights.gate_up_bias[a.expert] + p * level_.panel_width;
    for (int64_t g = a.first_group; g < a.last_group; ++g) {
      const auto [first, count] = groups_[g];
      product_.multiply(panel, input_words_ + first * row_words, count, shape_.hidden, tile);
      float* out = inner_values_ + first * inner_stride_ + p * level_.panel_width / 2;
      activate(groups_[g], bias, tile, out);
    }
  });
}

void Experts::multiply_down(Part part, const ExpertWeights& weights) {
  alignas(line_bytes) float tile[max_tile];
  const size_t row_words = product_.row_words(shape_.intermediate);
  // By panels of all experts rather than by experts: a column's sum belongs to one part.
  for (const Active& a : active_) {
    for (int64_t p = part.begin(down_panels_); p < part.end(down_panels_); ++p) {
      const uint8_t* panel = weights.down[a.expert] + p * down_panel_bytes_;
      const int64_t column = p * level_.panel_width;
      const int64_t width = std::min<int64_t>(level_.panel_width, shape_.hidden - column);
      for (int64_t g = a.first_group; g < a.last_group; ++g) {
        const auto [first, count] = groups_[g];
        product_.multiply(panel, inner_words_ + first * row_words, count, shape_.intermediate,
                          tile);
        for (int m = 0; m < count; ++m) {
          const Choice& choice = choices_[first + m];
          const float weight = shape_.weight_on_input ? 1.0f : choice.weight;
          float* sums = sums_[choice.row] + column;
          level_.add_scaled(tile + m * level_.panel_width, weight, sums, width);
          if (weights.down_bias != nullptr) {
            const float* bias = weights.down_bias[a.expert] + column;
            level_.add_scaled(bias, weight, sums, width);
          }
        }
      }
    }
  }
}

void Experts::write_rows(Part part) {
  for (int64_t r = part.begin(rows_); r < part.end(rows_); ++r) {
    level_.narrow(sums_[r], static_cast<uint16_t*>(out_[r]), shape_.hidden);
  }
}
