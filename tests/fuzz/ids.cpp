// Experts over messages with any ids and any floats, whose ids change while they are sorted: the
// counts of the sorting lie where the ids do. Each known id is counted once, and nothing outside of
// the messages is touched.
#include <vector>

#include "experts.h"
#include "input.h"

namespace {

// Every other expert is here, or all are; packed bytes don't matter.
class Weights {
 public:
  Weights(const Experts& experts, int64_t every)
      : gate_up_(experts.gate_up_bytes(), 0x3c), down_(experts.down_bytes(), 0x3c) {
    for (int64_t e = 0; e < experts.shape().experts; ++e) {
      gate_ups_.push_back(e % every == 0 ? gate_up_.data() : nullptr);
      downs_.push_back(e % every == 0 ? down_.data() : nullptr);
    }
  }

  ExpertWeights native() const { return {gate_ups_.data(), downs_.data(), nullptr, nullptr}; }

  bool has(int32_t id) const {
    return id >= 0 && id < static_cast<int64_t>(downs_.size()) && downs_[id] != nullptr;
  }

 private:
  std::vector<uint8_t> gate_up_, down_;
  std::vector<const uint8_t*> gate_ups_, downs_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const Level* level = find_level(levels[input.between(0, num_levels - 1)]->name);
  if (level == nullptr) level = best_level();
  const auto format = static_cast<WeightFormat>(input.between(0, weight_formats - 1));
  const auto type = static_cast<RowType>(input.between(0, static_cast<int32_t>(RowType::bf16)));
  const ExpertShape shape = {input.between(1, 9),
                             input.between(1, 70),
                             input.between(1, 40),
                             input.between(1, 5),
                             {ActivationKind::silu, __builtin_inff(), 1.0f, 0.0f},
                             static_cast<int32_t>(input.between(0, 1))};
  ThreadPool pool(1);
  Experts experts(*level, format, shape, pool);
  const Weights weights(experts, input.between(1, 2));

  const int64_t element = type == RowType::f32 ? 4 : 2;
  std::vector<int64_t> counts(shape.experts);
  auto* counted = reinterpret_cast<int32_t*>(counts.data());
  std::vector<std::vector<uint8_t>> memory;
  std::vector<Slot> slots(input.between(0, 3));
  int64_t known = 0;
  for (Slot& slot : slots) {
    slot.rows = input.between(0, 20);
    const int64_t choices = slot.rows * shape.top_k;
    const bool aliased = choices <= 2 * shape.experts && input.number<uint8_t>() % 2 == 0;
    const auto room = [&](int64_t bytes) {
      memory.emplace_back(bytes);
      input.bytes(memory.back().data(), memory.back().size());
      return memory.back().data();
    };
    slot.hidden = room(slot.rows * shape.hidden * element);
    slot.out = room(slot.rows * shape.hidden * element);
    slot.weights = reinterpret_cast<const float*>(room(choices * 4));
    auto* ids = aliased ? counted : reinterpret_cast<int32_t*>(room(choices * 4));
    for (int64_t i = 0; i < choices; ++i) {
      // Mostly near the borders of what there is.
      const auto byte = input.number<uint8_t>();
      ids[i] = byte < 200 ? byte % (shape.experts + 2) - 1 : input.number<int32_t>();
    }
    slot.ids = ids;
  }
  for (const Slot& slot : slots) {
    for (int64_t i = 0; i < slot.rows * shape.top_k; ++i) {
      known += weights.has(slot.ids[i]);
    }
  }
  experts.forward(weights.native(), slots.data(), static_cast<int>(slots.size()), type, counts.data());
  for (const int64_t count : counts) {
    require(count >= 0);
    known -= count;
  }
  require(known == 0);
  return 0;
}
