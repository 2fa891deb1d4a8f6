"""Small random checkpoints of every family, and transformers as their oracle.

transformers takes seconds to import, so only functions that need it do.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Json = dict[str, Any]

# Below this gap the oracle's own choice is a matter of rounding.
DECISIVE_GAP = 1e-4
MAX_INDECISIVE_SHARE = 0.01

_BASE = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Variant:
    """One shape of a family: settings over the family's base, and an edit of config.json."""

    settings: Mapping[str, Any]
    rewrite: Callable[[Json], Json] = lambda config: config


def old_rope(config: Json) -> Json:
    """config.json as transformers 4 wrote it: rope_theta beside rope_scaling, torch_dtype."""
    parameters = config.pop("rope_parameters")
    return {
        **config,
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": config.pop("dtype"),
    }


def old_qwen3(config: Json) -> Json:
    """As `old_rope`; num_experts also went by this name."""
    return {**old_rope(config), "num_experts": config.pop("num_local_experts")}


_QWEN = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}

FAMILIES: Mapping[str, Mapping[str, Variant]] = {
    "qwen3_moe": {
        "gqa": Variant({**_QWEN, "num_key_value_heads": 2, "head_dim": 16, "norm_topk_prob": True}),
        "mha_tied_old": Variant(
            {
                **_QWEN,
                "num_key_value_heads": 4,
                "tie_word_embeddings": True,
                "num_experts_per_tok": 3,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
            old_qwen3,
        ),
        "dense_between": Variant(
            {
                **_QWEN,
                "num_hidden_layers": 5,
                "num_key_value_heads": 1,
                "mlp_only_layers": [0],
                "decoder_sparse_step": 2,
                "attention_bias": True,
                "norm_topk_prob": True,
            }
        ),
    },
    "qwen2_moe": {
        "gqa": Variant(
            {**_QWEN, "num_key_value_heads": 2, "shared_expert_intermediate_size": 32},
            old_rope,
        ),
        "mha_tied": Variant(
            {
                **_QWEN,
                "num_key_value_heads": 4,
                "shared_expert_intermediate_size": 56,
                "tie_word_embeddings": True,
                "norm_topk_prob": True,
                "num_experts": 5,
                "num_experts_per_tok": 4,
            }
        ),
        "dense_between": Variant(
            {
                **_QWEN,
                "num_hidden_layers": 4,
                "num_key_value_heads": 1,
                "shared_expert_intermediate_size": 32,
                "decoder_sparse_step": 2,
                "qkv_bias": False,
                # As long as the context, so that no query ever misses a token.
                "use_sliding_window": True,
                "sliding_window": 256,
            }
        ),
    },
    "mixtral": {
        "gqa": Variant({"num_key_value_heads": 2, "num_local_experts": 8}),
        "mha_tied_old": Variant(
            {
                "num_key_value_heads": 4,
                "num_local_experts": 4,
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
            },
            old_rope,
        ),
        "mqa_wide_heads": Variant(
            {
                "num_key_value_heads": 1,
                "head_dim": 24,
                "num_local_experts": 6,
                "num_experts_per_tok": 3,
                "sliding_window": 512,
            }
        ),
    },
    "olmoe": {
        "mha": Variant({"num_experts": 8, "num_experts_per_tok": 3}, old_rope),
        "gqa_clip_tied": Variant(
            {
                "num_key_value_heads": 2,
                "num_experts": 8,
                "num_experts_per_tok": 2,
                "clip_qkv": 0.8,
                "tie_word_embeddings": True,
                "norm_topk_prob": True,
            }
        ),
        "bias_deep": Variant(
            {
                "num_hidden_layers": 4,
                "num_experts": 5,
                "num_experts_per_tok": 2,
                "attention_bias": True,
                "norm_topk_prob": True,
            }
        ),
    },
}

VARIANTS: Sequence[tuple[str, str]] = [
    (family, variant) for family, variants in FAMILIES.items() for variant in variants
]


def write_checkpoint(
    family: str,
    variant: str,
    folder: Path,
    seed: int = 0,
    max_shard_size: str = "1GB",
    **settings: Any,
) -> Path:
    """Write config.json, generation_config.json and safetensors of one variant; returns folder.

    settings: of the configuration, over the variant's own.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = FAMILIES[family][variant]
    config = AutoConfig.for_model(family, **{**_BASE, **shape.settings, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(model, seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    path = folder / "config.json"
    path.write_text(json.dumps(shape.rewrite(json.loads(path.read_text()))))
    return folder


def _randomise(model: Any, seed: int) -> None:
    """Weights wide enough that attention, routing and each expert matter to the next token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * _gain(name) / math.sqrt(parameter.shape[-1]))


