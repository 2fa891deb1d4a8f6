#include "inbox.h"

#include <algorithm>
#include <utility>

namespace {

bool has_layout(const Header& header, const Layout& layout) {
  const uint64_t rows = header.rows;
  if (header.dtype != layout.dtype_code || header.top_k != layout.top_k) return false;
  if (header.hidden_size != layout.hidden_size) return false;
  if (header.micro_batch >= layout.micro_batches) return false;
  if (rows > static_cast<uint64_t>(layout.capacity)) return false;
  switch (header.kind) {
    case DISPATCH:
      return header.length == layout.dispatch_bytes(rows);
    case REPLY:
      return header.length == layout.rows_bytes(rows);
    case REST:
      return rows == 0 && header.length == 0;
    default:
      return rows == 0 && header.length <= static_cast<uint64_t>(layout.error_room);
  }
}

}  // namespace

bool Inbox::news() const {
  for (const int64_t i : watched_) {
    const uint64_t word = slot(i).word();
    if (word != seen_[i].handled && !being_written(word)) return true;
  }
  return false;
}

bool Inbox::awaits() const {
  return std::any_of(watched_.begin(), watched_.end(),
                     [this](int64_t i) { return slot(i).awaited(epoch_); });
}

int64_t Inbox::scan(const Layout& layout, Found* found, Counters* counters) {
  int64_t count = 0;
  for (const int64_t i : watched_) {
    Seen& seen = seen_[i];
    const uint64_t word = slot(i).word();
    if (word == seen.handled || being_written(word)) continue;
    Header header;
    if (!slot(i).read(word, &header)) continue;  // rewritten meanwhile; its writer will ring again
    seen.handled = word;
    seen.parked = false;
    const Found next = {i, word, header};
    if (!is_valid(layout, i, word, header) || goes_back(seen, header)) {
      found[0] = next;
      return -1;
    }
    if (is_current(&seen, header, counters)) found[count++] = next;
  }
  return count;
}

void Inbox::set_epoch(uint64_t epoch) {
  epoch_ = epoch;
  for (Seen& seen : seen_) {
    if (seen.parked) seen.handled = 0;  // look at it again
    seen.parked = false;
  }
}

void Inbox::set_watched(int64_t first, int64_t count, bool watched) {
  std::vector<int64_t> others;
  for (const int64_t i : watched_) {
    if (i < first || i >= first + count) others.push_back(i);
  }
  if (watched) {
    for (int64_t i = first; i < first + count; ++i) others.push_back(i);
    std::sort(others.begin(), others.end());
  }
  watched_ = std::move(others);
}

bool Inbox::goes_back(const Seen& seen, const Header& header) const {
  return header.epoch == epoch_ && header.sequence <= seen.latest;
}

bool Inbox::is_current(Seen* seen, const Header& header, Counters* counters) {
  if (header.epoch > epoch_) {
    seen->parked = true;
    return false;
  }
  if (header.epoch < epoch_) {
    ++counters->dropped;
    return false;
  }
  seen->latest = header.sequence;
  ++counters->messages_received;
  counters->rows_received += header.rows;
  counters->bytes_received += sizeof header + header.length;
  return true;
}

bool Inbox::is_valid(const Layout& layout, int64_t slot, uint64_t word,
                     const Header& header) const {
  if (std::memcmp(header.magic, magic, sizeof magic) != 0 || header.version != version) return false;
  if (header.kind < DISPATCH || header.kind > ERROR || !(kinds_ >> header.kind & 1)) return false;
  if (!has_layout(header, layout)) return false;
  if (header.source != slot / layout.micro_batches) return false;
  if (header.micro_batch != slot % layout.micro_batches) return false;
  return header.sequence == word >> 1;
}
