// A node's own slots: which messages are new, late, parked or wrong. As inbox.py.
#pragma once

#include <vector>

#include "slot.h"

// What a port has moved; `Counters` of counters.py.
struct Counters {
  int64_t messages_sent;
  int64_t messages_received;
  int64_t rows_sent;
  int64_t rows_received;
  int64_t bytes_sent;
  int64_t bytes_received;
  int64_t dropped;
  int64_t transfer_ns;
  int64_t transfers;
};

// A message to act on.
struct Found {
  int64_t slot;
  uint64_t word;  // as which it was published
  Header header;
};

class Inbox {
 public:
  // slots: `count` of them, `stride` bytes apart. kinds: bit k for each kind k that may come.
  // on_devices: whether devices publish in them.
  Inbox(uint8_t* slots, int64_t stride, int64_t count, uint32_t kinds, uint64_t epoch,
        bool on_devices)
      : slots_(slots),
        stride_(stride),
        kinds_(kinds),
        on_devices_(on_devices),
        epoch_(epoch),
        seen_(count) {}

  // Whether a look would find a message that was not dealt with.
  bool news() const;

  // Whether somebody has announced what a device is yet to publish.
  bool awaits() const;

  // Every message to act on, each once, into `found`, which has room for all slots; how many, or
  // -1 after a malformed one, which is then the first in `found`.
  int64_t scan(const Layout& layout, Found* found, Counters* counters);

  void set_epoch(uint64_t epoch);

  // Whether there is anybody who could send into these slots; if not, they are not looked at. There
  // is room for more peers than there are, and each slot is a cache line and a page of its own.
  void set_watched(int64_t first, int64_t count, bool watched);

 private:
  struct Seen {
    uint64_t handled = 0;  // the word that was last dealt with
    uint64_t latest = 0;   // the highest sequence taken
    bool parked = false;   // the message that stands there is of a newer epoch
  };

  Slot slot(int64_t number) const { return Slot(slots_ + number * stride_, on_devices_); }
  // Whether a later one of this epoch was there before it, which no sender does.
  bool goes_back(const Seen& seen, const Header& header) const;
  bool is_current(Seen* seen, const Header& header, Counters* counters);
  bool is_valid(const Layout& layout, int64_t slot, uint64_t word, const Header& header) const;

  uint8_t* slots_;
  int64_t stride_;
  uint32_t kinds_;
  bool on_devices_;
  uint64_t epoch_;
  std::vector<Seen> seen_;
  std::vector<int64_t> watched_;  // the slots that are looked at, ascending
};
