#include "level.h"

#include <cstring>

extern const Level level_generic;
#if defined(__x86_64__)
extern const Level level_avx2;
extern const Level level_avx512;
extern const Level level_avx512_vnni;
extern const Level level_avx512_bf16;
#endif

const Level* const levels[] = {
    &level_generic,
#if defined(__x86_64__)
    &level_avx2,    &level_avx512, &level_avx512_vnni, &level_avx512_bf16,
#endif
};
const int num_levels = sizeof levels / sizeof levels[0];

namespace {

bool runs_here(const char* name) {
  if (std::strcmp(name, "generic") == 0) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (std::strcmp(name, "avx2") == 0) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (std::strcmp(name, "avx512") == 0) return avx512;
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (std::strcmp(name, "avx512_vnni") == 0) return vnni;
  if (std::strcmp(name, "avx512_bf16") == 0) return vnni && __builtin_cpu_supports("avx512bf16");
#endif
  return false;
}

// Whether products of bf16, the last level's, are slower than floats' of widened weights, the one's
// before it: Intel's cores begin one in two cycles, half as many multiplications as of floats.
bool has_slow_bfloat16() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace

const Level* find_level(const char* name) {
  for (const Level* level : levels) {
    if (std::strcmp(level->name, name) == 0) return runs_here(name) ? level : nullptr;
  }
  return nullptr;
}

const Level* level_of_rank(int rank) {
  if (rank < 0 || rank >= num_levels) return nullptr;
  const int last = num_levels - 1;
  const bool swapped = rank >= last - 1 && has_slow_bfloat16();
  return levels[swapped ? 2 * last - 1 - rank : rank];
}

const Level* best_level() {
  int best = num_levels - 1;
  while (!runs_here(level_of_rank(best)->name)) --best;
  return level_of_rank(best);
}
