"""Reading a checkpoint's tensors by name from memory-mapped safetensors files.

A process opens only the files, and copies only the tensors, that it asks for.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megainfer.errors import CheckpointError
from megainfer.models.sources import Pieces, Source, attention_sources, expert_sources
from megainfer.models.spec import ModelSpec

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# safetensors' name of a dtype -> bytes an element
FLOAT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


def attention_tensor_names(spec: ModelSpec) -> list[str]:
    """Names of all tensors that an attention node loads."""
    return [source.name for source in attention_sources(spec)]


def expert_tensor_names(spec: ModelSpec, experts: Iterable[int]) -> list[str]:
    """Names of all tensors that an expert node with these global expert ids loads."""
    return [source.name for source in expert_sources(spec, experts)]


class WeightReader:
    """The tensors of one model folder.

    on_bytes: called with the bytes (as they are on disk) read so far, after each tensor.

    Raises CheckpointError naming the file or tensor at fault: no safetensors file, an index that
    is no JSON or names a file that is not there, a corrupt or truncated file, a tensor that is
    missing, misshapen or not of floating point.
    """

    def __init__(self, folder: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        self.on_bytes = on_bytes
        self.bytes_read = 0
        self._folder = folder
        self._open_files: dict[Path, Any] = {}
        self._file_of = self._index()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files; tensors that were read stay valid."""
        self._open_files.clear()

    def get(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A private copy of one tensor, converted to `dtype`."""
        return self.load((Source(name, tuple(shape)),), dtype)

    def load(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """The pieces, converted to `dtype` and concatenated along the first axis."""
        rows = sum(piece.shape[0] for piece in pieces)
        out = torch.empty((rows, *pieces[0].shape[1:]), dtype=dtype)
        self.load_into(out, pieces)
        return out

    def load_into(self, out: Tensor, pieces: Pieces) -> None:
        """Fill `out` with the pieces, one after the other along its first axis."""
        row = 0
        for piece in pieces:
            self._read(piece, out[row : row + piece.shape[0]])
            row += piece.shape[0]

    def total_bytes(self, names: Iterable[str]) -> int:
        """Bytes on disk of these tensors, from the files' headers."""
        return sum(self._size(name) for name in names)

    def _read(self, source: Source, out: Tensor) -> None:
        size = self._size(source.name)
        path = self._path(source.name)
        shape = tuple(self._header(source.name).get_shape())
        if shape != source.shape:
            raise CheckpointError(
                f"{path}: tensor {source.name} has shape {list(shape)}, but config.json calls for "
                f"{list(source.shape)}"
            )
        out.copy_(self._file(path).get_tensor(source.name))
        self.bytes_read += size
        if self.on_bytes is not None:
            self.on_bytes(self.bytes_read)

    def _size(self, name: str) -> int:
        header = self._header(name)
        kind = header.get_dtype()
        if kind not in FLOAT_BYTES:
            raise CheckpointError(
                f"{self._path(name)}: tensor {name} is stored as {kind}, which is not supported; "
                f"supported: {', '.join(FLOAT_BYTES)}"
            )
        elements = 1
        for length in header.get_shape():
            elements *= length
        return int(elements * FLOAT_BYTES[kind])

    def _header(self, name: str) -> Any:
        path = self._path(name)
        try:
            return self._file(path).get_slice(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path} holds no tensor {name}: {error}") from error

    def _path(self, name: str) -> Path:
        if name not in self._file_of:
            raise CheckpointError(f"{self._folder} holds no tensor {name}")
        return self._file_of[name]

    def _file(self, path: Path) -> Any:
        if path not in self._open_files:
            self._open_files[path] = _open(path)
        return self._open_files[path]

    def _index(self) -> dict[str, Path]:
        """For each tensor of the folder, the file that holds it."""
        index = self._folder / INDEX
        if index.exists():
            return _read_index(index)
        path = self._lone_file()
        return dict.fromkeys(self._file(path).keys(), path)

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


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is corrupt or truncated: {error}") from error


def _read_index(index: Path) -> dict[str, Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): index.with_name(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error!r}") from error
    for path in sorted(set(files.values())):
        if not path.exists():
            raise CheckpointError(f"{index} names {path.name}, which is not there")
    return files
