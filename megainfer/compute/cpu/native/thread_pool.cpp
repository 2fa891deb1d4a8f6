#include "thread_pool.h"

namespace {

constexpr uint32_t closed = 1u << 31;

// The others are about to finish a task, or the next call of a step is about to come: a look that
// long (some 100 us) costs less than a sleep and being woken. After it a thread sleeps in the
// kernel (std::atomic::wait is a futex).
constexpr int looks = 4000;

// After so many of them (some 10 us) whoever else has work on this core goes first: another process
// of the instance may have been waiting for just what this one has finished.
constexpr int impolite_looks = 400;
constexpr int looks_a_yield = 16;

inline void pause(int look) {
  if (look > impolite_looks && look % looks_a_yield == 0) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void wait_until(const std::atomic<uint32_t>& value, uint32_t wanted) {
  uint32_t now = value.load(std::memory_order_acquire);
  for (int i = 0; now != wanted && i < looks; ++i) {
    pause(i);
    now = value.load(std::memory_order_acquire);
  }
  for (; now != wanted; now = value.load(std::memory_order_acquire)) {
    value.wait(now, std::memory_order_acquire);
  }
}

void wait_while(const std::atomic<uint32_t>& value, uint32_t unwanted) {
  for (int i = 0; value.load(std::memory_order_acquire) == unwanted && i < looks; ++i) pause(i);
  value.wait(unwanted, std::memory_order_acquire);
}

}  // namespace

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  calls_.fetch_add(1, std::memory_order_release);
  calls_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(std::vector<Phase>& phases) {
  if (threads_ == 1) {
    for (Phase& phase : phases) {
      for (uint32_t task = 0; task < phase.tasks; ++task) phase.work(task);
    }
    return;
  }
  if (workers_.empty()) start();
  phases_ = &phases;
  progress_ = std::vector<Progress>(phases.size());
  inside_.store(0, std::memory_order_release);
  calls_.fetch_add(1, std::memory_order_release);
  calls_.notify_all();
  take_part();
  inside_.fetch_or(closed, std::memory_order_acq_rel);
  wait_until(inside_, closed);
}

void ThreadPool::start() {
  inside_.store(closed);
  for (int i = 1; i < threads_; ++i) workers_.emplace_back(&ThreadPool::serve, this);
}

void ThreadPool::serve() {
  while (true) {
    const uint32_t seen = calls_.load(std::memory_order_acquire);
    if (stopping_.load()) return;
    if (enter()) {
      take_part();
      leave();
    }
    wait_while(calls_, seen);
  }
}

void ThreadPool::take_part() {
  for (size_t p = 0; p < phases_->size(); ++p) {
    Phase& phase = (*phases_)[p];
    Progress& progress = progress_[p];
    uint32_t task;
    while ((task = progress.next.fetch_add(1, std::memory_order_relaxed)) < phase.tasks) {
      phase.work(task);
      const uint32_t before = progress.done.fetch_add(1, std::memory_order_acq_rel);
      if (before + 1 == phase.tasks) progress.done.notify_all();
    }
    wait_until(progress.done, phase.tasks);
  }
}

// Whether a call is open, which then can't end before `leave`.
bool ThreadPool::enter() {
  uint32_t now = inside_.load(std::memory_order_acquire);
  while ((now & closed) == 0) {
    if (inside_.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

void ThreadPool::leave() {
  if (inside_.fetch_sub(1, std::memory_order_acq_rel) == (closed | 1)) inside_.notify_all();
}
