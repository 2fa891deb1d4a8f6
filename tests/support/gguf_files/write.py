"""A small checkpoint, and the same as a GGUF file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

from tests.support.gguf_files.settings import ARCHITECTURES, add_settings
from tests.support.gguf_files.tensors import Array, rearranged, written_back

SINGLE = "model.safetensors"
Tokenizer = Callable[[GGUFWriter], None]


def no_tokenizer(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("none")


def write_gguf(
    folder: Path,
    path: Path,
    kind: str = "Q8_0",
    expert_kind: str | None = None,
    add_tokenizer: Tokenizer = no_tokenizer,
    edit: Callable[[dict[str, Array]], None] = lambda arrays: None,
    **writer_options: Any,
) -> Path:
    """Write the folder's checkpoint as a GGUF file, its matrices as `kind` (experts as
    `expert_kind`), and what they have become there back into the folder.

    edit: of the arrays before they are quantised. writer_options: how the file is split.
    """
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: t.float().numpy() for name, t in load_file(folder / SINGLE).items()}
    arrays = rearranged(tensors, config)
    writer = GGUFWriter(path, ARCHITECTURES[config["model_type"]], **writer_options)
    add_settings(writer, config)
    add_tokenizer(writer)
    edit(arrays)
    kept: dict[str, Array] = {}
    for name, array in arrays.items():
        chosen = (expert_kind or kind) if "_exps." in name else kind
        kept[name] = _add(writer, name, array, chosen)
    _finish(writer)
    back = written_back(kept, tensors, config)
    save_file({name: torch.from_numpy(a) for name, a in back.items()}, folder / SINGLE, _FORMAT)
    return path


_FORMAT: Mapping[str, str] = {"format": "pt"}
PLAIN = ("_norm.", "ffn_gate_inp", ".bias", "exp_probs_b", "attn_sinks")
"""Within names of what llama.cpp never quantises."""


def _add(writer: GGUFWriter, name: str, array: Array, kind: str) -> Array:
    """What it has become."""
    if array.ndim < 2 or any(part in name for part in PLAIN):
        writer.add_tensor(name, array.astype(np.float32))
        return array
    stored = GGMLQuantizationType[kind]
    codes = quantize(np.ascontiguousarray(array, np.float32), stored)
    if kind == "F32":
        writer.add_tensor(name, codes)
    else:
        writer.add_tensor(name, codes, raw_dtype=stored)
    return np.array(dequantize(codes, stored), np.float32).reshape(array.shape)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
