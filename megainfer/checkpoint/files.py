"""Reading parts of the tensors of a model folder.

Bytes go from the file to where they are wanted; nothing is mapped, so what was read leaves no trace
in the process's memory.
"""

import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from megainfer.checkpoint.headers import StoredTensor, TensorHeaders

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""By safetensors' names, those that weights, their codes and scales come in."""


def dtype_of(stored: StoredTensor) -> torch.dtype:
    """Raises CheckpointError for one that no weight comes in."""
    if stored.kind not in DTYPES:
        raise stored.fail(f"is stored as {stored.kind}, which is not supported")
    return DTYPES[stored.kind]


class TensorFiles(TensorHeaders):
    """The tensors of one folder, or of some files, to be read; a file is opened when it is first
    asked for, by whichever thread. Raises as `TensorHeaders`."""

    def __init__(self, place: Path | Sequence[Path]) -> None:
        super().__init__(place)
        self._open: dict[Path, FileIO] = {}

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def read(self, stored: StoredTensor, lines: range) -> Tensor:
        """A copy of these lines (entries of the first axis, ascending) of a tensor."""
        whole = range(lines.start, lines[-1] + 1) if lines else lines
        out = torch.empty((len(whole), *stored.line_shape), dtype=dtype_of(stored))
        self.read_into(out, stored, whole)
        return out[:: lines.step]

    def read_into(self, out: Tensor, stored: StoredTensor, lines: range) -> None:
        """As `read`, for lines without gaps, into a contiguous tensor of the stored dtype."""
        assert lines.step == 1
        assert out.dtype == dtype_of(stored)
        if not out.numel():
            return
        view = out.flatten().view(torch.uint8).numpy().data
        offset = stored.offset + lines.start * stored.line_bytes
        file = self._file(stored.path)
        while view:
            count = os.preadv(file.fileno(), [view], offset)
            if not count:
                raise stored.fail("ends early: the file was truncated while it was read")
            view, offset = view[count:], offset + count

    def _file(self, path: Path) -> FileIO:
        with self._opening:
            if path not in self._open:
                self._open[path] = FileIO(path)
            return self._open[path]
