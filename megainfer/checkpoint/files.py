"""The safetensors files of a model folder: which tensors they hold, and reading parts of them.

Bytes go from the file to where they are wanted; nothing is mapped, so what was read leaves no trace
in the process's memory.
"""

import json
import os
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megainfer.errors import CheckpointError
from megainfer.models.stored import Source
from megainfer.small_file import MAX_JSON_BYTES, read_small_text

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

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


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file. kind: safetensors' name of its dtype. offset, size: in bytes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        """Raises CheckpointError for one that no weight comes in."""
        if self.kind not in DTYPES:
            raise self.fail(f"is stored as {self.kind}, which is not supported")
        return DTYPES[self.kind]

    def split(self, entries: int | None) -> "StoredTensor":
        """Its first axis as so many entries and what each has of it; None: itself."""
        if entries is None:
            return self
        shape = (entries, self.shape[0] // entries, *self.shape[1:])
        return StoredTensor(self.name, self.kind, shape, self.path, self.offset, self.size)

    def entry(self, index: int | None) -> "StoredTensor":
        """The entry of the first axis, as a tensor of its own; None: itself."""
        if index is None:
            return self
        size = self.size // self.shape[0]
        offset = self.offset + index * size
        return StoredTensor(self.name, self.kind, self.shape[1:], self.path, offset, size)

    @property
    def lines(self) -> range:
        """Its entries along the first axis; a tensor without axes is one line."""
        return range(self.shape[0]) if self.shape else range(1)

    @property
    def line_shape(self) -> tuple[int, ...]:
        """Of what one line holds."""
        return self.shape[1:]

    @property
    def line_bytes(self) -> int:
        return prod(self.line_shape) * self.dtype.itemsize

    def part(
        self, source: Source, shape: tuple[int, ...], kind: str | None = None
    ) -> "StoredTensor":
        """The source's entry, which must have this shape and, if given, kind; CheckpointError
        otherwise."""
        if kind is not None and self.kind != kind:
            raise self.fail(f"is stored as {self.kind}, but must be {kind}")
        fused = () if source.index is None else source.stored_shape[:1]
        self.check_shape((*fused, *shape))
        return self.entry(source.index)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if self.shape != shape:
            raise self.fail(
                f"has shape {list(self.shape)}, but config.json calls for {list(shape)}"
            )

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: tensor {self.name} {problem}")


class TensorFiles:
    """The tensors of one folder by name; files are opened when they are first asked for, by
    whichever thread.

    Raises CheckpointError naming the file or tensor at fault: no safetensors file, an index that
    is no JSON or names a file that is not there, a corrupt or truncated file, no such tensor.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opening = Lock()
        self._open: dict[Path, FileIO] = {}
        self._headers: dict[Path, dict[str, StoredTensor]] = {}
        self._file_of = self._index()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def find(self, name: str) -> StoredTensor:
        if name not in self._file_of:
            raise CheckpointError(f"{self._folder} holds no tensor {name}")
        path = self._file_of[name]
        if name not in self._header(path):
            raise CheckpointError(f"{path} holds no tensor {name}")
        return self._header(path)[name]

    def read(self, stored: StoredTensor, lines: range) -> Tensor:
        """A copy of these lines (entries of the first axis, ascending) of a tensor."""
        whole = range(lines.start, lines[-1] + 1) if lines else lines
        out = torch.empty((len(whole), *stored.line_shape), dtype=stored.dtype)
        self.read_into(out, stored, whole)
        return out[:: lines.step]

    def read_into(self, out: Tensor, stored: StoredTensor, lines: range) -> None:
        """As `read`, for lines without gaps, into a contiguous tensor of the stored dtype."""
        assert lines.step == 1
        assert out.dtype == stored.dtype
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

    def _header(self, path: Path) -> dict[str, StoredTensor]:
        with self._opening:
            if path not in self._headers:
                self._headers[path] = _read_header(path)
            return self._headers[path]

    def _index(self) -> dict[str, Path]:
        """For each tensor of the folder, the file that holds it."""
        index = self._folder / INDEX
        if index.exists():
            return _read_index(index)
        path = self._lone_file()
        return dict.fromkeys(self._header(path), path)

    def _lone_file(self) -> Path:
        single = self._folder / SINGLE
        found = [single] if single.exists() else sorted(self._folder.glob("*.safetensors"))
        if not found:
            raise CheckpointError(f"{self._folder} holds no *.safetensors file")
        if len(found) > 1:
            raise CheckpointError(
                f"{self._folder} holds {len(found)} safetensors files but no {INDEX} that says "
                "which holds what"
            )
        return found[0]


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. The format: 8 bytes, little-endian, say how long the JSON is that
    follows; offsets count from its end."""
    if not path.is_file():  # opening a pipe would wait
        raise CheckpointError(f"{path} is not a regular file")
    try:
        with safe_open(path, framework="pt"):  # checks every size and offset against the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is corrupt or truncated: {error}") from error
    header.pop("__metadata__", None)
    return {name: _stored(name, entry, path, 8 + length) for name, entry in header.items()}


def _stored(name: str, entry: dict[str, list[int]], path: Path, base: int) -> StoredTensor:
    first, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    return StoredTensor(name, str(entry["dtype"]), shape, path, base + first, end - first)


def _read_index(index: Path) -> dict[str, Path]:
    try:
        weight_map = json.loads(read_small_text(index, MAX_JSON_BYTES))["weight_map"]
        files = {str(name): index.with_name(file) for name, file in weight_map.items()}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error!r}") from error
    for path in sorted(set(files.values())):
        if not path.is_file():
            raise CheckpointError(f"{index} names {path.name}, which is not there")
    return files
