"""Weights in memory as a safetensors file, for another process of the same host; never pickle.

The format: 8 bytes, little-endian, say how long the JSON is that follows; it has of each tensor its
dtype, its shape, and its first and last byte, counted from the JSON's end.
https://huggingface.co/docs/safetensors
"""

import fcntl
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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


@contextmanager
def shared_weights(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Copy tensors, of whatever device, into memory that other processes of this user can open
    while this lasts, under the path that it gives: `LLM.update_weights` and the server's
    `/update_weights_from_disk` take it, and make no further copy.

    tensors: under the names of the checkpoint that is served, all of them.

    Raises CheckpointError for what is no tensor or of a dtype that no weight comes in, ConfigError
    where there is no memory.
    """
    header = _header(tensors)
    file = os.memfd_create("megainfer-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write(file, header, tensors)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
        yield f"/proc/{os.getpid()}/fd/{file}"
    finally:
        os.close(file)


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries, at = {}, 0
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name} is a {type(tensor).__name__}, not a tensor")
        if tensor.dtype not in KINDS:
            raise CheckpointError(f"tensor {name} is {tensor.dtype}, which no weight comes in")
        end = at + tensor.numel() * tensor.element_size()
        kind, shape = KINDS[tensor.dtype], list(tensor.shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


def _write(file: int, header: bytes, tensors: Mapping[str, Tensor]) -> None:
    at = 8 + len(header)
    size = at + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    try:
        os.posix_fallocate(file, 0, size)
        memory = mmap.mmap(file, size)
    except OSError as error:
        raise ConfigError(f"no memory for weights of {format_bytes(size)}: {error}") from error
    memory[:8] = len(header).to_bytes(8, "little")
    memory[8:at] = header
    data = torch.frombuffer(memory, dtype=torch.uint8)
    for tensor in tensors.values():
        own = tensor.detach().reshape(-1).view(torch.uint8)
        data[at : at + len(own)].copy_(own)
        at += len(own)
    del data  # the last view: what is mapped for writing can't be sealed
    memory.close()
