// What a fuzzer gives, taken apart.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

// Bytes in order, and zeros when they have run out.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  void bytes(void* to, size_t count) {
    if (count == 0) return;  // `to` may be null then
    const size_t there = left() < count ? left() : count;
    if (there > 0) std::memcpy(to, at_, there);
    std::memset(static_cast<uint8_t*>(to) + there, 0, count - there);
    at_ += there;
  }

  template <class T>
  T number() {
    T value;
    bytes(&value, sizeof value);
    return value;
  }

  // From `low` to `high`.
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(number<uint16_t>() % static_cast<uint64_t>(high - low + 1));
  }

  size_t left() const { return static_cast<size_t>(end_ - at_); }

 private:
  const uint8_t *at_, *end_;
};

// What has to hold whatever was given.
inline void require(bool holds) {
  if (!holds) std::abort();
}
