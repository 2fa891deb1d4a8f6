// Payloads that are in no slot: filled, and added up, wherever in the host's memory they are.
#pragma once

#include "outbox.h"
#include "rows.h"

// Parts for `count` payloads, of which each is written; false where a part names no row of `hidden`.
bool pack(const Layout& layout, const Part* parts, uint8_t* const* payloads, int64_t count,
          const uint8_t* hidden, int64_t tokens);

// Replies to these parts, added to rows of `out` one after the other; false as `pack`.
bool add(const Layout& layout, const Part* parts, const uint8_t* const* replies, int64_t count,
         Sum sum, void* out, int64_t tokens, int64_t stride);
