// Words of shared memory by which the ranks of a node tell each other how far they are.
#pragma once

#include <cstdint>

#include "spin.h"

// A count that one rank alone stores, and how many others sleep until it is higher.
struct Word {
  uint32_t number;
  uint32_t sleepers;
};

// All that this rank has written so far can be read by whoever finds the number.
void say(Word* word, uint32_t number);

// One rank's way to wait; not for two threads at once.
class Waiter {
 public:
  explicit Waiter(int64_t spin_ns) : spin_(spin_ns) {}

  // Whether the word has reached the number, or does within `timeout_ns`.
  bool wait(Word* word, uint32_t number, int64_t timeout_ns);

 private:
  Spin spin_;
};
