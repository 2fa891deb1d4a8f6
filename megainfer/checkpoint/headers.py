"""Which tensors a model folder holds, by the headers of its safetensors or GGUF files. Pure: no
torch, so that a folder is known to be whole before anything is started.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

from megainfer.errors import CheckpointError
from megainfer.gguf.files import SUFFIX
from megainfer.gguf.header import is_gguf, read_header
from megainfer.models.foreign import foreign_weights
from megainfer.models.stored import Source
from megainfer.small_file import MAX_JSON_BYTES, read_small_text

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound
KIND_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
"""By safetensors' names; of others, which no weight comes in, sizes aren't known."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file. kind: safetensors' name of its dtype, or ggml's of its type. offset,
    size: in bytes. gguf: of such a file, in which leading axes of one element aren't told."""

    name: str
    kind: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size: int
    gguf: bool = False

    def shaped(self, shape: tuple[int, ...]) -> "StoredTensor":
        """Itself in this shape, which must be its own. Raises CheckpointError."""
        if self.gguf and _told(shape) == _told(self.shape):
            return replace(self, shape=shape)
        self.check_shape(shape)
        return self

    def split(self, entries: int | None) -> "StoredTensor":
        """Its first axis as so many entries and what each has of it; None: itself."""
        if entries is None:
            return self
        return replace(self, shape=(entries, self.shape[0] // entries, *self.shape[1:]))

    def entry(self, index: int | None) -> "StoredTensor":
        """The entry of the first axis, as a tensor of its own; None: itself."""
        if index is None:
            return self
        size = self.size // self.shape[0]
        offset = self.offset + index * size
        return replace(self, shape=self.shape[1:], offset=offset, size=size)

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
        return self.size // len(self.lines) if self.lines else 0

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


def _told(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without leading axes of one element."""
    first = next((i for i, length in enumerate(shape) if length != 1), len(shape))
    return shape[first:]


class TensorHeaders:
    """The tensors of one folder, or of some files, by name; a file's header is read when it is
    first asked for, by whichever thread.

    Raises CheckpointError naming the file or tensor at fault: no file of weights, an index that is
    no JSON or names a file that is not there, a corrupt or truncated file, no such tensor, one that
    several of the files hold.
    """

    def __init__(self, place: Path | Sequence[Path]) -> None:
        self._opening = Lock()
        self._headers: dict[Path, dict[str, StoredTensor]] = {}
        if isinstance(place, Path):
            self._name = str(place)
            self._file_of = self._index(place)
        else:
            self._name = ", ".join(map(str, place))
            self._file_of = self._tensors_of(place)

    @property
    def files(self) -> list[Path]:
        """Those that hold any of the tensors, ascending."""
        return sorted(set(self._file_of.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def find(self, name: str) -> StoredTensor:
        if name not in self._file_of:
            raise CheckpointError(f"{self._name} holds no tensor {name}")
        path = self._file_of[name]
        if name not in self._header(path):
            raise CheckpointError(f"{path} holds no tensor {name}")
        return self._header(path)[name]

    def _header(self, path: Path) -> dict[str, StoredTensor]:
        with self._opening:
            if path not in self._headers:
                self._headers[path] = _read_header(path)
            return self._headers[path]

    def _index(self, folder: Path) -> dict[str, Path]:
        """For each tensor of the folder, the file that holds it."""
        index = folder / INDEX
        if index.exists():
            return _read_whole_index(index)
        if not any(folder.glob("*.safetensors")) and (parts := sorted(folder.glob(f"*{SUFFIX}"))):
            return self._tensors_of(parts)
        return self._tensors_of([_lone_file(folder)])

    def _tensors_of(self, files: Sequence[Path]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in files:
            for name in self._header(path):
                if name in found:
                    raise CheckpointError(f"both {found[name]} and {path} hold a tensor {name}")
                found[name] = path
        return found


def _lone_file(folder: Path) -> Path:
    single = folder / SINGLE
    found = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not found:
        raise CheckpointError(foreign_weights(folder) or f"{folder} holds no *.safetensors file")
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} holds {len(found)} safetensors files but no {INDEX} that says which holds "
            "what"
        )
    return found[0]


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file."""
    try:
        ggufs = is_gguf(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    return _read_gguf(path) if ggufs else _read_safetensors(path)


def _read_gguf(path: Path) -> dict[str, StoredTensor]:
    return {
        t.name: StoredTensor(t.name, t.kind, t.shape, path, t.offset, t.size, gguf=True)
        for t in read_header(path).tensors
    }


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The format: 8 bytes, little-endian, say how long the JSON is that
    follows; offsets count from its end, and the tensors fill the file without gaps."""
    if not path.is_file():  # opening a pipe would wait
        raise CheckpointError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"it has {size} bytes, and its header says that it has {length}")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            stored = {
                name: _stored(name, entry, path, 8 + length) for name, entry in header.items()
            }
            _check_filled(list(stored.values()), 8 + length, size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is corrupt or truncated: {error}") from error
    return stored


def _stored(name: str, entry: dict[str, Any], path: Path, base: int) -> StoredTensor:
    first, end = map(int, entry["data_offsets"])
    shape, kind = tuple(map(int, entry["shape"])), str(entry["dtype"])
    size = prod(shape) * KIND_BYTES.get(kind, 0)
    if min(shape, default=0) < 0 or (kind in KIND_BYTES and end - first != size):
        raise ValueError(f"{name} is {kind} {list(shape)}, but has {end - first} bytes")
    return StoredTensor(name, kind, shape, path, base + first, end - first)


def _check_filled(tensors: list[StoredTensor], begin: int, end: int) -> None:
    """Raises ValueError unless they lie one after the other from the header to the file's end."""
    at = begin
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != at or tensor.size < 0:
            raise ValueError(f"{tensor.name} begins at byte {tensor.offset}, not {at}")
        at += tensor.size
    if at != end:
        raise ValueError(f"its tensors end at byte {at}, the file at {end}")


def read_index(index: Path) -> dict[str, Path]:
    """For each tensor that an index names, its file. Raises CheckpointError."""
    try:
        weight_map = json.loads(read_small_text(index, MAX_JSON_BYTES))["weight_map"]
        return {str(name): index.with_name(file) for name, file in weight_map.items()}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error!r}") from error


def _read_whole_index(index: Path) -> dict[str, Path]:
    files = read_index(index)
    for path in sorted(set(files.values())):
        if not path.is_file():
            raise CheckpointError(f"{index} names {path.name}, which is not there")
    return files
