"""Loading what all nodes need, once, in the process that they are forked from."""

import os

BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def load_libraries() -> None:
    """numpy and torch, and no thread by it, which a process that forks must not have.

    numpy's OpenBLAS reads how many to start from the environment, and only there; nothing of it is
    used here, and torch, which comes after, is not to be told.
    """
    before = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[BLAS_THREADS]
        if before is not None:
            os.environ[BLAS_THREADS] = before
    import torch  # noqa: F401
