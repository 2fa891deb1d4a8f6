#include "thread_pool.h"

namespace {

// Phases of one call follow each other within microseconds: a look that long costs less than a
// sleep. After it the thread sleeps in the kernel (std::atomic::wait is a futex).
constexpr int looks = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < looks; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(const std::function<void(int)>& work) {
  if (threads_ == 1) {
    work(0);
    return;
  }
  if (workers_.empty()) start();
  work_ = &work;
  unfinished_.store(static_cast<uint32_t>(threads_ - 1), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  work(0);
  for (uint32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) {
    wait_while(unfinished_, left);
  }
}

void ThreadPool::start() {
  for (int thread = 1; thread < threads_; ++thread) {
    workers_.emplace_back(&ThreadPool::serve, this, thread);
  }
}

void ThreadPool::serve(int thread) {
  // The pool's first round is 1, and it can't move on before this thread has served it.
  for (uint32_t seen = 0;; ++seen) {
    while (round_.load(std::memory_order_acquire) == seen) wait_while(round_, seen);
    if (stopping_.load()) return;
    (*work_)(thread);
    if (unfinished_.fetch_sub(1, std::memory_order_release) == 1) unfinished_.notify_one();
  }
}
