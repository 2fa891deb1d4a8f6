// A node's slots in one peer's memory, and that peer's bell.
#pragma once

#include "slot.h"

// Rows of one micro-batch's layer for one expert node.
struct Part {
  const int64_t* rows;
  const int32_t* local_ids;
  const float* weights;
  int64_t count;
};

struct Outbox {
  uint8_t* slots;         // of micro-batch 0
  const uint64_t* awake;  // not 0: the peer looks at its slots without being rung
  int64_t bell;           // an eventfd; -1: rung by somebody else

  Slot slot(int64_t micro_batch, int64_t stride) const { return Slot(slots + micro_batch * stride); }

  // Wake the peer if it sleeps. After the word of a slot was stored.
  void ring() const;
};

// Where a dispatch's parts lie in its payload.
void write_part(const Layout& layout, const Part& part, const uint8_t* hidden, uint8_t* payload);

// Whether no part names a row that isn't there.
bool rows_below(const Part* parts, int64_t count, int64_t tokens);
