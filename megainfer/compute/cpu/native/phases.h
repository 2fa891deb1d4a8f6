// Work in equal shares.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "thread_pool.h"

// Where the i-th of equal shares of 0..n begins.
inline int64_t share(int64_t n, int64_t i, int64_t shares) { return n * i / shares; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A phase that does work(i) for 0 <= i < count, in as many tasks as keep all threads busy to the
// end.
template <class Work>
ThreadPool::Phase phase_of(int64_t count, int threads, Work work) {
  constexpr int64_t tasks_a_thread = 8;
  const int64_t tasks = std::min<int64_t>(count, threads == 1 ? 1 : tasks_a_thread * threads);
  return {static_cast<uint32_t>(tasks), [=](uint32_t task) {
            const int64_t end = share(count, task + 1, tasks);
            for (int64_t i = share(count, task, tasks); i < end; ++i) work(i);
          }};
}
