// A byte of each word as a number, in one instruction (AVX-512 VNNI).
#pragma once

namespace {

// The i-th of the four bytes of each word, which have signs: times 1, plus the others times 0.
inline Vec::I signed_byte(Vec::I words, int i) {
  return _mm512_dpbusd_epi32(_mm512_setzero_si512(), Vec::set1i(1 << 8 * i), words);
}

}  // namespace
