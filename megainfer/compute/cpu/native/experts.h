// The routed experts of one node: y = sum over a row's choices of weight * down(inner(gate, up)).
#pragma once

#include <cstdint>
#include <vector>

#include "level.h"
#include "scratch.h"
#include "thread_pool.h"

// weight_on_input: a choice's weight multiplies what the expert sees instead of what it gives.
struct ExpertShape {
  int64_t experts, hidden, intermediate, top_k;
  Activation activation;
  int32_t weight_on_input;
};

// A layer's experts, [experts]: where each one's packed weights are, null of one that isn't here, which
// no choice may be sent to; biases, null where there are none, as `pack_gate_up_bias` has them, and [D].
struct ExpertWeights {
  const uint8_t *const *gate_up, *const *down;
  const float *const *gate_up_bias, *const *down_bias;
};

// One message and the place of its answer, `rows` rows each: hidden and out [rows, D] of a RowType,
// ids (an expert, or anything else for "not here") and weights [rows, K].
struct Slot {
  const void* hidden;
  const int32_t* ids;
  const float* weights;
  void* out;
  int64_t rows;
};

// Not for two threads at once.
class Experts {
 public:
  Experts(const Level& level, WeightFormat format, const ExpertShape& shape, ThreadPool& pool);

  const ExpertShape& shape() const { return shape_; }

  // Bytes of one expert's packed weights.
  size_t gate_up_bytes() const { return gate_panels_ * gate_panel_bytes_; }
  size_t down_bytes() const { return down_panels_ * down_panel_bytes_; }

  // Pack one expert: gate_up [2F, D], gate first, and down [D, F]. False as `Product::pack_panel`.
  bool pack_gate_up(const float* gate_up, uint8_t* packed) const;
  bool pack_down(const float* down, uint8_t* packed) const;

  // One expert's gate and up biases, [2F], gate first, as products have them: of each panel gate's,
  // then up's, filled up with zeros; gate_up_channels() in all.
  void pack_gate_up_bias(const float* bias, float* packed) const;
  int64_t gate_up_channels() const { return gate_panels_ * level_.panel_width; }

  // counts [experts]: choices of each.
  void forward(const ExpertWeights& weights, const Slot* slots, int num_slots, RowType type,
               int64_t* counts);

 private:
  struct Choice {
    int64_t row;
    float weight;
  };
  // Choices `first` to `first + count` of the sorted list, all of one expert; packed together.
  struct Group {
    int64_t first;
    int count;
  };
  // Of one expert that has choices: its groups.
  struct Active {
    int64_t expert;
    int64_t choices, first_group, last_group;
  };

  // One of `parts` about equal shares of a phase's work, which make its tasks.
  struct Part {
    int64_t index, parts;
    int64_t begin(int64_t n) const { return n * index / parts; }
    int64_t end(int64_t n) const { return n * (index + 1) / parts; }
  };

  void lay_out(const Slot* slots, int num_slots, RowType type);
  void read_ids(const ExpertWeights& weights, const Slot* slots, int num_slots);
  void sort(const ExpertWeights& weights, const Slot* slots, int num_slots, int64_t* counts);
  void group(const int64_t* counts);
  void read_rows(Part part, RowType type);
  void pack_inputs(Part part);
  void multiply_gate_up(Part part, const ExpertWeights& weights);
  void activate(const Group& group, const float* bias, const float* tile, float* out) const;
  void pack_inner(Part part);
  void multiply_down(Part part, const ExpertWeights& weights);
  void write_rows(Part part);

  template <class Visit>
  void for_panels(Part part, int64_t panels, Visit visit) const;

  const Level& level_;
  const Product& product_;
  const ExpertShape shape_;
  const bool plain_;  // silu(gate) * up
  int64_t gate_panels_, down_panels_;
  size_t gate_panel_bytes_, down_panel_bytes_;
  int64_t inner_stride_;
  ThreadPool& pool_;

  int64_t rows_ = 0;
  std::vector<const void*> hidden_;   // by row
  std::vector<void*> out_;            // by row
  std::vector<const float*> inputs_;  // by row, as floats
  std::vector<float*> sums_;          // by row, as floats
  std::vector<int32_t> ids_;          // by row, K each; -1 for "not here"
  std::vector<Choice> choices_;
  std::vector<Group> groups_;
  std::vector<Active> active_;
  Scratch wide_inputs_, wide_sums_, packed_inputs_, inner_, packed_inner_;
  float* inner_values_ = nullptr;
  uint32_t *input_words_ = nullptr, *inner_words_ = nullptr;
};
