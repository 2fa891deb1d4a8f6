"""Checkpoints of gigabytes, written as hubs have them: in shards, with an index."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from checkpoints import SHAPES, Shape, tensors_of
from safetensors.torch import save_file
from torch import Tensor

LAYERS = {"30B-A3B": Shape(2048, 1, 32, 4, 128, 64, 8, 768, vocabulary=32768), **SHAPES}
"""What a layer is like: by default as Qwen3-30B-A3B's with half of its experts, 0.64 GB in bf16."""
FP8_BLOCK = 128
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}


def write_shards(folder: Path, layer: Shape, num_bytes: int, shard_bytes: int, fp8: bool) -> None:
    """A checkpoint of about so many bytes: as many such layers as it takes, one at least."""
    shape = _shape(layer, num_bytes, fp8)
    config = shape.config() | ({"quantization_config": FP8} if fp8 else {})
    (folder / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(_shards(_stored(shape, fp8), shard_bytes)):
        name = f"model-{number:05}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def forget(files: Iterable[Path]) -> None:
    """Have the system drop what it keeps of these in memory."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _shape(layer: Shape, num_bytes: int, fp8: bool) -> Shape:
    def size(layers: int) -> int:
        tensors = tensors_of(replace(layer, layers=layers), _without_memory)
        return sum(t.numel() * (1 if fp8 and _quantised(name) else 2) for name, t in tensors)

    more = (num_bytes - size(1)) / (size(2) - size(1))
    return replace(layer, layers=1 + max(0, round(more)))


def _without_memory(rows: int, columns: int) -> Tensor:
    return torch.empty(rows, columns, device="meta")


def _quantised(name: str) -> bool:
    return name.endswith("_proj.weight")


def _stored(shape: Shape, fp8: bool) -> Iterator[tuple[str, Tensor]]:
    """Numbers repeat, which makes no difference to who reads them."""
    largest = max(shape.vocabulary, shape.heads * shape.head_dim) * shape.hidden
    noise = (torch.randn(largest, generator=torch.Generator().manual_seed(0)) / 50).bfloat16()

    def matrix(rows: int, columns: int) -> Tensor:
        return noise[: rows * columns].view(rows, columns)

    for name, tensor in tensors_of(shape, matrix):
        if fp8 and _quantised(name):
            rows, columns = (-(-length // FP8_BLOCK) for length in tensor.shape)
            yield name, (tensor.float() * 2000).to(torch.float8_e4m3fn)
            yield f"{name}_scale_inv", torch.full((rows, columns), 1 / 2000)
        else:
            yield name, tensor.clone()


def _shards(tensors: Iterator[tuple[str, Tensor]], num_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        shard[name] = tensor
        if sum(each.nbytes for each in shard.values()) >= num_bytes:
            yield shard
            shard = {}
    if shard:
        yield shard
