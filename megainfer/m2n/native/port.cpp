#include "port.h"

#include "clock.h"

namespace {

constexpr uint32_t to_attention = 1u << REPLY | 1u << ERROR;
constexpr uint32_t to_expert = 1u << DISPATCH | 1u << REST;

int64_t stride_of(const Layout& layout, bool replies) {
  return replies ? layout.reply_slot_bytes : layout.dispatch_slot_bytes;
}

}  // namespace

Port::Port(const Setup& setup)
    : layout_(setup.layout),
      index_(setup.index),
      epoch_(setup.epoch),
      own_stride_(stride_of(setup.layout, setup.is_attention)),
      peer_stride_(stride_of(setup.layout, !setup.is_attention)),
      slots_(setup.slots),
      inbox_(setup.slots, own_stride_, setup.num_slots,
             setup.is_attention ? to_attention : to_expert, setup.epoch,
             setup.layout.on_devices != 0),
      peers_(setup.peers, setup.peers + setup.num_peers),
      members_(setup.num_peers, 1),
      counters_(setup.counters) {
  for (size_t peer = 0; peer < peers_.size(); ++peer) admit(peer, peers_[peer]);
}

void Port::set_epoch(uint64_t epoch, const uint8_t* members) {
  epoch_ = epoch;
  members_.assign(members, members + peers_.size());
  inbox_.set_epoch(epoch);
}

void Port::admit(int64_t peer, const Outbox& outbox) {
  peers_[peer] = outbox;
  const int64_t slots = layout_.micro_batches;
  inbox_.set_watched(peer * slots, slots, outbox.slots != nullptr);
}

int64_t Port::scan(int64_t since, Found* found) {
  const int64_t count = inbox_.scan(layout_, found, counters_);
  if (count <= 0 || since < 0) return count;
  const int64_t now = now_ns();
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t sent_at = found[i].header.sent_at;
    if (sent_at < static_cast<uint64_t>(since)) continue;
    counters_->transfer_ns += now - static_cast<int64_t>(sent_at);
    ++counters_->transfers;
  }
  return count;
}

bool Port::dispatch(const Place& place, const uint8_t* hidden, int64_t tokens, const Part* parts) {
  if (!rows_below(parts, peers_.size(), tokens)) return false;
  for (size_t node = 0; node < peers_.size(); ++node) {
    if (!members_[node]) continue;
    const Part& part = parts[node];
    Header sent = header(DISPATCH, place);
    Slot slot = peers_[node].slot(place.micro_batch, peer_stride_);
    slot.begin(place.sequence);
    if (part.count > 0) {
      write_part(layout_, part, hidden, slot.payload());
      sent.rows = static_cast<uint32_t>(part.count);
      sent.length = layout_.dispatch_bytes(part.count);
    }
    publish(peers_[node], sent);
  }
  return true;
}

void Port::begin(int64_t peer, int64_t micro_batch, uint64_t sequence) {
  peers_[peer].slot(micro_batch, peer_stride_).begin(sequence);
}

void Port::post(int64_t peer, Kind kind, const Place& place, int64_t rows, int64_t length) {
  Header sent = header(kind, place);
  sent.rows = static_cast<uint32_t>(rows);
  sent.length = length;
  begin(peer, place.micro_batch, place.sequence);
  publish(peers_[peer], sent);
}

bool Port::combine(int64_t micro_batch, const Part* parts, Sum sum, void* out, int64_t tokens,
                   int64_t stride) const {
  if (!rows_below(parts, peers_.size(), tokens)) return false;
  for (size_t node = 0; node < peers_.size(); ++node) {
    const Slot reply(slots_ + (node * layout_.micro_batches + micro_batch) * own_stride_);
    add_rows(sum, reply.payload(), parts[node].rows, parts[node].count, layout_.hidden_size, out,
             stride);
  }
  return true;
}

void Port::close() {
  for (Outbox& peer : peers_) peer.bell = -1;
}

Header Port::header(Kind kind, const Place& place) const {
  Header header = {};
  std::memcpy(header.magic, magic, sizeof magic);
  header.version = version;
  header.kind = kind;
  header.dtype = static_cast<uint16_t>(layout_.dtype_code);
  header.layer = static_cast<uint32_t>(place.layer);
  header.epoch = epoch_;
  header.sequence = place.sequence;
  header.micro_batch = static_cast<uint16_t>(place.micro_batch);
  header.source = static_cast<uint16_t>(index_);
  header.top_k = static_cast<uint32_t>(layout_.top_k);
  header.hidden_size = static_cast<uint32_t>(layout_.hidden_size);
  header.sent_at = now_ns();
  return header;
}

void Port::publish(const Outbox& peer, Header header) {
  peer.slot(header.micro_batch, peer_stride_).publish(header);
  ++counters_->messages_sent;
  counters_->rows_sent += header.rows;
  counters_->bytes_sent += sizeof header + header.length;
  peer.ring();
}
