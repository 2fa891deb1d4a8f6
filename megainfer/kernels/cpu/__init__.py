"""Operations in C++ (in `native/`), row-invariant: the order of a row's additions depends only on
its own length, never on what else is computed with it.

Weights are packed once, for the instruction set that this machine has.
"""

from megainfer.kernels.cpu.experts import LayerExperts

__all__ = ["LayerExperts"]
