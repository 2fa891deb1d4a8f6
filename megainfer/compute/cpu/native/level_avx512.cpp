#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "target.h"
MEGAINFER_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "vec_avx512.h"
#include "signed_bytes.h"

constexpr int prefetch_bytes = 8192;

// After the vector that they are written for.
#include "delta_net.inl"
#include "elementwise.inl"
#include "level.h"
#include "product.inl"
#include "product_e4m3.inl"
#include "product_int8.inl"
#include "product_nibbles.inl"
#include "row_functions.inl"

extern const Level level_avx512 = {
    .name = "avx512",
    .panel_width = panel_width,
    .products = {float_product<Float32>(), float_product<WidenedBfloat16>(),
                 widened_int8_product(), nibble_product<Int4<32>>(), nibble_product<Int4<128>>(),
                 nibble_product<Mxfp4>(), widened_e4m3_product(),
                 widened_int8_product<small_int8_block>()},
    .swiglu = swiglu,
    .activate = activate,
    .add_scaled = add_scaled,
    .widen = widen,
    .narrow = narrow,
    .read_all = read_all,
    .rows = row_functions(),
    .delta = delta_functions(),
};

MEGAINFER_TARGET_END

#endif  // x86-64