def _gain(name: str) -> float:
    if name.endswith("mlp.gate.weight"):
        return 3.0
    return 2.0 if "experts" in name else 1.5


def oracle(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint as transformers runs it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@dataclass(frozen=True)
class Greedy:
    """The oracle's greedy continuation of one prompt.

    gaps: for each token, the smallest of the gap between the best two logits and the gaps between
    router ranks K and K + 1 of all tokens computed for it. logits: [n, V], what each was chosen by.
    """

    tokens: list[int]
    gaps: list[float]
    logits: torch.Tensor


def greedy(model: Any, prompts: Sequence[Sequence[int]], n: int) -> list[Greedy]:
    """n tokens for each prompt, one prompt at a time, end tokens notwithstanding."""
    return [_greedy_one(model, list(prompt), n) for prompt in prompts]


@torch.inference_mode()
def _greedy_one(model: Any, prompt: list[int], n: int) -> Greedy:
    tokens, gaps, logits = [], [], []
    cache, new = None, prompt
    for _ in range(n):
        output = model(
            torch.tensor([new]), past_key_values=cache, use_cache=True, output_router_logits=True
        )
        cache, last = output.past_key_values, output.logits[0, -1]
        best = last.topk(2)
        top_k = model.config.num_experts_per_tok
        gaps.append(min(float(best.values[0] - best.values[1]), *_router_gaps(output, top_k)))
        tokens.append(int(best.indices[0]))
        logits.append(last)
        new = tokens[-1:]
    return Greedy(tokens, gaps, torch.stack(logits))


def _router_gaps(output: Any, top_k: int) -> Iterator[float]:
    for logits in output.router_logits:
        if logits.shape[-1] > top_k:
            best = logits.topk(top_k + 1, dim=-1).values
            yield float((best[:, -2] - best[:, -1]).min())


def decisive(
    model: Any, prompts_of: Callable[[int], list[list[int]]], n: int
) -> tuple[list[list[int]], list[Greedy]]:
    """The first of `prompts_of(0)`, `prompts_of(1)`, … whose every greedy choice is decided.

    Random models come near a tie now and then; a test that compares many tokens starts from
    prompts for which this one doesn't.
    """
    for seed in range(20):
        prompts = prompts_of(seed)
        expected = greedy(model, prompts, n)
        if all(min(answer.gaps) >= DECISIVE_GAP for answer in expected):
            return prompts, expected
    raise AssertionError("no prompts without a near tie in 20 attempts")


def assert_same_greedy(expected: Sequence[Greedy], actual: Sequence[Sequence[int]]) -> None:
    """Each sequence equals the oracle's, as far as the oracle is decided.

    A sequence is compared up to the first token whose gap is below DECISIVE_GAP; when more than
    MAX_INDECISIVE_SHARE of the sequences have such a token, the comparison proves too little and
    fails as well.
    """
    assert len(actual) == len(expected)
    indecisive = 0
    for index, (want, got) in enumerate(zip(expected, actual, strict=True)):
        decided = next((i for i, gap in enumerate(want.gaps) if gap < DECISIVE_GAP), None)
        indecisive += decided is not None
        assert len(got) == len(want.tokens), f"sequence {index} has {len(got)} tokens"
        assert list(got[:decided]) == want.tokens[:decided], f"sequence {index} differs"
    share = indecisive / len(expected)
    assert share <= MAX_INDECISIVE_SHARE, f"{share:.0%} of the sequences ended undecided"
