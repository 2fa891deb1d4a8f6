// Threads that share the tasks of a call, and sleep when there has been none for a while.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

// The caller is one of the threads; the others start with the first `run` that needs them, so that
// a pool may be made before a fork. One caller at a time.
class ThreadPool {
 public:
  // Tasks 0 to `tasks` that may run in any order and side by side.
  struct Phase {
    uint32_t tasks;
    std::function<void(uint32_t)> work;
  };

  explicit ThreadPool(int threads) : threads_(threads) {}
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // All phases, each after the one before it has finished. A thread that is late, because it has
  // to be woken or somebody else has its core, finds less to do; nobody waits for its arrival.
  void run(std::vector<Phase>& phases);

 private:
  struct Progress {
    std::atomic<uint32_t> next{0}, done{0};
  };

  void start();
  void serve();
  void take_part();
  bool enter();
  void leave();

  const int threads_;
  std::vector<std::thread> workers_;
  std::vector<Phase>* phases_ = nullptr;
  std::vector<Progress> progress_;
  std::atomic<uint32_t> calls_{0};  // what idle workers wait on
  std::atomic<uint32_t> inside_;    // workers in the current call, or `closed`
  std::atomic<bool> stopping_{false};
};
