// One node's end of M2N: its own slots and its slots in each peer's memory.
#pragma once

#include <vector>

#include "inbox.h"
#include "outbox.h"
#include "rows.h"

// What Python says of a new port.
struct Setup {
  Layout layout;
  int64_t index;  // of this node in its role
  uint64_t epoch;
  int64_t is_attention;
  uint8_t* slots;  // its own
  int64_t num_slots;
  const Outbox* peers;
  int64_t num_peers;
  Counters* counters;
};

// Whose answer a message is, or which layer it is of.
struct Place {
  int64_t micro_batch;
  int64_t layer;
  uint64_t sequence;
};

class Port {
 public:
  explicit Port(const Setup& setup);

  const Inbox* inbox() const { return &inbox_; }

  // members: for each peer, whether it takes part in this epoch; the others are sent nothing.
  void set_epoch(uint64_t epoch, const uint8_t* members);

  // From now on this is where `peer` is sent its messages.
  void admit(int64_t peer, const Outbox& outbox);

  // As Inbox::scan; counts the transfers of messages sent at or after `since` (ns; -1: of none).
  int64_t scan(int64_t since, Found* found);

  // Send each peer its part of `hidden` [tokens, D]; whether all rows are below `tokens`.
  bool dispatch(const Place& place, const uint8_t* hidden, int64_t tokens, const Part* parts);

  // From here on the peer's slot of the micro-batch is being written.
  void begin(int64_t peer, int64_t micro_batch, uint64_t sequence);

  // Send a message whose payload of `length` bytes stands already.
  void post(int64_t peer, Kind kind, const Place& place, int64_t rows, int64_t length);

  // Add the replies to `parts` into `out` [tokens, D] in the peers' order; whether all rows are
  // below `tokens`.
  bool combine(int64_t micro_batch, const Part* parts, Sum sum, void* out, int64_t tokens,
               int64_t stride) const;

  // Ring nobody any more: the descriptors will be others' soon.
  void close();

 private:
  Header header(Kind kind, const Place& place) const;
  void publish(const Outbox& peer, Header header);

  Layout layout_;
  int64_t index_;
  uint64_t epoch_;
  int64_t own_stride_;   // bytes from one of our slots to the next
  int64_t peer_stride_;  // the same in the peers' memory
  uint8_t* slots_;
  Inbox inbox_;
  std::vector<Outbox> peers_;
  std::vector<uint8_t> members_;
  Counters* counters_;
};
