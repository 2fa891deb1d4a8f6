"""The header of a GGUF file: metadata, and where each tensor lies.

The format, all little-endian: the bytes GGUF, a version, the numbers of tensors and of metadata,
then each metadatum (key, type, value), then each tensor (name, axes, type, offset), then, from the
next multiple of the alignment on, the tensors.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

gguf's own reader takes a header's counts at their word, and so loops for as long as a hostile one
likes; here no count exceeds what the file's size has room for.
"""

import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Union  # an array's type is only a string before 3.12

from megainfer.errors import CheckpointError
from megainfer.gguf.kinds import KINDS, NAMES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 100_000_000
MAX_TEXTS = 2_000_000
"""Strings of one list. The largest vocabularies have 300,000 tokens, and as many merges."""
MAX_AXES = 4
MAX_NAME_BYTES = 1024
LEAST_METADATUM, LEAST_TENSOR = 13, 24
"""Bytes of a metadatum and of a tensor's entry, at least."""

Value = Union[int, float, bool, str, "array[int]", "array[float]", list[str]]

NUMBERS: Mapping[int, str] = {
    **dict(enumerate("BbHhIif")),
    **dict(enumerate("Qqd", 10)),
}
"""By the number of a metadatum's type, struct's and array's letter for it."""
BOOL, TEXT, LIST = 7, 8, 9


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor. shape: the last axis is the one without gaps, as in torch; of leading axes of one
    element the format knows nothing. offset: of the file. size: in bytes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says. metadata: lists of numbers as arrays."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: tuple[TensorEntry, ...]


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins like one. Raises OSError."""
    if not path.is_file():  # opening a pipe would wait
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> Header:
    """Raises CheckpointError, naming the file, for one that is corrupt, truncated, of another
    version or byte order, or has a tensor of a type that isn't read."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    try:
        with path.open("rb", buffering=1 << 20) as file:
            return _Reader(path, file).header()
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} is corrupt or truncated: {error}") from error


class _Reader:
    """Raises ValueError where the file can't be what it says."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = file.seek(0, 2)
        file.seek(0)
        self._left = min(self._size, MAX_HEADER_BYTES)

    def header(self) -> Header:
        self._check_version()
        tensors = self._count("<Q", LEAST_TENSOR, "tensors")
        metadata = self._metadata(self._count("<Q", LEAST_METADATUM, "metadata"))
        entries = [self._entry() for _ in range(tensors)]
        base = self._aligned(metadata)
        placed = tuple(self._placed(base, *entry) for entry in entries)
        self._check_apart(placed)
        return Header(self._path, metadata, placed)

    def _check_version(self) -> None:
        if self._take(len(MAGIC)) != MAGIC:
            raise ValueError(f"it doesn't begin with {MAGIC.decode()}")
        version = self._number("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "big-endian, which isn't read" if swapped else f"of version {version}"
            raise ValueError(f"it is {what}; versions 2 and 3 are read, little-endian")

    def _metadata(self, count: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self._text()
            if key in found:
                raise ValueError(f"it has {key!r:.80} twice")
            found[key] = self._value(self._number("<I"))
        return found

    def _value(self, kind: int) -> Value:
        if kind == BOOL:
            return bool(self._take(1)[0])
        if kind == TEXT:
            return self._text()
        if kind == LIST:
            return self._list(self._number("<I"))
        number: int | float = self._unpack(f"<{self._letter(kind)}")
        return number

    def _list(self, kind: int) -> Value:
        if kind == TEXT:
            count = self._count("<Q", 8, "strings of a list")
            if count > MAX_TEXTS:
                raise ValueError(f"it has a list of {count} strings, at most {MAX_TEXTS} are read")
            return [self._text() for _ in range(count)]
        numbers = array("B" if kind == BOOL else self._letter(kind))
        count = self._count("<Q", numbers.itemsize, "numbers of a list")
        numbers.frombytes(self._take(count * numbers.itemsize))
        return numbers

    def _letter(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise ValueError(f"it has a value of type {kind}, which the format doesn't know")
        return NUMBERS[kind]

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type, and offset among the tensors."""
        name, axes = self._text(), self._number("<I")
        if len(name) > MAX_NAME_BYTES or not name or axes > MAX_AXES:
            raise ValueError(f"tensor {name!r:.80} has {axes} axes, at most {MAX_AXES} are known")
        lengths = [self._number("<Q") for _ in range(axes)]
        while len(lengths) > 1 and lengths[-1] == 1:
            lengths.pop()
        return name, tuple(reversed(lengths)), self._number("<I"), self._number("<Q")

    def _aligned(self, metadata: Mapping[str, Value]) -> int:
        """Where the tensors begin."""
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment!r:.80}, which is no power of two")
        return -(-self._file.tell() // alignment) * alignment

    def _placed(
        self, base: int, name: str, shape: tuple[int, ...], number: int, offset: int
    ) -> TensorEntry:
        kind = KINDS.get(NAMES.get(number, ""))
        if kind is None:
            raise CheckpointError(
                f"{self._path}: tensor {name} is stored as {NAMES.get(number, f'type {number}')}, "
                f"which is not supported; supported: {', '.join(KINDS)}"
            )
        if not shape or shape[-1] % kind.values or min(shape) < 1:
            raise ValueError(f"{name} is {kind.name} {list(shape)}, in blocks of {kind.values}")
        size = prod(shape) // kind.values * kind.size
        if base + offset + size > self._size:
            raise ValueError(
                f"{name} ends at byte {base + offset + size}, the file at {self._size}"
            )
        return TensorEntry(name, kind.name, shape, base + offset, size)

    def _check_apart(self, tensors: tuple[TensorEntry, ...]) -> None:
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise ValueError("it has two tensors of one name")
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise ValueError(f"{tensor.name} lies where another tensor does")
            end = tensor.offset + tensor.size

    def _count(self, form: str, least: int, what: str) -> int:
        """A number of things that take so many bytes each, at least."""
        count = self._number(form)
        if count * least > self._left:
            raise ValueError(f"it says that it has {count} {what}, more than there is room for")
        return count

    def _text(self) -> str:
        return self._take(self._number("<Q")).decode()

    def _number(self, form: str) -> int:
        number: int = self._unpack(form)
        return number

    def _unpack(self, form: str) -> int:
        number: int
        (number,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return number

    def _take(self, size: int) -> bytes:
        if size > self._left:
            raise ValueError(
                f"its header needs {size} bytes after {self._file.tell()}; it has {self._size} "
                f"bytes, and headers have at most {MAX_HEADER_BYTES}"
            )
        self._left -= size
        content = self._file.read(size)
        if len(content) != size:
            raise ValueError(f"it ends within its header, at byte {self._file.tell()}")
        return content
