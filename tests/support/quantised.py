"""Weights in each quantised format, as checkpoints store them, and what they mean.

The meaning is written by its formula, element by element, from the stored tensors: nothing is
shared with the reader.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Json = dict[str, Any]
Stored = dict[str, Tensor]  # by what is appended to the module's name


@dataclass(frozen=True)
class Format:
    """config: quantization_config. store: a weight [outputs, inputs] to its tensors on disk.
    meaning: those tensors and the shape to float32. shown: how we name it."""

    config: Json
    store: Callable[[Tensor], Stored]
    meaning: Callable[[Stored, tuple[int, int]], Tensor]
    shown: str
    experts_only: bool = False


# --- formulas ------------------------------------------------------------------------------------


def e4m3(code: int) -> float:
    sign, exponent, mantissa = -1 if code >> 7 else 1, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def e2m1(code: int) -> float:
    sign, exponent, mantissa = -1 if code >> 3 else 1, (code >> 1) & 3, code & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return sign * size


def nibble(words: Any, row: int, column: int) -> int:
    """Four bits of the little-endian bit string that a row of words is."""
    return (int(words[row, column // 8]) >> (4 * (column % 8))) & 15


def from_formula(shape: tuple[int, int], element: Callable[[int, int], Any]) -> Tensor:
    """[i, j] = element(i, j), float32 arithmetic being the element's affair."""
    rows, columns = shape
    flat = np.array([element(i, j) for i in range(rows) for j in range(columns)], dtype=np.float32)
    return torch.from_numpy(flat).view(shape)


def floats(stored: Tensor) -> Any:
    """Scales as float32 in numpy."""
    return stored.to(torch.float32).numpy()


# --- FP8 and int8 --------------------------------------------------------------------------------


