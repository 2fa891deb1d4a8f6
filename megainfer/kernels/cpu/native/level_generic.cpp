#include "vec_generic.h"
// After the vector that they are written for.
#include "attention.inl"
#include "elementwise.inl"
#include "level.h"
#include "product.inl"
#include "product_int8.inl"

extern const Level level_generic = {
    "generic",
    panel_width,
    Vec::max_rows,
    {float_product<Float32>(), float_product<WidenedBfloat16>(), widened_int8_product()},
    swiglu,
    add_scaled,
    widen,
    narrow,
    row_functions(),
};
