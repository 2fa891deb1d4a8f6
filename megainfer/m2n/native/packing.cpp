#include "packing.h"

bool pack(const Layout& layout, const Part* parts, uint8_t* const* payloads, int64_t count,
          const uint8_t* hidden, int64_t tokens) {
  if (!rows_below(parts, count, tokens)) return false;
  for (int64_t i = 0; i < count; ++i) write_part(layout, parts[i], hidden, payloads[i]);
  return true;
}

bool add(const Layout& layout, const Part* parts, const uint8_t* const* replies, int64_t count,
         Sum sum, void* out, int64_t tokens, int64_t stride) {
  if (!rows_below(parts, count, tokens)) return false;
  for (int64_t i = 0; i < count; ++i) {
    add_rows(sum, replies[i], parts[i].rows, parts[i].count, layout.hidden_size, out, stride);
  }
  return true;
}
