#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "target.h"
MEGAINFER_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512vnni,avx512bf16")
#include "vec_avx512.h"
#include "signed_bytes_vnni.h"

constexpr int prefetch_bytes = 8192;

// After the vector that they are written for.
#include "delta_net.inl"
#include "elementwise.inl"
#include "level.h"
#include "product.inl"
#include "product_bf16.inl"
#include "product_e4m3_bf16.inl"
#include "product_int8.inl"
#include "product_nibbles_vnni.inl"
#include "product_vnni.inl"
#include "row_functions.inl"

extern const Level level_avx512_bf16 = {
    .name = "avx512_bf16",
    .panel_width = panel_width,
    .products = {float_product<Float32>(), bfloat16_product(), vnni_product(),
                 vnni_nibble_product<Int4<32>>(), vnni_nibble_product<Int4<128>>(),
                 vnni_nibble_product<Mxfp4>(), e4m3_bf16_product(),
                 vnni_product<small_int8_block>()},
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
