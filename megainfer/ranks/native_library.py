"""The compiled part: whether it is there, and its functions."""

import ctypes
from ctypes import c_int32, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path

from megainfer.native.library import load_library

_FUNCTIONS = {
    "megainfer_ranks_waiter_new": (c_void_p, [c_int64]),
    "megainfer_ranks_waiter_delete": (None, [c_void_p]),
    "megainfer_ranks_wait": (c_int32, [c_void_p, c_void_p, c_uint32, c_int64]),
    "megainfer_ranks_say": (None, [c_void_p, c_uint32]),
}


@cache
def load() -> ctypes.CDLL:
    """The library, its functions typed.

    Raises ConfigError when it was not built, or from older sources than these.
    """
    return load_library(
        Path(__file__).parent, _FUNCTIONS, "the waits of tensor parallelism", "go without it"
    )
