"""Operations in C++ (in `native/`), row-invariant: the order of a row's additions depends only on
its own length, never on what else is computed with it.

- library: the compiled library as Python sees it, without torch
- experts: one layer's routed experts

Weights are packed once, for the instruction set that this machine has.
"""
