#include "sleeper.h"

#include <unistd.h>

#include "clock.h"

namespace {

constexpr int64_t glance_ns = 1'000'000;

}  // namespace

int64_t Sleeper::sleep(int64_t timeout_ns, pollfd* watched, int64_t count) {
  const int64_t started = now_ns();
  // Whoever always has news soon looks at the descriptors now and then all the same.
  if (started - polled_at_ > glance_ns) {
    const int64_t ready = poll_all(0, watched, count);
    if (ready > 0) return ready;
  }
  const int64_t budget = spin_.next_budget();
  const auto news = [this] { return inbox_->news(); };
  if (look_for(news, budget < timeout_ns ? budget : timeout_ns, started)) {
    spin_.succeeded();
    spin_.waited(now_ns() - started);
    return 0;
  }
  if (budget > 0) spin_.failed();
  const int64_t ready = doze(timeout_ns, watched, count);
  spin_.waited(now_ns() - started);
  return ready;
}

int64_t Sleeper::doze(int64_t timeout_ns, pollfd* watched, int64_t count) {
  __atomic_store_n(awake_, 0, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);  // see Outbox::ring
  const int64_t ready = inbox_->news() ? 0 : poll_all(timeout_ns, watched, count);
  __atomic_store_n(awake_, 1, __ATOMIC_RELAXED);
  return ready;
}

int64_t Sleeper::poll_all(int64_t timeout_ns, pollfd* watched, int64_t count) {
  const timespec timeout = {timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
  const int64_t ready = ppoll(watched, count, &timeout, nullptr);
  polled_at_ = now_ns();
  if (ready <= 0) return 0;
  for (int64_t i = 0; i < count; ++i) {
    // Silenced before the caller looks, so that no later ring is lost.
    uint64_t rings;
    if (watched[i].fd == bell_ && watched[i].revents != 0 && read(bell_, &rings, 8) < 0) break;
  }
  return ready;
}
