// Tiles of AMX: products of bf16 pairs, added in f32, of up to 32 rows with 32 channels.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int tile_rows = 16;     // of rows, of channels and of pairs of inputs
constexpr int tile_inputs = 32;   // a row of 64 bytes
constexpr int tile_bytes = 1024;  // of a whole tile

// What the instruction that shapes tiles reads.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

// The compiler isn't told which memory tiles are read from: it must neither put off what is written
// before, nor do early what is written after.
inline void order_memory() { asm volatile("" ::: "memory"); }

// Sums of up to 16 rows (tiles 0 and 1: the left and the right 16 channels) or up to 32 (2 and 3
// too) that tiles 4 and 5 bring, with channels from tiles 6 and 7. Only one at a time.
template <bool many>
class TileSums {
 public:
  explicit TileSums(int count) {
    alignas(64) TileShapes shapes;
    const int rows[] = {many ? tile_rows : count, many ? count - tile_rows : 0};
    for (int tile = 0; tile < 8; ++tile) {
      const int shape = tile < 4 ? rows[tile / 2] : tile < 6 ? rows[tile - 4] : tile_rows;
      shapes.rows[tile] = static_cast<uint8_t>(shape);
      shapes.row_bytes[tile] = shape > 0 ? 64 : 0;
    }
    order_memory();
    _tile_loadconfig(&shapes);
    order_memory();
  }
  ~TileSums() { _tile_release(); }
  TileSums(const TileSums&) = delete;
  TileSums& operator=(const TileSums&) = delete;

  void clear() {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (many) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }

  // 32 inputs: rows lie side by side, 64 bytes each, pairs of channels `stride` bytes apart.
  void add(const void* rows, const void* left, const void* right, int64_t stride) {
    order_memory();
    _tile_loadd(6, left, stride);
    _tile_loadd(7, right, stride);
    _tile_loadd(4, rows, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (many) {
      _tile_loadd(5, static_cast<const uint8_t*>(rows) + tile_bytes, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    order_memory();
  }

  // out [count, 32]
  void store(float* out) const {
    constexpr int64_t stride = 2 * 64;
    _tile_stored(0, out, stride);
    _tile_stored(1, out + tile_rows, stride);
    if constexpr (many) {
      _tile_stored(2, out + tile_rows * 2 * tile_rows, stride);
      _tile_stored(3, out + tile_rows * 2 * tile_rows + tile_rows, stride);
    }
  }
};

}  // namespace
