// Rows between tensors and slots.
#pragma once

#include <cstdint>

// What dtype the replies have and what they are added to.
enum class Sum : int32_t { FLOAT = 0, BFLOAT16_TO_FLOAT = 1, BFLOAT16 = 2 };

// Copy these rows of `from` to the front of `to`, one after the other.
void gather_rows(const uint8_t* from, const int64_t* rows, int64_t count, uint64_t row_bytes,
                 uint8_t* to);

// Add reply i to row rows[i] of `out`, whose rows are `stride` elements apart.
void add_rows(Sum sum, const uint8_t* reply, const int64_t* rows, int64_t count, int64_t width,
              void* out, int64_t stride);
