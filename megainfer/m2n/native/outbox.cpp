#include "outbox.h"

#include <unistd.h>

#include <cerrno>

#include "rows.h"

void Outbox::ring() const {
  // Either we see that the peer sleeps, or it sees our word when it looks once more before it does.
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (bell < 0 || __atomic_load_n(awake, __ATOMIC_RELAXED) != 0) return;
  const uint64_t once = 1;
  // A counter that is full rings already; an interrupted write has not rung.
  while (write(static_cast<int>(bell), &once, sizeof once) < 0 && errno == EINTR) {
  }
}

void write_part(const Layout& layout, const Part& part, const uint8_t* hidden, uint8_t* payload) {
  const uint64_t choices = part.count * layout.top_k * sizeof(float);
  gather_rows(hidden, part.rows, part.count, layout.row_bytes(), payload);
  payload += layout.rows_bytes(part.count);
  std::memcpy(payload, part.local_ids, choices);
  std::memcpy(payload + layout.choices_bytes(part.count), part.weights, choices);
  if (layout.count_bytes(part.count) > 0) {
    const int32_t count = static_cast<int32_t>(part.count);
    std::memcpy(payload + 2 * layout.choices_bytes(part.count), &count, sizeof count);
  }
}

bool rows_below(const Part* parts, int64_t count, int64_t tokens) {
  for (int64_t node = 0; node < count; ++node) {
    for (int64_t i = 0; i < parts[node].count; ++i) {
      if (static_cast<uint64_t>(parts[node].rows[i]) >= static_cast<uint64_t>(tokens)) return false;
    }
  }
  return true;
}
