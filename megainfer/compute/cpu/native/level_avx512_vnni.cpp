#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "target.h"
MEGAINFER_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512vnni")
#include "vec_avx512.h"
#include "signed_bytes_vnni.h"

// Less than a page of 4 KiB: Intel's processors, which this is best on, read ahead by themselves
// within one, and asking for the next is in the way of that.
constexpr int prefetch_bytes = 2048;

// After the vector that they are written for.
#include "delta_net.inl"
#include "elementwise.inl"
#include "level.h"
#include "product.inl"
#include "product_e4m3.inl"
#include "product_int8.inl"
#include "product_nibbles_vnni.inl"
#include "product_vnni.inl"
#include "row_functions.inl"

extern const Level level_avx512_vnni = {
    .name = "avx512_vnni",
    .panel_width = panel_width,
    .products = {float_product<Float32>(), float_product<WidenedBfloat16>(), vnni_product(),
                 vnni_nibble_product<Int4<32>>(), vnni_nibble_product<Int4<128>>(),
                 vnni_nibble_product<Mxfp4>(), widened_e4m3_product(),
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
