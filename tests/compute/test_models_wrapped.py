"""The language model of a multimodal checkpoint gives what it gives by itself."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megainfer.models.registry import load_spec
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import load_pair
from tests.support.quantised import FORMATS, quantise, write

PROMPT = torch.randint(160, (19,), generator=torch.Generator().manual_seed(3)).tolist()


def wrap_qwen3_5(alone: Path, folder: Path) -> Path:
    """The same weights as they are published: under another name, each layer's experts as one
    tensor unless quantised, beside a vision tower and a layer that predicts further tokens."""
    config = json.loads((alone / "config.json").read_text())
    quantised = {key: config.pop(key) for key in ("quantization_config",) if key in config}
    wrapper = {
        **quantised,
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": {key: config[key] for key in config if key != "architectures"},
        "vision_config": {"depth": 2},
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    (folder / "config.json").write_text(json.dumps(wrapper))
    tensors = load_file(alone / "model.safetensors")
    spec = load_spec(alone)
    for layer in () if quantised else range(len(spec.layers)):
        _stack_experts(tensors, f"model.layers.{layer}.mlp.experts", spec.num_experts)
    moved = {name.replace("model.", "model.language_model.", 1): t for name, t in tensors.items()}
    extra = {"model.visual.patch_embed.weight": torch.ones(3), "mtp.norm.weight": torch.ones(3)}
    save_file({**moved, **extra}, folder / "model.safetensors")
    return folder


def _stack_experts(tensors: dict[str, Tensor], under: str, count: int) -> None:
    def taken(part: str) -> list[Tensor]:
        return [tensors.pop(f"{under}.{expert}.{part}.weight") for expert in range(count)]

    gates, ups = taken("gate_proj"), taken("up_proj")
    pairs = zip(gates, ups, strict=True)
    tensors[f"{under}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
    tensors[f"{under}.down_proj"] = torch.stack(taken("down_proj"))


def test_qwen3_5(tmp_path_factory):
    alone = write_checkpoint("qwen3_5_moe_text", "grouped", tmp_path_factory.mktemp("alone"))
    wrapped = wrap_qwen3_5(alone, tmp_path_factory.mktemp("wrapped"))
    found, expected = (load_pair(folder, 2).all_logits([PROMPT])[0] for folder in (wrapped, alone))
    assert torch.equal(found, expected)


_KEPT = [
    f"model.language_model.layers.{layer}.linear_attn.in_proj_{part}"
    for layer in (0, 1)
    for part in ("qkv", "z", "b", "a")
]
_FP8 = replace(FORMATS["fp8"], config={**FORMATS["fp8"].config, "modules_to_not_convert": _KEPT})


def test_qwen3_5_whose_experts_are_quantised(tmp_path_factory):
    alone, quantised, meant, wrapped = map(tmp_path_factory.mktemp, ("a", "q", "m", "w"))
    write_checkpoint("qwen3_5_moe_text", "grouped", alone)
    quantise(alone, quantised, meant, _FP8)
    wrap_qwen3_5(quantised, wrapped)
    found, expected = (load_pair(folder, 2).all_logits([PROMPT])[0] for folder in (wrapped, meant))
    assert torch.equal(found, expected)


def _take_apart(tensors: dict[str, Tensor], layer: int) -> None:
    """Llama 4's experts as compressed-tensors has them: each by itself, [outputs, inputs]."""
    under = f"model.layers.{layer}.feed_forward.experts"
    fused = (tensors.pop(f"{under}.{part}") for part in ("gate_up_proj", "down_proj"))
    for expert, (gate_up, down) in enumerate(zip(*fused, strict=True)):
        gate, up = gate_up.T.chunk(2)
        for part, matrix in (("gate_proj", gate), ("up_proj", up), ("down_proj", down.T)):
            tensors[f"{under}.{expert}.{part}.weight"] = matrix.contiguous()


def _join(tensors: dict[str, Tensor], layer: int, count: int) -> None:
    """What `_take_apart` took apart."""
    under = f"model.layers.{layer}.feed_forward.experts"
    _stack_experts(tensors, under, count)
    for part in ("gate_up_proj", "down_proj"):
        tensors[f"{under}.{part}"] = tensors[f"{under}.{part}"].mT.contiguous()


def test_llama_4_whose_experts_are_quantised(tmp_path_factory):
    alone, apart, quantised, meant = map(tmp_path_factory.mktemp, ("l", "a", "q", "m"))
    write_checkpoint("llama4_text", "scout", alone)
    config, spec = json.loads((alone / "config.json").read_text()), load_spec(alone)
    tensors = load_file(alone / "model.safetensors")
    for layer in spec.moe_layers:
        _take_apart(tensors, layer)
    write(apart, tensors, config)
    quantise(apart, quantised, meant, FORMATS["fp8_channel"])
    tensors = load_file(meant / "model.safetensors")
    for layer in spec.moe_layers:
        _join(tensors, layer, spec.num_experts)
    write(meant, tensors, config)
    found, expected = (load_pair(f, 2).all_logits([PROMPT])[0] for f in (quantised, meant))
    assert torch.equal(found, expected)
