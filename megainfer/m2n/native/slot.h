// One slot in memory that two processes share: word line, header line, payload.
//
// The word is 2 * sequence when that message stands, one more while it is being written. Where a
// device publishes, the latter is a word of its own, `begun`, and a message stands that is in both.
#pragma once

#include <cstring>

#include "message.h"

class Slot {
 public:
  explicit Slot(uint8_t* start, bool on_device = false) : start_(start), on_device_(on_device) {}

  uint8_t* payload() const { return start_ + 2 * line_bytes; }

  uint64_t word() const {
    const uint64_t word = __atomic_load_n(word_address(), __ATOMIC_ACQUIRE);
    if (!on_device_) return word;
    const uint64_t last_begun = begun();
    return last_begun == (word | 1) ? word : last_begun;
  }

  // Whether a message of `epoch` or a later one was begun that the device is yet to publish.
  bool awaited(uint64_t epoch) const {
    const uint64_t last_begun = begun();
    if (last_begun == 0 || last_begun == (__atomic_load_n(word_address(), __ATOMIC_ACQUIRE) | 1)) {
      return false;
    }
    const Header* header = reinterpret_cast<const Header*>(start_ + line_bytes);
    return __atomic_load_n(&header->epoch, __ATOMIC_RELAXED) >= epoch;
  }

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
    return on_device_ ? begun() == (word | 1)
                      : __atomic_load_n(word_address(), __ATOMIC_RELAXED) == word;
  }

 private:
  uint64_t begun() const { return __atomic_load_n(word_address() + 1, __ATOMIC_ACQUIRE); }
  uint64_t* word_address() const { return reinterpret_cast<uint64_t*>(start_); }

  uint8_t* start_;
  bool on_device_;
};

inline bool being_written(uint64_t word) { return word & 1; }
