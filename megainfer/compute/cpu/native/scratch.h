// Memory that a computation needs while it runs.
#pragma once

#include <cstddef>
#include <cstdlib>

// Memory on cache lines that only grows.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* of(size_t count) {
    return static_cast<T*>(reserve(count * sizeof(T)));
  }

 private:
  static constexpr size_t line_bytes = 64;

  void* reserve(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + bytes / 2 + line_bytes - 1) / line_bytes * line_bytes;
      data_ = std::aligned_alloc(line_bytes, size_);
      if (data_ == nullptr) std::abort();
    }
    return data_;
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};
