"""Weights in memory as a safetensors file, for another process of the same host; never pickle.

The format: 8 bytes, little-endian, say how long the JSON is that follows; it has of each tensor its
dtype, its shape, and its first and last byte, counted from the JSON's end.
https://huggingface.co/docs/safetensors
"""

import fcntl
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.checkpoint.copies import SEALS
from megainfer.checkpoint.files import DTYPES
from megainfer.config import format_bytes
from megainfer.errors import CheckpointError, ConfigError

KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
"""safetensors' names of dtypes."""
ALIGNMENT = 8
"""Of the data, in bytes, as safetensors has it: the JSON is filled up with spaces."""


class Kind(NamedTuple):
    """Of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return prod(self.shape) * self.dtype.itemsize


@contextmanager
def shared_weights(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Copy tensors, of whatever device, into memory that other processes of this user can open
    while this lasts, under the path that it gives: `LLM.update_weights` and the server's
    `/update_weights_from_disk` take it, and make no further copy.

    tensors: under the names of the checkpoint that is served, all of them.

    Raises CheckpointError for what is no tensor or of a dtype that no weight comes in, ConfigError
    where there is no memory.
    """
    kinds = {name: _kind(name, tensor) for name, tensor in tensors.items()}
    with written_weights(kinds, tensors.values()) as path:
        yield path


@contextmanager
def written_weights(kinds: Mapping[str, Kind], tensors: Iterable[Tensor]) -> Iterator[str]:
    """The same of tensors that come one after the other, of these kinds. Raises ConfigError, and
    whatever `tensors` does."""
    header = _header(kinds)
    size = sum(kind.size for kind in kinds.values())
    file = os.memfd_create("megainfer-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write(file, header, size, tensors)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
        yield f"/proc/{os.getpid()}/fd/{file}"
    finally:
        os.close(file)


def _kind(name: str, tensor: Tensor) -> Kind:
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{name} is a {type(tensor).__name__}, not a tensor")
    if tensor.dtype not in KINDS:
        raise CheckpointError(f"tensor {name} is {tensor.dtype}, which no weight comes in")
    return Kind(tensor.dtype, tuple(tensor.shape))


def _header(kinds: Mapping[str, Kind]) -> bytes:
    entries, at = {}, 0
    for name, kind in kinds.items():
        end = at + kind.size
        place = {"shape": list(kind.shape), "data_offsets": [at, end]}
        entries[name] = {"dtype": KINDS[kind.dtype], **place}
        at = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


def _write(file: int, header: bytes, size: int, tensors: Iterable[Tensor]) -> None:
    at = 8 + len(header)
    size += at
    try:
        os.posix_fallocate(file, 0, size)
        memory = mmap.mmap(file, size)
    except OSError as error:
        raise ConfigError(f"no memory for weights of {format_bytes(size)}: {error}") from error
    memory[:8] = len(header).to_bytes(8, "little")
    memory[8:at] = header
    data = torch.frombuffer(memory, dtype=torch.uint8)
    for tensor in tensors:
        own = tensor.detach().reshape(-1).view(torch.uint8)
        data[at : at + len(own)].copy_(own)
        at += len(own)
    del data  # the last view: what is mapped for writing can't be sealed
    memory.close()
