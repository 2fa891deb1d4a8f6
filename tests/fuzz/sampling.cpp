// Drawing from any floats by any wish, at every level that runs here: a token that has a logit, or
// -1; and memory is that of the row and its scratch.
#include <cmath>
#include <vector>

#include "input.h"
#include "level.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const Level* level = find_level(levels[input.between(0, num_levels - 1)]->name);
  if (level == nullptr) level = best_level();
  DrawWish wish;
  wish.temperature = input.number<float>();
  wish.top_p = input.number<float>();
  wish.min_p = input.number<float>();
  wish.uniform = input.between(0, 999) / 1000.0;
  wish.top_k = input.number<int16_t>();
  const bool tame = input.number<uint8_t>() % 2 == 0;  // what the sampler would pass
  const auto width = static_cast<int64_t>(input.between(1, 400));
  if (tame) {
    wish.temperature = std::isnormal(wish.temperature) ? std::fabs(wish.temperature) : 1.0f;
    wish.top_p = wish.top_p > 0 && wish.top_p <= 1 ? wish.top_p : 1.0;
    wish.min_p = wish.min_p > 0 && wish.min_p <= 1 ? wish.min_p : 0.0;
    wish.top_k = wish.top_k > 0 && wish.top_k < width ? wish.top_k : width;
  }
  // A few floats, again and again: rows with ties, and with one odd value.
  std::vector<float> seen(1 + input.left() / sizeof(float) % 64);
  input.bytes(seen.data(), seen.size() * sizeof(float));
  std::vector<float> logits(width);
  for (int64_t i = 0; i < width; ++i) logits[i] = seen[i % seen.size()];

  bool usable = true, any = false;
  for (const float logit : logits) {
    usable &= !std::isnan(logit) && !(std::isinf(logit) && logit > 0);
    any |= std::isfinite(logit);
  }
  std::vector<float> scratch(level->rows.draw_scratch(width));
  const int64_t token = level->rows.draw(logits.data(), width, wish, scratch.data());
  require(token >= -1 && token < width);
  if (tame) require((token >= 0) == (usable && any));
  if (token >= 0) require(std::isfinite(logits[token]));

  const int64_t best = level->rows.argmax(logits.data(), width);
  require(best >= -1 && best < width);
  return 0;
}
