// Products with FP8 weights, widened to floats in registers.
#pragma once

#include <cstdint>

#include "e4m3.inl"
#include "product_int8.inl"

namespace {

// The i-th of four codes of each word.
struct E4m3Code {
  // With its exponent moved to a float's place a code is its number, unless it is subnormal: then
  // it is 2^-7 (1 + m / 8) in place of 2^-6 m / 8, which is twice it less 2^-6. For other numbers
  // that is more than they are.
  static Vec::F weight(Vec::I words, int i) {
    const Vec::I lifted = Vec::shift_left(words, 24 - e4m3_bits[i]);
    const Vec::I sign = Vec::bit_and(lifted, Vec::set1i(static_cast<int32_t>(0x80000000u)));
    const Vec::I moved = Vec::bit_and(Vec::shift_right(lifted, 4), Vec::set1i(0x07f00000));
    const Vec::F number = Vec::as_float(Vec::add(moved, Vec::set1i(120 << 23)));
    const Vec::F small = Vec::fma(number, Vec::set1(2.0f), Vec::set1(-least_normal_e4m3));
    return Vec::as_float(Vec::bit_or(Vec::as_bits(Vec::min(number, small)), sign));
  }
};

constexpr Product widened_e4m3_product() {
  return {Vec::max_rows, int8_panel_bytes<>, pack_e4m3_panel<E4m3Words>, widened_int8_row_words,
          pack_widened_int8_rows, multiply_rows<WidenedByteKernel<E4m3Code>>};
}

}  // namespace
