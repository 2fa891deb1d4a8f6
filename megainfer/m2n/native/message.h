// A message's header and where the bytes of a slot lie, as docs/m2n.md says and geometry.py does.
#pragma once

#include <bit>
#include <cstdint>

static_assert(std::endian::native == std::endian::little, "the wire is little-endian");

enum Kind : uint16_t { DISPATCH = 1, REPLY = 2, REST = 3, ERROR = 4 };

struct Header {
  uint8_t magic[4];
  uint32_t version;
  uint16_t kind;
  uint16_t dtype;
  uint32_t layer;
  uint64_t epoch;
  uint64_t sequence;
  uint16_t micro_batch;
  uint16_t source;
  uint32_t rows;
  uint32_t top_k;
  uint32_t hidden_size;
  uint64_t length;
  uint64_t sent_at;  // ns of the monotonic clock
};
static_assert(sizeof(Header) == 64);

constexpr uint8_t magic[4] = {'M', '2', 'N', 0};
constexpr uint32_t version = 3;
constexpr uint64_t line_bytes = 64;

constexpr uint64_t aligned(uint64_t bytes) {
  return (bytes + line_bytes - 1) / line_bytes * line_bytes;
}

// The sizes that all nodes agreed on.
struct Layout {
  int64_t micro_batches;
  int64_t capacity;  // rows
  int64_t hidden_size;
  int64_t top_k;
  int64_t dtype_code;
  int64_t element_bytes;  // of hidden rows and replies
  int64_t error_room;     // bytes
  int64_t dispatch_slot_bytes;
  int64_t reply_slot_bytes;
  int64_t on_devices;  // not 0: payloads are in devices' memory

  uint64_t row_bytes() const { return hidden_size * element_bytes; }
  uint64_t rows_bytes(uint64_t rows) const { return aligned(rows * row_bytes()); }
  uint64_t choices_bytes(uint64_t rows) const { return aligned(rows * top_k * 4); }
  uint64_t count_bytes(uint64_t rows) const { return on_devices && rows > 0 ? line_bytes : 0; }
  uint64_t dispatch_bytes(uint64_t rows) const {
    return rows_bytes(rows) + 2 * choices_bytes(rows) + count_bytes(rows);
  }
};
