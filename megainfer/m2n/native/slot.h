// One slot in memory that two processes share: word line, header line, payload.
//
// The word is 2 * sequence when that message stands, one more while it is being written.
#pragma once

#include <cstring>

#include "message.h"

class Slot {
 public:
  explicit Slot(uint8_t* start) : start_(start) {}

  uint8_t* payload() const { return start_ + 2 * line_bytes; }

  uint64_t word() const { return __atomic_load_n(word_address(), __ATOMIC_ACQUIRE); }

  // From here on readers leave the slot alone, until `publish`.
  void begin(uint64_t sequence) {
    __atomic_store_n(word_address(), sequence << 1 | 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);  // before whatever is stored next
  }

  // Show the header and all that was written since `begin`.
  void publish(const Header& header) {
    std::memcpy(start_ + line_bytes, &header, sizeof header);
    __atomic_store_n(word_address(), header.sequence << 1, __ATOMIC_RELEASE);
  }

  // Copy the header that was published as `word`; false if the slot holds another by now.
  bool read(uint64_t word, Header* header) const {
    std::memcpy(header, start_ + line_bytes, sizeof *header);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);  // the copy is made before the word is read again
    return __atomic_load_n(word_address(), __ATOMIC_RELAXED) == word;
  }

 private:
  uint64_t* word_address() const { return reinterpret_cast<uint64_t*>(start_); }

  uint8_t* start_;
};

inline bool being_written(uint64_t word) { return word & 1; }
