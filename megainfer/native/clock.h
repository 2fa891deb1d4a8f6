// The monotonic clock that all processes of a host share.
#pragma once

#include <cstdint>
#include <ctime>

inline int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}
