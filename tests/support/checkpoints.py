"""Small random checkpoints of every family, and transformers as their oracle.

transformers takes seconds to import, so only functions that need it do.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch

from tests import variants
from tests.support.model_variant import Variant

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


# By model_type: each module of the package is a family.
FAMILIES: Mapping[str, Mapping[str, Variant]] = {
    module.name: import_module(f"{variants.__name__}.{module.name}").VARIANTS
    for module in iter_modules(variants.__path__)
}

VARIANTS: Sequence[tuple[str, str]] = [
    (family, variant) for family, shapes in FAMILIES.items() for variant in shapes
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
    from transformers import AutoModelForCausalLM

    config = _config(family, variant, settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(model, seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    content = json.loads((folder / "config.json").read_text())
    return _write_config(FAMILIES[family][variant], content, folder)


def write_config(family: str, variant: str, folder: Path, **settings: Any) -> Path:
    """Only the config.json that `write_checkpoint` writes, which says all that a plan depends on;
    returns folder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own = {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]], "dtype": "float32"}
    content = {**_config(family, variant, settings).to_dict(), **own, **settings}
    return _write_config(FAMILIES[family][variant], content, folder)


def _config(family: str, variant: str, settings: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    shape = FAMILIES[family][variant]
    return AutoConfig.for_model(family, **{**_BASE, **shape.settings, **settings})


def _write_config(shape: Variant, content: dict[str, Any], folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(shape.rewrite(content)))
    return folder


def _randomise(model: Any, seed: int) -> None:
    """Weights wide enough that attention, routing and each expert matter to the next token."""
    generator = torch.Generator().manual_seed(seed)
    # Some families keep a weight that isn't trained by gradients, as a router's bias, in a buffer.
    buffers = [(name, b) for name, b in model.named_buffers() if name in model.state_dict()]
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *buffers]:
            noise = torch.randn(parameter.shape, generator=generator)
            if re.search(r"norm(_[12f])?\.weight$", name):
                parameter.add_(0.2 * noise)  # about 1, or 0 where 1 is added to it
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif name.endswith("A_log"):  # of states that remember some ten tokens
                parameter.copy_(noise - 2)
            elif "embed_tokens" in name or name.endswith("wte.weight"):
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * _gain(name) / math.sqrt(parameter.shape[-1]))


def _gain(name: str) -> float:
    if re.search(r"\.(gate|wg|router|router\.layer)\.weight$", name):
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
def _greedy_one(model: Any, prompt: list[int], n: int, least_gap: float = 0.0) -> Greedy:
    """It ends early, with the token whose gap is below `least_gap`."""
    tokens, gaps, logits = list[int](), list[float](), list[torch.Tensor]()
    cache, new = None, prompt
    while len(tokens) < n and min(gaps, default=math.inf) >= least_gap:
        output = model(
            torch.tensor([new]), past_key_values=cache, use_cache=True, output_router_logits=True
        )
        cache, last = output.past_key_values, output.logits[0, -1]
        best = last.topk(2)
        router_gaps = _router_gaps(output, _top_k(model.config))
        gaps.append(min([float(best.values[0] - best.values[1]), *router_gaps]))
        tokens.append(int(best.indices[0]))
        logits.append(last)
        new = tokens[-1:]
    return Greedy(tokens, gaps, torch.stack(logits))


def _top_k(config: Any) -> int:
    """Of the first layer, where each has its own."""
    holder = getattr(config, "ffn_config", config)
    top_k = getattr(holder, "num_experts_per_tok", None) or getattr(holder, "moe_top_k", 0)
    return int(top_k[0] if isinstance(top_k, list) else top_k or 0)


def _router_gaps(output: Any, top_k: int) -> Iterator[float]:
    for logits in getattr(output, "router_logits", None) or ():
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
        if (expected := _all_decided(model, prompts, n)) is not None:
            return prompts, expected
    raise AssertionError("no prompts without a near tie in 20 attempts")


def _all_decided(model: Any, prompts: Sequence[Sequence[int]], n: int) -> list[Greedy] | None:
    """None as soon as a choice isn't decided."""
    answers = []
    for prompt in prompts:
        answers.append(_greedy_one(model, list(prompt), n, DECISIVE_GAP))
        if min(answers[-1].gaps) < DECISIVE_GAP:
            return None
    return answers


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
