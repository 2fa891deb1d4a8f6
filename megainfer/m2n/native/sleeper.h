// Waiting for news, for descriptors and for a deadline, at first without sleeping.
#pragma once

#include <poll.h>

#include "inbox.h"
#include "spin.h"

class Sleeper {
 public:
  // awake: the word of our region that tells senders whether to ring. bell: our eventfd.
  Sleeper(const Inbox* inbox, uint64_t* awake, int bell, int64_t spin_ns)
      : inbox_(inbox), awake_(awake), bell_(bell), spin_(spin_ns) {}

  // Until there is news, one of `watched` is ready or `timeout_ns` have passed; how many of
  // `watched` are ready, as their revents say.
  int64_t sleep(int64_t timeout_ns, pollfd* watched, int64_t count);

 private:
  int64_t doze(int64_t timeout_ns, pollfd* watched, int64_t count);
  int64_t poll_all(int64_t timeout_ns, pollfd* watched, int64_t count);

  const Inbox* inbox_;
  uint64_t* awake_;
  int bell_;
  Spin spin_;
  int64_t polled_at_ = 0;
};
