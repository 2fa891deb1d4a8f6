// An inbox over slots in which anything may stand: whatever it gives out lies within its slot, is
// from who owns the slot, and comes once.
#include <vector>

#include "inbox.h"
#include "input.h"

namespace {

constexpr uint64_t epoch = 3;

Header good_header(const Layout& layout, int64_t slot, bool attention) {
  Header header = {};
  std::memcpy(header.magic, magic, sizeof magic);
  header.version = version;
  header.kind = attention ? REPLY : DISPATCH;
  header.dtype = static_cast<uint16_t>(layout.dtype_code);
  header.epoch = epoch;
  header.micro_batch = static_cast<uint16_t>(slot % layout.micro_batches);
  header.source = static_cast<uint16_t>(slot / layout.micro_batches);
  header.rows = 1;
  header.top_k = static_cast<uint32_t>(layout.top_k);
  header.hidden_size = static_cast<uint32_t>(layout.hidden_size);
  header.length = attention ? layout.rows_bytes(1) : layout.dispatch_bytes(1);
  return header;
}

// Some bytes of it replaced.
void spoil(Input& input, Header* header) {
  for (int64_t times = input.between(0, 3); times > 0; --times) {
    const int64_t at = input.between(0, sizeof *header - 1);
    const int64_t left = static_cast<int64_t>(sizeof *header) - at;
    const int64_t wanted = input.between(1, 8);
    input.bytes(reinterpret_cast<uint8_t*>(header) + at, wanted < left ? wanted : left);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  Layout layout = {input.between(1, 3), input.between(1, 5), input.between(1, 40),
                   input.between(1, 4), input.between(1, 3), 0, 0, 0, 0};
  layout.element_bytes = layout.dtype_code == 1 ? 4 : 2;
  const uint64_t most = layout.rows_bytes(layout.capacity);
  layout.error_room = most > 1024 ? most : 1024;
  layout.dispatch_slot_bytes = 2 * line_bytes + layout.dispatch_bytes(layout.capacity);
  layout.reply_slot_bytes = 2 * line_bytes + layout.error_room;
  const bool attention = input.number<uint8_t>() % 2 == 0;
  const int64_t stride = attention ? layout.reply_slot_bytes : layout.dispatch_slot_bytes;
  const int64_t count = layout.micro_batches * input.between(1, 3);
  // uint64_t: slots are aligned, as mapped memory is.
  std::vector<uint64_t> memory(count * stride / 8);
  auto* start = reinterpret_cast<uint8_t*>(memory.data());
  const uint32_t kinds = attention ? 1u << REPLY | 1u << ERROR : 1u << DISPATCH | 1u << REST;
  const bool on_devices = input.number<uint8_t>() % 2 == 0;
  Inbox inbox(start, stride, count, kinds, epoch, on_devices);
  inbox.set_watched(0, count, true);
  Counters counters = {};
  std::vector<Found> found(count);
  std::vector<uint64_t> latest(count);
  for (int round = 0; round < 4; ++round) {
    for (int64_t s = 0; s < count; ++s) {
      Header header = good_header(layout, s, attention);
      header.sequence = input.between(0, 3);
      const uint64_t word = header.sequence << 1;
      spoil(input, &header);
      std::memcpy(start + s * stride + line_bytes, &header, sizeof header);
      const uint64_t shown = input.between(0, 9) == 0 ? input.number<uint64_t>() : word;
      std::memcpy(start + s * stride, &shown, sizeof shown);
      // Where a device publishes, another word tells what was begun.
      const uint64_t begun = input.between(0, 9) == 0 ? input.number<uint64_t>() : shown | 1;
      std::memcpy(start + s * stride + sizeof shown, &begun, sizeof begun);
    }
    inbox.awaits();
    const bool there_was_news = inbox.news();
    const int64_t news = inbox.scan(layout, found.data(), &counters);
    require(news >= -1 && news <= count);
    require(news <= 0 || there_was_news);
    for (int64_t i = 0; i < news; ++i) {
      const auto& [slot, word, header] = found[i];
      require(slot >= 0 && slot < count && !being_written(word));
      require(2 * line_bytes + header.length <= static_cast<uint64_t>(stride));
      require(header.rows <= layout.capacity);
      require(header.source * layout.micro_batches + header.micro_batch == slot);
      require(header.epoch == epoch && header.sequence > latest[slot]);
      latest[slot] = header.sequence;
      // What is read next of it.
      std::vector<uint8_t> payload(header.length);
      if (header.length > 0) {
        std::memcpy(payload.data(), Slot(start + slot * stride).payload(), payload.size());
      }
    }
  }
  return 0;
}
