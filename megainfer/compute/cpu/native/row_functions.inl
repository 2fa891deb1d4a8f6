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
      .write_cached = {write_cached_f32, write_cached_bf16},
      .attend_scratch = AttendScratch::floats,
      .attend = {attend<Float32>, attend<WidenedBfloat16>},
      .latent_scratch = latent_scratch,
      .attend_latents = {attend_latents<float>, attend_latents<uint16_t>},
  };
}

}  // namespace
