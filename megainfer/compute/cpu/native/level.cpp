#include "level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstring>

extern const Level level_generic;
#if defined(__x86_64__)
extern const Level level_avx2;
extern const Level level_avx512;
extern const Level level_avx512_vnni;
extern const Level level_avx512_bf16;
extern const Level level_amx;
#endif

const Level* const levels[] = {
    &level_generic,
#if defined(__x86_64__)
    &level_avx2,    &level_avx512, &level_avx512_vnni, &level_avx512_bf16, &level_amx,
#endif
};
const int num_levels = sizeof levels / sizeof levels[0];

namespace {

#if defined(__x86_64__)
// Whether there are tiles, and the kernel keeps them for this process: it wants to be asked, and
// may have reasons to refuse. Children that are forked have what was given.
bool has_tiles() {
  static const bool has = [] {
    constexpr unsigned features = 7, bfloat16 = 1u << 22, tiles = 1u << 24;  // of CPUID, in edx
    constexpr int ask_for_state = 0x1023, tile_data = 18;                     // of arch_prctl
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(features, 0, &a, &b, &c, &d) == 0) return false;
    if ((d & bfloat16) == 0 || (d & tiles) == 0) return false;
    return syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
  }();
  return has;
}
#endif

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
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (std::strcmp(name, "avx512_bf16") == 0) return bf16;
  if (std::strcmp(name, "amx") == 0) return bf16 && __builtin_cpu_supports("gfni") && has_tiles();
#endif
  return false;
}

// Whether avx512_bf16's products are slower than those of widened weights, the level's before it:
// Intel's cores begin one in two cycles, half as many multiplications as of floats.
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
  const int vnni = num_levels - 3, bf16 = num_levels - 2;
  const bool swapped = (rank == vnni || rank == bf16) && has_slow_bfloat16();
  return levels[swapped ? vnni + bf16 - rank : rank];
}

const Level* best_level() {
  int best = num_levels - 1;
  while (!runs_here(level_of_rank(best)->name)) --best;
  return level_of_rank(best);
}
