// How long to look at the slots before sleeping: only as long as it is likely to pay.
#pragma once

#include <cstdint>

class Spin {
 public:
  // limit: ns, 0 for never.
  explicit Spin(int64_t limit) : limit_(limit), usual_(limit) {}

  // For how many ns the next wait may look before it sleeps.
  int64_t budget() const {
    if (usual_ > limit_) return 0;
    const int64_t twice = 2 * usual_ + slack_ns;
    return twice < limit_ ? twice : limit_;
  }

  // A wait took so many ns. One of a second says no more than one that is clearly too long.
  void waited(int64_t ns) {
    const int64_t sample = ns < most_limits * limit_ ? ns : most_limits * limit_;
    usual_ += (sample - usual_) / 8;
  }

  // Something else wanted this core while we were looking: leave it alone for a while.
  void disturbed() { usual_ = most_limits * limit_; }

 private:
  static constexpr int64_t slack_ns = 20'000;
  static constexpr int64_t most_limits = 4;

  int64_t limit_;
  int64_t usual_;
};
