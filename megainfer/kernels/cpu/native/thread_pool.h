// Threads that do the same piece of work together and sleep in between.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

// The caller is thread 0; the others start with the first `run` that needs them, so that a pool
// may be made before a fork. One caller at a time.
class ThreadPool {
 public:
  explicit ThreadPool(int threads) : threads_(threads) {}
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // work(thread) on every thread; returns when all are done.
  void run(const std::function<void(int)>& work);

 private:
  void start();
  void serve(int thread);

  const int threads_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<uint32_t> round_{0};
  std::atomic<uint32_t> unfinished_{0};
  std::atomic<bool> stopping_{false};
};
