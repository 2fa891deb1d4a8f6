// What Python calls: plain C, pointers to memory that the caller owns, no exception leaves.
#include "experts.h"
#include "level.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// The i-th level that this machine can run, worst first; null beyond the last.
EXPORT const char* megainfer_level(int i) {
  for (int l = 0; l < num_levels; ++l) {
    if (find_level(levels[l]->name) != nullptr && i-- == 0) return levels[l]->name;
  }
  return nullptr;
}

// Null when this machine can't run the level.
EXPORT Experts* megainfer_experts_new(const char* level, int32_t format, const ExpertShape* shape,
                                      int32_t threads) {
  const Level* chosen = find_level(level);
  if (chosen == nullptr) return nullptr;
  return new Experts(*chosen, static_cast<WeightFormat>(format), *shape, threads);
}

EXPORT void megainfer_experts_delete(Experts* experts) { delete experts; }

EXPORT int64_t megainfer_experts_gate_up_bytes(const Experts* experts) {
  return static_cast<int64_t>(experts->gate_up_bytes());
}

EXPORT int64_t megainfer_experts_down_bytes(const Experts* experts) {
  return static_cast<int64_t>(experts->down_bytes());
}

EXPORT void megainfer_experts_pack(const Experts* experts, const float* gate_up, const float* down,
                                   uint8_t* packed_gate_up, uint8_t* packed_down) {
  experts->pack_gate_up(gate_up, packed_gate_up);
  experts->pack_down(down, packed_down);
}

EXPORT void megainfer_experts_forward(Experts* experts, const uint8_t* gate_up, const uint8_t* down,
                                      const Slot* slots, int32_t num_slots, int32_t row_type,
                                      int64_t* counts) {
  experts->forward(gate_up, down, slots, num_slots, static_cast<RowType>(row_type), counts);
}

// For benchmarks: the sum of n floats, with the best level.
EXPORT float megainfer_read(const float* x, int64_t n) { return best_level()->read_all(x, n); }
