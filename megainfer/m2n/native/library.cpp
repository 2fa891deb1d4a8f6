// What Python calls: plain C, pointers to memory that the caller owns, no exception leaves.
#include "packing.h"
#include "port.h"
#include "sleeper.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Port* megainfer_m2n_new(const Setup* setup) { return new Port(*setup); }

EXPORT void megainfer_m2n_delete(Port* port) { delete port; }

EXPORT void megainfer_m2n_close(Port* port) { port->close(); }

EXPORT void megainfer_m2n_set_epoch(Port* port, uint64_t epoch, const uint8_t* members) {
  port->set_epoch(epoch, members);
}

EXPORT void megainfer_m2n_admit(Port* port, int64_t peer, const Outbox* outbox) {
  port->admit(peer, *outbox);
}

EXPORT int32_t megainfer_m2n_news(const Port* port) { return port->inbox()->news(); }

EXPORT int32_t megainfer_m2n_awaits(const Port* port) { return port->inbox()->awaits(); }

EXPORT int64_t megainfer_m2n_scan(Port* port, int64_t since, Found* found) {
  return port->scan(since, found);
}

EXPORT int32_t megainfer_m2n_dispatch(Port* port, int64_t micro_batch, int64_t layer,
                                      uint64_t sequence, const uint8_t* hidden, int64_t tokens,
                                      const Part* parts) {
  return port->dispatch({micro_batch, layer, sequence}, hidden, tokens, parts);
}

EXPORT void megainfer_m2n_begin(Port* port, int64_t peer, int64_t micro_batch, uint64_t sequence) {
  port->begin(peer, micro_batch, sequence);
}

EXPORT void megainfer_m2n_post(Port* port, int64_t peer, int32_t kind, int64_t micro_batch,
                               int64_t layer, uint64_t sequence, int64_t rows, int64_t length) {
  port->post(peer, static_cast<Kind>(kind), {micro_batch, layer, sequence}, rows, length);
}

EXPORT int32_t megainfer_m2n_combine(const Port* port, int64_t micro_batch, const Part* parts,
                                     int32_t sum, void* out, int64_t tokens, int64_t stride) {
  return port->combine(micro_batch, parts, static_cast<Sum>(sum), out, tokens, stride);
}

EXPORT int32_t megainfer_m2n_pack(const Layout* layout, const Part* parts, uint8_t* const* payloads,
                                  int64_t count, const uint8_t* hidden, int64_t tokens) {
  return pack(*layout, parts, payloads, count, hidden, tokens);
}

EXPORT int32_t megainfer_m2n_add(const Layout* layout, const Part* parts,
                                 const uint8_t* const* replies, int64_t count, int32_t sum,
                                 void* out, int64_t tokens, int64_t stride) {
  return add(*layout, parts, replies, count, static_cast<Sum>(sum), out, tokens, stride);
}

// The port must outlive it.
EXPORT Sleeper* megainfer_m2n_sleeper_new(const Port* port, uint64_t* awake, int32_t bell,
                                          int64_t spin_ns) {
  return new Sleeper(port->inbox(), awake, bell, spin_ns);
}

EXPORT void megainfer_m2n_sleeper_delete(Sleeper* sleeper) { delete sleeper; }

EXPORT int64_t megainfer_m2n_sleep(Sleeper* sleeper, int64_t timeout_ns, pollfd* watched,
                                   int64_t count) {
  return sleeper->sleep(timeout_ns, watched, count);
}
