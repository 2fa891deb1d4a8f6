"""Which arrays of a GGUF file a checkpoint's tensors become.

Names are the gguf package's own map of Hugging Face's; the rest are llama.cpp's conventions:
experts of a layer are stacked, fused projections taken apart, rows of q and k of some architectures
put in another order, keys' part of DeepSeek's latent projection turned.

All of it only moves numbers about, so that the same functions, run on the numbers of places, say
where each number of a GGUF array belongs in the checkpoint (`written_back`).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Named = Iterator[tuple[str, Array]]
"""By Hugging Face's names, or such as gguf's map knows."""

PERMUTED = ("mixtral", "granitemoe", "granitemoeshared")
FUSED_INPUTS = ("granitemoe", "granitemoeshared")


def rearranged(tensors: Mapping[str, Array], config: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays of the file, by their names in it."""
    family, layers = config["model_type"], config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(_architecture(family), layers)
    found = {}
    for name, array in _stacked(_pieces(tensors, config)):
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert ours is not None, name
        found[ours] = np.ascontiguousarray(array)
    return found


def written_back(
    values: Mapping[str, Array], tensors: Mapping[str, Array], config: Mapping[str, Any]
) -> dict[str, Array]:
    """The checkpoint whose arrays in a file are `values`, in the shapes of `tensors`."""
    ends = np.cumsum([array.size for array in tensors.values()])
    places = {
        name: np.arange(end - array.size, end).reshape(array.shape)
        for (name, array), end in zip(tensors.items(), ends, strict=True)
    }
    flat = np.zeros(int(ends[-1]), np.float32)
    for name, where in rearranged(places, config).items():
        flat[where.ravel()] = values[name].ravel()
    return {name: flat[place] for name, place in places.items()}


def _architecture(family: str) -> gguf.MODEL_ARCH:
    names = {
        "mixtral": "LLAMA",
        "granitemoe": "GRANITE_MOE",
        "granitemoeshared": "GRANITE_MOE",
        "deepseek_v2": "DEEPSEEK2",
        "deepseek_v3": "DEEPSEEK2",
        "qwen2_moe": "QWEN2MOE",
        "qwen3_moe": "QWEN3MOE",
        "minimax_m2": "MINIMAXM2",
    }
    return getattr(gguf.MODEL_ARCH, names.get(family, family.upper()))


def _stacked(pieces: Named) -> Named:
    """Experts, in order, as one array a layer."""
    stacks: dict[str, list[Array]] = {}
    for name, array in pieces:
        if re.search(r"experts\.\d+\.", name):
            stacks.setdefault(re.sub(r"experts\.\d+\.", "experts.", name), []).append(array)
        else:
            yield name, array
    for name, arrays in stacks.items():
        yield name, np.stack(arrays)


def _pieces(tensors: Mapping[str, Array], config: Mapping[str, Any]) -> Named:
    for name in sorted(tensors, key=_in_order):
        for pattern, change in _CHANGES.items():
            if re.search(pattern, name) and _applies(pattern, config["model_type"]):
                yield from change(name, tensors[name], config)
                break
        else:
            yield name, tensors[name]


def _in_order(name: str) -> list[int | str]:
    """Expert 10 after expert 9."""
    return [f"{int(part):06}" if part.isdigit() else part for part in name.split(".")]


def _applies(pattern: str, family: str) -> bool:
    if pattern == ROTATED:
        return family in PERMUTED
    return family in FUSED_INPUTS if pattern == FUSED else True


ROTATED, FUSED = r"self_attn\.[qk]_proj\.", r"input_linear\.weight$"


def _rotated(name: str, array: Array, config: Mapping[str, Any]) -> Named:
    """Halves of each head in turns, row by row."""
    key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
    heads = config.get(key) or config["num_attention_heads"]
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    yield name, halves.swapaxes(1, 2).reshape(array.shape)


def _fused_inputs(name: str, array: Array, config: Mapping[str, Any]) -> Named:
    """Granite's gate and up."""
    gate, up = np.split(array, 2, axis=-2)
    stem = name.removesuffix("input_linear.weight")
    experts = stem.replace("block_sparse_moe.", "block_sparse_moe.experts.")
    if experts != stem:
        yield f"{experts}w1.weight", gate
        yield f"{experts}w3.weight", up
    else:
        shared = stem.replace("shared_mlp.", "mlp.shared_expert.")
        yield f"{shared}gate_proj.weight", gate
        yield f"{shared}up_proj.weight", up


def _gpt_oss_experts(name: str, array: Array, config: Mapping[str, Any]) -> Named:
    """Stored [E, inputs, outputs], gate and up in turns."""
    stem, _, part = name.rpartition(".")
    kind = "bias" if part.endswith("_bias") else "weight"
    rows = array if kind == "bias" else array.swapaxes(-1, -2)
    if part.startswith("down_proj"):
        yield f"{stem}.down_proj.{kind}", rows
    else:
        axis = -1 if kind == "bias" else -2
        for first, which in enumerate(("gate_proj", "up_proj")):
            taken = np.take(rows, range(first, rows.shape[axis], 2), axis=axis)
            yield f"{stem}.{which}.{kind}", taken


def _latent(name: str, array: Array, config: Mapping[str, Any]) -> Named:
    """Each head's key rows, turned, and its value rows."""
    heads, keys = config["num_attention_heads"], config["qk_nope_head_dim"]
    by_head = array.reshape(heads, -1, array.shape[-1])
    yield name.replace("kv_b_proj", "k_b_proj"), by_head[:, :keys].swapaxes(1, 2)
    yield name.replace("kv_b_proj", "v_b_proj"), by_head[:, keys:]


def _sinks(name: str, array: Array, config: Mapping[str, Any]) -> Named:
    yield f"{name}.weight", array


def _selection_bias(name: str, array: Array, config: Mapping[str, Any]) -> Named:
    """Ernie's has an axis of one more, which the converter drops."""
    yield name.replace("e_score_correction_bias", "e_score_correction.bias"), array.squeeze()


_CHANGES: Mapping[str, Callable[[str, Array, Mapping[str, Any]], Named]] = {
    ROTATED: _rotated,
    FUSED: _fused_inputs,
    r"mlp\.experts\.(gate_up|down)_proj(_bias)?$": _gpt_oss_experts,
    r"kv_b_proj\.weight$": _latent,
    r"\.sinks$": _sinks,
    r"e_score_correction_bias$": _selection_bias,
}
