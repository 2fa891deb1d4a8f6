"""Triton's interpreter, made right for bfloat16, and faster.

As it comes it cuts bits off where a GPU rounds to the nearest even, and multiplies bit patterns in
`tl.dot`. Here bfloat16 goes through float32 and back, rounded by torch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # kernels look at it when they are defined, Triton's own too

import numpy as np
import torch
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter

from tests.support.interpreter_speed import hasten

knobs.runtime.interpret = True
del os.environ["TRITON_INTERPRET"]  # or programs that other tests start would find it

BUILDER: Any = interpreter.InterpreterBuilder
OPERATIONS = ("fadd", "fsub", "fmul", "fdiv", "maximumf", "minimumf", "maxnumf", "minnumf")
COMPARISONS = tuple(
    f"fcmp{kind}{name}" for kind in "OU" for name in ("LT", "GT", "LE", "GE", "EQ", "NE")
)
PREPARED = set[str]()  # modules
WIDER = (tl.float16, tl.float32, tl.float64)


def repair() -> None:
    """Once a process, before the first kernel runs."""
    if getattr(BUILDER, "_rounds", False):
        return
    BUILDER._rounds = True
    hasten()
    cast, dot, convert = BUILDER.cast_impl, BUILDER.create_dot, BUILDER.create_fp_to_fp

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if to.scalar == tl.bfloat16 and (source.dtype.scalar in WIDER or source.dtype.is_int()):
            return _narrowed(source)
        wide = _widened(source)
        return wide if wide.dtype.scalar == to.scalar else cast(self, wide, to)

    def create_fp_to_fp(self: Any, source: Any, to: Any, rounding: Any) -> Any:
        if to.scalar == tl.bfloat16 and source.dtype.scalar in WIDER:
            return _narrowed(source)
        return convert(self, source, to, rounding)

    def create_dot(self: Any, a: Any, b: Any, sums: Any, *options: Any) -> Any:
        return dot(self, _widened(a), _widened(b), sums, *options)

    BUILDER.cast_impl, BUILDER.create_fp_to_fp = cast_impl, create_fp_to_fp
    BUILDER.create_dot = create_dot
    BUILDER.get_bf16 = lambda self, value: _narrowed(self.get_fp32(value))  # which 3.6 lacks
    interpreter.InterpretedFunction.__call__ = _call
    for name in (*OPERATIONS, *COMPARISONS):
        if hasattr(BUILDER, f"create_{name}"):
            _go_through_float32(f"create_{name}")


@contextmanager
def rows_alone() -> Iterator[None]:
    """Within it, a row of `tl.dot` is the same bits wherever in its tile it lies, as on tensor
    cores; the order of a CPU library's sums depends on that."""
    dot = BUILDER.create_dot

    def create_dot(self: Any, a: Any, b: Any, sums: Any, *options: Any) -> Any:
        left, right, total = _widened(a).data, _widened(b).data, sums.data.copy()
        for k in range(left.shape[-1]):
            total += left[..., :, k, None] * right[..., k, None, :]
        return interpreter.TensorHandle(total, sums.dtype.scalar)

    BUILDER.create_dot = create_dot
    try:
        yield
    finally:
        BUILDER.create_dot = dot


def _call(function: Any, *arguments: Any, **constants: Any) -> Any:
    """Of one function of a kernel by another. What comes with Triton prepares the language anew for
    each, which takes milliseconds; once a module is enough."""
    if function.fn.__module__ not in PREPARED:
        interpreter._patch_lang(function.fn)
        PREPARED.add(function.fn.__module__)
    return function.rewrite()(*arguments, **constants)


def _go_through_float32(name: str) -> None:
    operation = getattr(BUILDER, name)

    def widened(self: Any, left: Any, right: Any, *options: Any) -> Any:
        if left.dtype.scalar != tl.bfloat16:
            return operation(self, left, right, *options)
        result = operation(self, _widened(left), _widened(right), *options)
        return _narrowed(result) if result.dtype.scalar == tl.float32 else result

    setattr(BUILDER, name, widened)


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = np.asarray(handle.data).astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _narrowed(handle: Any) -> Any:
    wide = np.ascontiguousarray(handle.data, np.float32)
    bits = torch.from_numpy(wide).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return interpreter.TensorHandle(bits.reshape(wide.shape), tl.bfloat16)
