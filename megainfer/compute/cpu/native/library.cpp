// What Python calls: plain C, pointers to memory that the caller owns, no exception leaves.
#include "attention_half.h"
#include "delta_net.h"
#include "experts.h"
#include "latent_half.h"
#include "layer_chain.h"
#include "level.h"
#include "thread_pool.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// The i-th level that this machine can run, worst first; null beyond the last.
EXPORT const char* megainfer_level(int i) {
  for (int rank = 0; const Level* level = level_of_rank(rank); ++rank) {
    if (find_level(level->name) != nullptr && i-- == 0) return level->name;
  }
  return nullptr;
}

EXPORT ThreadPool* megainfer_pool_new(int32_t threads) { return new ThreadPool(threads); }

EXPORT void megainfer_pool_delete(ThreadPool* pool) { delete pool; }

// Null when this machine can't run the level.
EXPORT Experts* megainfer_experts_new(const char* level, int32_t format, const ExpertShape* shape,
                                      ThreadPool* pool) {
  const Level* chosen = find_level(level);
  if (chosen == nullptr) return nullptr;
  return new Experts(*chosen, static_cast<WeightFormat>(format), *shape, *pool);
}

EXPORT void megainfer_experts_delete(Experts* experts) { delete experts; }

EXPORT int64_t megainfer_experts_gate_up_bytes(const Experts* experts) {
  return static_cast<int64_t>(experts->gate_up_bytes());
}

EXPORT int64_t megainfer_experts_down_bytes(const Experts* experts) {
  return static_cast<int64_t>(experts->down_bytes());
}

// 0 where a weight isn't finite and its format has nothing like it.
EXPORT int32_t megainfer_experts_pack(const Experts* experts, const float* gate_up,
                                      const float* down, uint8_t* packed_gate_up,
                                      uint8_t* packed_down) {
  return experts->pack_gate_up(gate_up, packed_gate_up) && experts->pack_down(down, packed_down);
}

EXPORT int64_t megainfer_experts_gate_up_channels(const Experts* experts) {
  return experts->gate_up_channels();
}

EXPORT void megainfer_experts_pack_gate_up_bias(const Experts* experts, const float* bias,
                                                float* packed) {
  experts->pack_gate_up_bias(bias, packed);
}

EXPORT void megainfer_experts_forward(Experts* experts, const ExpertWeights* weights,
                                      const Slot* slots, int32_t num_slots, int32_t row_type,
                                      int64_t* counts) {
  experts->forward(*weights, slots, num_slots, static_cast<RowType>(row_type), counts);
}

// For benchmarks: the sum of n floats, with the best level.
EXPORT float megainfer_read(const float* x, int64_t n) { return best_level()->read_all(x, n); }

// Null when this machine can't run the level.
EXPORT AttentionHalf* megainfer_half_new(const char* level, ThreadPool* pool) {
  const Level* chosen = find_level(level);
  return chosen == nullptr ? nullptr : new AttentionHalf(*chosen, *pool);
}

EXPORT void megainfer_half_delete(AttentionHalf* half) { delete half; }

EXPORT int64_t megainfer_half_linear_bytes(const AttentionHalf* half, int32_t format,
                                           int64_t inputs, int64_t outputs) {
  const auto chosen = static_cast<WeightFormat>(format);
  return static_cast<int64_t>(half->linear_bytes(chosen, inputs, outputs));
}

// As `megainfer_experts_pack`.
EXPORT int32_t megainfer_half_pack(const AttentionHalf* half, int32_t format, const float* weight,
                                   int64_t inputs, int64_t outputs, uint8_t* panels) {
  return half->pack(static_cast<WeightFormat>(format), weight, inputs, outputs, panels);
}

EXPORT void megainfer_half_linear(AttentionHalf* half, const Linear* linear, const float* x,
                                  int64_t rows, float* out) {
  half->linear(*linear, x, rows, out);
}

EXPORT void megainfer_half_norm(AttentionHalf* half, const Norm* norm, const float* x, int64_t rows,
                                int64_t width, float* out) {
  half->norm(*norm, x, rows, width, out);
}

EXPORT void megainfer_half_sigmoid(AttentionHalf* half, float* x, int64_t count) {
  half->sigmoid(x, count);
}

EXPORT void megainfer_half_attend(AttentionHalf* half, const AttentionLayer* layer,
                                  const StepRows* step, const LayerCache* cache, float* x) {
  half->attend(*layer, *step, *cache, x);
}

EXPORT void megainfer_half_gate(AttentionHalf* half, const GateLayer* layer, const float* x,
                                const int64_t* token_ids, const int64_t* ways, int64_t rows,
                                int32_t row_type, void* hidden, const Scatter* scatter) {
  const auto type = static_cast<RowType>(row_type);
  half->gate(*layer, x, token_ids, ways, rows, type, hidden, *scatter);
}

EXPORT void megainfer_half_head(AttentionHalf* half, const Linear* linear, const Norm* norm,
                                const float* x, const int64_t* rows, int64_t count, float* out) {
  half->head(*linear, *norm, x, rows, count, out);
}

EXPORT void megainfer_half_argmax(AttentionHalf* half, const float* x, int64_t count, int64_t width,
                                  int64_t* best) {
  half->argmax(x, count, width, best);
}

EXPORT void megainfer_half_draw(AttentionHalf* half, const float* x, int64_t count, int64_t width,
                                const DrawWish* wishes, int64_t* tokens) {
  half->draw(x, count, width, wishes, tokens);
}

EXPORT LatentHalf* megainfer_latent_new(AttentionHalf* half, ThreadPool* pool) {
  return new LatentHalf(*half, *pool);
}

EXPORT void megainfer_latent_delete(LatentHalf* latent) { delete latent; }

EXPORT void megainfer_latent_attend(LatentHalf* latent, const LatentLayer* layer,
                                    const StepRows* step, const LayerCache* cache, float* x) {
  latent->attend(*layer, *step, *cache, x);
}

// Null when this machine can't run the level.
EXPORT DeltaNet* megainfer_delta_new(const char* level, ThreadPool* pool) {
  const Level* chosen = find_level(level);
  return chosen == nullptr ? nullptr : new DeltaNet(*chosen, *pool);
}

EXPORT void megainfer_delta_delete(DeltaNet* net) { delete net; }

EXPORT void megainfer_delta_recur(DeltaNet* net, const DeltaNetLayer* layer,
                                  const DeltaNetStep* step, const float* input, const float* rates,
                                  const DeltaNetState* state, float* out) {
  net->recur(*layer, *step, input, rates, *state, out);
}

EXPORT LayerChain* megainfer_chain_new(AttentionHalf* half, Experts* experts) {
  return new LayerChain(*half, *experts);
}

EXPORT void megainfer_chain_delete(LayerChain* chain) { delete chain; }

EXPORT void megainfer_chain_run(LayerChain* chain, const ChainLayer* layers, int64_t count,
                                const StepRows* step, int32_t row_type, float* x, double* times,
                                double* totals) {
  chain->run(layers, count, *step, static_cast<RowType>(row_type), x, times, totals);
}
