// Looking at memory before sleeping: how, and for how long, which is only as long as it is likely to pay.
#pragma once

#include <algorithm>
#include <cstdint>

#include "clock.h"

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `there()` has become true within `ns` of `started`.
template <class There>
bool look_for(There there, int64_t ns, int64_t started) {
  constexpr int looks_a_reading = 16;  // of the clock
  constexpr int64_t gap_ns = 50'000;   // between two readings: another process had the core
  int64_t last = started;
  do {
    for (int i = 0; i < looks_a_reading; ++i) {
      if (there()) return true;
      relax();
    }
    const int64_t now = now_ns();
    if (now - last > gap_ns) return there();
    last = now;
  } while (last - started < ns);
  return false;
}

class Spin {
 public:
  // limit: ns, 0 for never.
  explicit Spin(int64_t limit) : limit_(limit), usual_(limit / 2) {}

  // For how many ns the next wait may look before it sleeps.
  int64_t next_budget() {
    if (pause_ > 0) {
      --pause_;
      return 0;
    }
    return usual_ > limit_ ? 0 : std::min(2 * usual_ + slack_ns, limit_);
  }

  // A wait took so many ns. What is usual follows the median: of a step's many short waits and one
  // long one, only the short ones can be gained.
  void waited(int64_t ns) {
    const int64_t step = usual_ / 8;
    const int64_t next = ns > usual_ ? usual_ + step : usual_ - step;
    usual_ = std::clamp(next, slack_ns, 2 * limit_ + slack_ns);
  }

  // Looking has paid.
  void succeeded() { next_pause_ = 0; }

  // Looking was in vain, or something else wanted this core: maybe even the sender does. Leave it
  // alone, the longer the more often that happens in a row.
  void failed() {
    pause_ = next_pause_;
    next_pause_ = std::clamp(2 * next_pause_, 1, longest_pause);
  }

 private:
  static constexpr int64_t slack_ns = 20'000;
  static constexpr int longest_pause = 64;  // waits

  int64_t limit_;
  int64_t usual_;  // ns
  int pause_ = 0;  // waits that are not to spin
  int next_pause_ = 0;
};
