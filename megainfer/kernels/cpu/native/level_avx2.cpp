#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "target.h"
MEGAINFER_TARGET("avx2,fma")
#include "vec_avx2.h"
// After the vector that they are written for.
#include "attention.inl"
#include "elementwise.inl"
#include "level.h"
#include "product.inl"
#include "product_int8.inl"

extern const Level level_avx2 = {
    "avx2",
    panel_width,
    Vec::max_rows,
    {float_product<Float32>(), float_product<WidenedBfloat16>(), widened_int8_product()},
    swiglu,
    add_scaled,
    widen,
    narrow,
    row_functions(),
};

MEGAINFER_TARGET_END
