#include "rows.h"

#include <cstring>

#include "bfloat16.h"

// Copies of a function for better instruction sets; which one runs is chosen when it is loaded.
#if defined(__x86_64__) && defined(__ELF__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

void gather_rows(const uint8_t* from, const int64_t* rows, int64_t count, uint64_t row_bytes,
                 uint8_t* to) {
  for (int64_t i = 0; i < count;) {
    int64_t run = 1;  // rows that lie together are copied together
    while (i + run < count && rows[i + run] == rows[i] + run) ++run;
    std::memcpy(to + i * row_bytes, from + rows[i] * row_bytes, run * row_bytes);
    i += run;
  }
}

namespace {

CLONES void add_float(const float* reply, int64_t width, float* out) {
  for (int64_t i = 0; i < width; ++i) out[i] += reply[i];
}

CLONES void add_bfloat16_to_float(const uint16_t* reply, int64_t width, float* out) {
  for (int64_t i = 0; i < width; ++i) out[i] += from_bfloat16(reply[i]);
}

CLONES void add_bfloat16(const uint16_t* reply, int64_t width, uint16_t* out) {
  for (int64_t i = 0; i < width; ++i) {
    out[i] = to_bfloat16(from_bfloat16(out[i]) + from_bfloat16(reply[i]));
  }
}

template <typename From, typename To>
void add_each(void (*add)(const From*, int64_t, To*), const uint8_t* reply, const int64_t* rows,
              int64_t count, int64_t width, void* out, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    add(reinterpret_cast<const From*>(reply) + i * width, width,
        static_cast<To*>(out) + rows[i] * stride);
  }
}

}  // namespace

void add_rows(Sum sum, const uint8_t* reply, const int64_t* rows, int64_t count, int64_t width,
              void* out, int64_t stride) {
  switch (sum) {
    case Sum::FLOAT:
      return add_each(add_float, reply, rows, count, width, out, stride);
    case Sum::BFLOAT16_TO_FLOAT:
      return add_each(add_bfloat16_to_float, reply, rows, count, width, out, stride);
    case Sum::BFLOAT16:
      return add_each(add_bfloat16, reply, rows, count, width, out, stride);
  }
}
