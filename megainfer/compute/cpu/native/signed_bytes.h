// A byte of each word as a number, over `Vec`: of any level.
#pragma once

namespace {

// The i-th of the four bytes of each word, which have signs.
inline Vec::I signed_byte(Vec::I words, int i) {
  return Vec::shift_right(Vec::shift_left(words, 24 - 8 * i), 24);
}

}  // namespace
