// Experts over messages with any ids and any floats, whose ids change while they are sorted: the
// counts of the sorting lie where the ids do. Each known id is counted once, and nothing outside of
// the messages is touched.
#include <vector>

#include "experts.h"
#include "input.h"

namespace {

// Packed once a level and format: their bytes don't matter.
struct Weights {
  std::vector<uint8_t> gate_up, down;
  ExpertWeights native(const Experts& experts) {
    const int64_t count = experts.shape().experts;
    gate_up.assign(count * experts.gate_up_bytes(), 0x3c);
    down.assign(count * experts.down_bytes(), 0x3c);
    return {gate_up.data(), down.data(), nullptr, nullptr};
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const Level* level = find_level(levels[input.between(0, num_levels - 1)]->name);
  if (level == nullptr) level = best_level();
  const auto format = static_cast<WeightFormat>(input.between(0, weight_formats - 1));
  const auto type = static_cast<RowType>(input.between(0, row_types - 1));
  const ExpertShape shape = {input.between(1, 9),
                             input.between(1, 70),
                             input.between(1, 40),
                             input.between(1, 5),
                             {ActivationKind::silu, __builtin_inff(), 1.0f, 0.0f},
                             static_cast<int32_t>(input.between(0, 1))};
  ThreadPool pool(1);
  Experts experts(*level, format, shape, pool);
  Weights weights;
  const ExpertWeights native = weights.native(experts);

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
      known += slot.ids[i] >= 0 && slot.ids[i] < shape.experts;
    }
  }
  experts.forward(native, slots.data(), static_cast<int>(slots.size()), type, counts.data());
  for (const int64_t count : counts) {
    require(count >= 0);
    known -= count;
  }
  require(known == 0);
  return 0;
}
