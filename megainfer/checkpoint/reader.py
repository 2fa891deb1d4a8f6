"""Reading weights where they are stored: the parts that are wanted, in the dtype that is wanted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from megainfer.checkpoint.encodings.choice import encoding_of
from megainfer.checkpoint.encodings.encoding import Encoding
from megainfer.checkpoint.encodings.plain import Plain
from megainfer.checkpoint.files import TensorFiles, dtype_of
from megainfer.device import HOST, Device
from megainfer.models.quantization import QuantizationSpec, quantization_of
from megainfer.models.stored import Pieces, Source

CHUNK_BYTES = 1 << 18
"""Read at once where bytes aren't those of the result: as floats, too, they are in the cache."""


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class LooseFiles:
    """Weights that aren't in a model folder: safetensors files that hold all of them, and how they
    are quantised."""

    files: tuple[Path, ...]
    quantization: QuantizationSpec | None


class WeightReader:
    """The weights of one model folder, or of files outside of any.

    on_bytes: called with the bytes (as they are on disk) read so far, time and again, by whichever
    thread read them, one at a time. threads: how many work in `share`; all else is safe in each.
    device: where `load` brings them.

    Raises CheckpointError naming the file or tensor at fault: what `TensorFiles` refuses, and a
    tensor that is misshapen or not of floating point.
    """

    def __init__(
        self,
        place: Path | LooseFiles,
        on_bytes: Callable[[int], None] | None = None,
        threads: int = 1,
        device: Device = HOST,
    ) -> None:
        self.on_bytes = on_bytes
        self.threads = threads
        self.device = device
        self._counting = Lock()
        self.bytes_read = 0
        if isinstance(place, Path):
            self._files, self._quantization = TensorFiles(place), quantization_of(place)
        else:
            self._files, self._quantization = TensorFiles(place.files), place.quantization

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
        """Close the files; weights that were read stay valid."""
        self._files.close()

    def get(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A private copy of one whole tensor, converted to `dtype`."""
        return self.load((Source(name, tuple(shape)),), dtype)

    def load(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """What `read` gives, on the device."""
        return self.device.upload(self.read(pieces, dtype))

    def maybe_load(self, pieces: Pieces, dtype: torch.dtype) -> Tensor | None:
        """`load`; None where there are no pieces."""
        return self.load(pieces, dtype) if pieces else None

    def read(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """The pieces, converted to `dtype` and concatenated along the first axis, on the host."""
        rows = sum(piece.shape[0] for piece in pieces)
        out = torch.empty((rows, *pieces[0].shape[1:]), dtype=dtype)
        self.load_into(out, pieces)
        return out

    def load_into(self, out: Tensor, pieces: Pieces) -> None:
        """Fill `out`, on the host, with the pieces, one after the other along its first axis."""
        row = 0
        for piece in pieces:
            self._read(piece, out[row : row + piece.shape[0]])
            row += piece.shape[0]

    def share(self, load: Callable[[Sequence[Item]], None], items: Sequence[Item]) -> None:
        """Have all threads load, each its part of the items; raises what one of them raised."""
        parts = [items[first :: self.threads] for first in range(min(self.threads, len(items)))]
        with ThreadPoolExecutor(max(len(parts), 1), thread_name_prefix="weights") as pool:
            for _ in pool.map(load, parts):
                pass

    def total_bytes(self, sources: Iterable[Source]) -> int:
        """Bytes on disk that reading these takes, from the files' headers."""
        return sum(self._size(source) for source in sources)

    def _encoding(self, source: Source) -> Encoding:
        return encoding_of(self._files, source, self._quantization)

    def _size(self, source: Source) -> int:
        encoding = self._encoding(source)
        lines = _wanted(source, encoding).lines
        sides = sum(side.size for side in encoding.sides)
        return len(lines) * encoding.codes.line_bytes + sides

    def _read(self, source: Source, out: Tensor) -> None:
        """Fill `out`, a chunk of lines of the codes after the other."""
        encoding = self._encoding(source)
        codes = encoding.codes
        wanted = _wanted(source, encoding)
        verbatim = _is_verbatim(encoding, wanted, out)
        sides = [self._files.read(side, side.lines) for side in encoding.sides]
        self._count(sum(side.size for side in encoding.sides))
        for first, part in _chunks(wanted.lines, codes.line_bytes):
            if verbatim:
                self._files.read_into(out[first : first + len(part)], codes, part)
            else:
                weight = encoding.decode(self._files.read(codes, part), part, sides)
                _place(out, first * encoding.packed - wanted.skipped, weight, wanted)
            self._count(len(part) * codes.line_bytes)

    def _count(self, size: int) -> None:
        with self._counting:
            self.bytes_read += size
            if size and self.on_bytes is not None:
                self.on_bytes(self.bytes_read)


class _Wanted(NamedTuple):
    """What a source takes of its codes. lines: which. turned: these are the weight's columns, not
    its rows. cut: what it takes of each, None: all. skipped: entries of the first line that it
    doesn't take, where a line is several."""

    lines: range
    turned: bool
    cut: slice | None
    skipped: int = 0


def _wanted(source: Source, encoding: Encoding) -> _Wanted:
    rows = source.picked
    columns = None if source.columns is None else range(*source.columns)
    if source.transposed == encoding.flipped:
        if encoding.packed > 1:
            raise encoding.codes.fail(
                "is packed along what is stored turned, which isn't supported"
            )
        return _Wanted(rows, False, None if columns is None else _slice(columns))
    if columns is None:
        return _Wanted(encoding.codes.lines, True, _slice(rows))
    first, end = columns.start // encoding.packed, -(-columns.stop // encoding.packed)
    skipped = columns.start - first * encoding.packed
    return _Wanted(range(first, end), True, _slice(rows), skipped)


def _slice(picked: range) -> slice:
    return slice(picked.start, picked.stop, picked.step)


def _is_verbatim(encoding: Encoding, wanted: _Wanted, out: Tensor) -> bool:
    """Whether the bytes on disk are those of the result."""
    if wanted.turned or wanted.cut is not None or wanted.lines.step != 1:
        return False
    plain = isinstance(encoding, Plain) and dtype_of(encoding.codes) == out.dtype
    return plain and out.is_contiguous()


def _place(out: Tensor, first: int, weight: Tensor, wanted: _Wanted) -> None:
    """Lines of codes, or what is wanted of them, as rows or columns of `out` from `first` on; what
    lies outside of it isn't wanted."""
    if not wanted.turned:
        own = weight if wanted.cut is None else weight[:, wanted.cut]
        out[first : first + len(weight)].copy_(own)
        return
    before, end = max(0, -first), min(len(weight), out.shape[1] - first)
    own = weight[before:end, wanted.cut]
    # In two steps, each four times as fast as one that converts and turns.
    out[:, first + before : first + end].copy_(own.mT.contiguous())


def _chunks(lines: range, line_bytes: int) -> Iterator[tuple[int, range]]:
    """Lines that are read together, and how many came before them."""
    count = max(1, CHUNK_BYTES // max(line_bytes * lines.step, 1))
    for first in range(0, len(lines), count):
        yield first, lines[first : first + count]
