// The table of what is done to rows, over `Vec`.
#pragma once

#include "attention.inl"
#include "draw.inl"
#include "latent_attention.inl"
#include "level.h"
#include "rows.inl"

namespace {

constexpr RowFunctions row_functions() {
  return {
      .rms_norm = rms_norm,
      .normalise = normalise,
      .rotate = rotate,
      .rotate_neighbours = rotate_neighbours,
      .softmax = softmax,
      .argmax = argmax,
      .sigmoid = sigmoid,
      .draw_scratch = draw_scratch,
      .draw = draw,
      .write_cached = {write_cached_f32, write_cached_bf16, write_cached_codes<Int8Codes>,
                       write_cached_codes<E4m3Codes>},
      .attend_scratch = AttendScratch::floats,
      .attend = {attend<FloatCache<Float32>>, attend<FloatCache<WidenedBfloat16>>,
                 attend<CodeCache<Int8Codes>>, attend<CodeCache<E4m3Codes>>},
      .write_latent = {FloatLatents<float>::write, FloatLatents<uint16_t>::write,
                       CodeLatents<Int8Codes>::write, CodeLatents<E4m3Codes>::write},
      .latent_scratch = latent_scratch,
      .attend_latents = {attend_latents<FloatLatents<float>>,
                         attend_latents<FloatLatents<uint16_t>>,
                         attend_latents<CodeLatents<Int8Codes>>,
                         attend_latents<CodeLatents<E4m3Codes>>},
  };
}

}  // namespace