def _largest(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """The largest magnitude of each block."""
    rows = [rows.split(block[1], 1) for rows in weight.abs().split(block[0])]
    return torch.stack([torch.stack([part.max() for part in parts]) for parts in rows])


def _spread(values: Tensor, block: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    rows, columns = (torch.arange(n) // b for n, b in zip(shape, block, strict=True))
    return values[rows][:, columns]


def elementwise(
    config: Json,
    block: tuple[int, int] | str,
    shown: str,
    suffix: str = "weight_scale",
    scale_dtype: torch.dtype = torch.float32,
    limit: float = 448.0,
    zeros: bool = False,
) -> Format:
    """FP8 (limit 448) or int8 (limit 127). block: (rows, columns), `channel` or `tensor`."""

    def block_of(shape: tuple[int, ...]) -> tuple[int, int]:
        if block == "tensor":
            return (shape[0], shape[1])
        return (1, shape[1]) if block == "channel" else block  # type: ignore[return-value]

    def store(weight: Tensor) -> Stored:
        size = block_of(weight.shape)
        scales = (_largest(weight, size) / limit).to(scale_dtype)
        codes = weight / _spread(scales.float(), size, weight.shape)
        stored = {"weight": codes.to(torch.float8_e4m3fn), suffix: scales}
        if limit == 127:
            stored["weight"] = codes.round().clamp(-128, 127).to(torch.int8)
        if zeros:
            stored["weight_zero_point"] = (
                (torch.arange(scales.numel()) % 7 - 3).to(torch.int8).view(scales.shape)
            )
        if block == "tensor":
            stored[suffix] = scales.view(1)
        return stored

    def meaning(stored: Stored, shape: tuple[int, int]) -> Tensor:
        rows, columns = block_of(shape)
        codes = stored["weight"].view(torch.uint8 if limit == 448 else torch.int8).numpy()
        scales = floats(stored[suffix]).reshape(-(-shape[0] // rows), -1)
        points = stored["weight_zero_point"].numpy() if zeros else np.zeros(scales.shape, int)

        def element(i: int, j: int) -> Any:
            code = e4m3(int(codes[i, j])) if limit == 448 else float(codes[i, j])
            place = (i // rows, j // columns)
            return np.float32(code - float(points[place])) * scales[place]

        return from_formula(shape, element)

    return Format(config, store, meaning, shown)


# --- packed integers -----------------------------------------------------------------------------


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [rows, columns] from 0 on, into words along the columns."""
    per_word = 32 // bits
    rows, columns = codes.shape
    padded = torch.zeros(rows, -(-columns // per_word) * per_word, dtype=torch.int64)
    padded[:, :columns] = codes
    shifts = torch.arange(per_word) * bits
    words = (padded.view(rows, -1, per_word) << shifts).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _quantise_groups(
    weight: Tensor, group: int, bits: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes from 0 on [outputs, inputs], scales, zero points from 0 on [outputs, groups])."""
    top = (1 << bits) - 1
    block = (1, group)
    scales = (_largest(weight, block) * 2 / top).to(dtype)
    points = torch.arange(scales.numel()).view(scales.shape) % 3 + (top + 1) // 2 - 1
    codes = weight / _spread(scales.float(), block, weight.shape) + _spread(
        points, block, weight.shape
    )
    return codes.round().clamp(0, top).long(), scales, points


def packed(config: Json, group: int | None, bits: int, symmetric: bool, shown: str) -> Format:
    """compressed-tensors' pack-quantized. group: None for a scale a channel."""

    def store(weight: Tensor) -> Stored:
        codes, scales, points = _quantise_groups(
            weight, group or weight.shape[1], bits, torch.bfloat16
        )
        stored = {
            "weight_packed": pack(codes, bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            stored["weight_zero_point"] = pack(points.T, bits).T.contiguous()
        return stored

    def meaning(stored: Stored, shape: tuple[int, int]) -> Tensor:
        words, scales = stored["weight_packed"].numpy(), floats(stored["weight_scale"])
        per_word, mask = 32 // bits, (1 << bits) - 1

        def element(i: int, j: int) -> Any:
            code = (int(words[i, j // per_word]) >> (bits * (j % per_word))) & mask
            at = j // (group or shape[1])
            point = 1 << (bits - 1)
            if not symmetric:
                word = int(stored["weight_zero_point"][i // per_word, at])
                point = (word >> (bits * (i % per_word))) & mask
            return np.float32(code - point) * scales[i, at]

        return from_formula(shape, element)

    return Format(config, store, meaning, shown)


def awq(config: Json, group: int | None, shown: str) -> Format:
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # which output each four bits hold, from the lowest

    def reorder(codes: Tensor) -> Tensor:
        return codes.view(len(codes), -1, 8)[..., order].flatten(1)

    def store(weight: Tensor) -> Stored:
        codes, scales, points = _quantise_groups(weight, group or weight.shape[1], 4, torch.float16)
        return {
            "qweight": pack(reorder(codes.T.contiguous()), 4),
            "qzeros": pack(reorder(points.T.contiguous()), 4),
            "scales": scales.T.contiguous(),
        }

    def meaning(stored: Stored, shape: tuple[int, int]) -> Tensor:
        codes, points = stored["qweight"].numpy(), stored["qzeros"].numpy()
        scales = floats(stored["scales"])

        def element(output: int, source: int) -> Any:
            place = output // 8 * 8 + order.index(output % 8)
            at = source // (group or shape[1])
            code = nibble(codes, source, place) - nibble(points, at, place)
            return np.float32(code) * scales[at, output]

        return from_formula(shape, element)

    return Format(config, store, meaning, shown)


def gptq(
    shown: str, bits: int = 4, group: int | None = 16, act_order: bool = False, v2: bool = False
) -> Format:
    """AutoGPTQ's and GPTQModel's. act_order: inputs lie in groups as a table says. v2: zero points
    are stored as they are, not less 1."""
    config: Json = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group or -1,
        "desc_act": act_order,
        "sym": False,
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
    }
    lacks = 0 if v2 else 1

    def table(inputs: int) -> Tensor:
        """The group of each input: equally many in each, in an order of no pattern."""
        plain = torch.arange(inputs) // (group or inputs)
        generator = torch.Generator().manual_seed(11)
        return plain[torch.randperm(inputs, generator=generator)] if act_order else plain

    def store(weight: Tensor) -> Stored:
        groups = table(weight.shape[1])
        order = groups.argsort(stable=True)
        codes, scales, points = _quantise_groups(
            weight[:, order], group or weight.shape[1], bits, torch.float16
        )
        natural = torch.empty_like(codes)
        natural[:, order] = codes
        return {
            "qweight": pack(natural, bits).T.contiguous(),
            "qzeros": pack(points.T.contiguous() - lacks, bits),
            "scales": scales.T.contiguous(),
            "g_idx": groups.to(torch.int32),
        }

    def meaning(stored: Stored, shape: tuple[int, int]) -> Tensor:
        words, zeros = stored["qweight"].numpy(), stored["qzeros"].numpy()
        scales, per_word, mask = floats(stored["scales"]), 32 // bits, (1 << bits) - 1

        def element(output: int, source: int) -> Any:
            at = int(stored["g_idx"][source])
            code = int(words[source // per_word, output]) >> (bits * (source % per_word)) & mask
            zero = int(zeros[at, output // per_word]) >> (bits * (output % per_word)) & mask
            return np.float32(code - (zero + lacks)) * scales[at, output]

        return from_formula(shape, element)

    return Format(config, store, meaning, shown)


# --- MXFP4 ---------------------------------------------------------------------------------------


def _store_mxfp4(weight: Tensor) -> Stored:
    """The rows' dtype codes of the transposed weight, as fused experts are stored."""
    natural = weight.T.contiguous()
    groups = natural.view(len(natural), -1, 32)
    exponents = (groups.abs().amax(-1) / 6).clamp(min=2.0**-100).log2().ceil().int()
    meanings = torch.tensor([e2m1(code) for code in range(16)])
    scaled = groups / 2.0 ** exponents[..., None]
    codes = (scaled[..., None] - meanings).abs().argmin(-1)
    blocks = codes[..., 0::2] + 16 * codes[..., 1::2]
    return {
        "weight_blocks": blocks.to(torch.uint8),
        "weight_scales": (exponents + 127).to(torch.uint8),
    }


def _mxfp4_meaning(stored: Stored, shape: tuple[int, int]) -> Tensor:
    blocks, scales = stored["weight_blocks"].numpy(), stored["weight_scales"].numpy()

    def element(i: int, j: int) -> Any:  # of the weight: the codes are its columns
        code = int(blocks[j, i // 32, i % 32 // 2]) >> (4 * (i % 2)) & 15
        return np.float32(e2m1(code)) * np.float32(2.0 ** (int(scales[j, i // 32]) - 127))

    return from_formula(shape, element)


def compressed(form: str, **weights: Any) -> Json:
    """A quantization_config of compressed-tensors for all linear layers but the head."""
    scheme = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head", "re:.*mlp\\.gate$"],
    }


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
INV = "weight_scale_inv"
FORMATS: Mapping[str, Format] = {
    "fp8": elementwise(
        {**FP8, "weight_block_size": [128, 128]}, (128, 128), "fp8 (128 x 128 blocks)", INV
    ),
    "fp8_small_blocks": elementwise(
        {**FP8, "weight_block_size": [16, 32]}, (16, 32), "fp8 (16 x 32 blocks)", INV
    ),
    "fp8_ue8m0": elementwise(
        {**FP8, "weight_block_size": [16, 16], "scale_fmt": "ue8m0"},
        (16, 16),
        "fp8 (16 x 16 blocks)",
        INV,
        torch.float8_e8m0fnu,
    ),
    "fp8_tensor": elementwise(dict(FP8), "tensor", "fp8 (a scale a tensor)"),
    "fp8_channel": elementwise(
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        "channel",
        "compressed-tensors fp8 (a scale a channel)",
        scale_dtype=torch.bfloat16,
    ),
    "fp8_block": elementwise(
        compressed(
            "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[16, 8]
        ),
        (16, 8),
        "compressed-tensors fp8 (16 x 8 blocks)",
    ),
    "int8": elementwise(
        compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
        "channel",
        "compressed-tensors int8 (a scale a channel)",
        limit=127,
    ),
    "int8_asymmetric": elementwise(
        compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
        "channel",
        "compressed-tensors int8 (a scale a channel)",
        limit=127,
        zeros=True,
    ),
    "int4": packed(
        compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=16),
        16,
        4,
        True,
        "compressed-tensors int4 (groups of 16)",
    ),
    "int4_asymmetric": packed(
        compressed(
            "pack-quantized",
            num_bits=4,
            type="int",
            strategy="group",
            group_size=8,
            symmetric=False,
        ),
        8,
        4,
        False,
        "compressed-tensors int4 (groups of 8)",
    ),
    "int8_packed_channel": packed(
        compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
        None,
        8,
        True,
        "compressed-tensors int8 (a scale a channel)",
    ),
    "awq": awq(
        {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"},
        16,
        "awq int4 (groups of 16)",
    ),
    "gptq": gptq("gptq int4 (groups of 16)"),
    "gptq_act_order": gptq("gptq int4 (groups of 16)", act_order=True),
    "gptq_v2": gptq("gptq int4 (groups of 16)", act_order=True, v2=True),
    "gptq_int8": gptq("gptq int8 (groups of 16)", bits=8),
    "gptq_int8_channel": gptq("gptq int8 (a scale a channel)", bits=8, group=None),
    "mxfp4": Format(
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
        _store_mxfp4,
        _mxfp4_meaning,
        "mxfp4 (groups of 32)",
        experts_only=True,
    ),
}


def quantise(folder: Path, quantised: Path, meant: Path, form: Format) -> None:
    """Write a checkpoint's copy in this format, and the plain one that it means."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    stored: Stored = {}
    for name in list(tensors):
        if not _is_quantised(name, form):
            stored[name] = tensors[name]
            continue
        own = form.store(tensors[name])
        module = name.removesuffix("weight")
        stored |= {module + part: tensor for part, tensor in own.items()}
        rows, columns = tensors[name].shape
        tensors[name] = form.meaning(own, (rows, columns))
    write(quantised, stored, {**config, "quantization_config": form.config})
    write(meant, tensors, config)


def quantise_fused(folder: Path, quantised: Path, meant: Path, form: Format) -> None:
    """As `quantise`, for the matrices of all experts in one tensor [E, ...] and nothing else."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    stored = dict(tensors)
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts = [form.store(expert) for expert in stored.pop(name)]
        shape = (tensors[name].shape[1], tensors[name].shape[2])
        for part in experts[0]:
            joined = torch.stack([expert[part] for expert in experts])
            stored[name + part.removeprefix("weight")] = joined
        tensors[name] = torch.stack([form.meaning(expert, shape) for expert in experts])
    write(quantised, stored, {**config, "quantization_config": form.config})
    write(meant, tensors, config)


def _is_quantised(name: str, form: Format) -> bool:
    linear = name.endswith("_proj.weight")
    return linear and (".experts." in name or not form.experts_only)


def write(folder: Path, tensors: Stored, config: Json) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
