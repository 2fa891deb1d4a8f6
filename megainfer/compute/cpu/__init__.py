"""The model in C++ for CPUs: `kernels/` (compiled from `native/`) and the halves made of them."""
