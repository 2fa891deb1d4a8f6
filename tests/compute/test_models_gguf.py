"""A GGUF file of every family that llama.cpp and we both serve gives what transformers gives on the
dequantised weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from megainfer.checkpoint.reader import WeightReader
from megainfer.model_folder.gguf import gguf_folder
from megainfer.models.registry import load_spec
from megainfer.models.sources import LatentSources
from megainfer.topology import Shard
from tests.support.checkpoints import assert_same_greedy, greedy, oracle, write_checkpoint
from tests.support.generated import NEW_TOKENS, generate, prompts_of
from tests.support.gguf_files.write import write_gguf
from tests.support.node_pair import load_pair

_SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
_MOE = {**_SMALL, "moe_intermediate_size": 32}
_LATENT = {
    **_MOE,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}
CASES: Mapping[str, tuple[str, str, Mapping[str, Any], str, str]] = {
    "mixtral": ("mixtral", "gqa", _SMALL, "Q8_0", "Q4_0"),
    "mixtral_tied": ("mixtral", "mha_tied_old", _SMALL, "Q5_0", "Q4_1"),
    "qwen2_moe": ("qwen2_moe", "gqa", {**_MOE, "norm_topk_prob": False}, "BF16", "Q5_1"),
    "qwen3_moe": ("qwen3_moe", "gqa", _MOE, "F16", "Q8_0"),
    "olmoe": ("olmoe", "mha", _SMALL, "Q8_0", "Q4_1"),
    "olmoe_clipped": ("olmoe", "gqa_clip_tied", {**_SMALL, "norm_topk_prob": False}, "F32", "F16"),
    "granitemoe": ("granitemoe", "multipliers", _SMALL, "Q8_0", "Q8_0"),
    "granitemoeshared": (
        "granitemoeshared",
        "shared",
        {**_SMALL, "shared_intermediate_size": 32},
        "Q8_0",
        "Q4_0",
    ),
    "gpt_oss": ("gpt_oss", "alternating", {**_SMALL, "num_hidden_layers": 4}, "Q8_0", "Q8_0"),
    "glm4_moe": ("glm4_moe", "qk_norm", {**_MOE, "head_dim": 24}, "Q8_0", "Q5_0"),
    "glm4_moe_groups": (
        "glm4_moe",
        "bias_groups",
        {**_MOE, "head_dim": 24, "partial_rotary_factor": 0.5},
        "Q8_0",
        "Q8_0",
    ),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        "dense_first",
        {**_MOE, "moe_norm_min": 1e-12},
        "Q8_0",
        "Q4_1",
    ),
    "dots1": ("dots1", "windows", {**_MOE, "sliding_window": None}, "Q8_0", "Q5_1"),
    "minimax_m2": (
        "minimax_m2",
        "partial",
        {**_SMALL, "head_dim": 24, "rotary_dim": 12},
        "Q8_0",
        "Q8_0",
    ),
    "deepseek_v3": ("deepseek_v3", "groups", _LATENT, "Q8_0", "Q4_0"),
    "deepseek_v2": (
        "deepseek_v2",
        "lite",
        {**_LATENT, "q_lora_rank": None},
        "Q8_0",
        "Q8_0",
    ),
    "deepseek_v2_groups": (
        "deepseek_v2",
        "yarn_groups",
        {**_LATENT, "rope_parameters": _YARN},
        "Q8_0",
        "Q5_0",
    ),
}
QUICK = ("mixtral", "gpt_oss", "deepseek_v3")
cases = [
    pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, case in CASES.items()
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("family", "variant", "settings", "kind", "expert_kind"), cases)
def test_tokens_equal_transformers_on_the_dequantised_weights(
    tmp_path: Path, family, variant, settings, kind, expert_kind
):
    own = write_checkpoint(family, variant, tmp_path / "own", **settings)
    path = write_gguf(own, tmp_path / "model.gguf", kind, expert_kind)
    folder = gguf_folder(path)
    prompts = prompts_of(load_spec(folder).vocab_size)
    expected = greedy(oracle(own), prompts, NEW_TOKENS)
    actual = generate(load_pair(folder, 2), prompts, 100)
    assert_same_greedy(expected, [sequence.tokens for sequence in actual])


def test_a_rank_has_its_own_heads_where_keys_and_values_are_stored_apart(tmp_path: Path):
    family, variant, settings, *kinds = CASES["deepseek_v3"]
    own = write_checkpoint(family, variant, tmp_path / "own", **settings)
    folder = gguf_folder(write_gguf(own, tmp_path / "model.gguf", *kinds))
    spec = load_spec(folder)
    assert spec.names.kv_up_split is not None
    with WeightReader(folder) as reader:
        whole = reader.read(LatentSources(spec, 0).kv_up(), torch.float32)
        ranks = [LatentSources(spec, 0, Shard(rank, 2)) for rank in range(2)]
        parts = [reader.read(rank.kv_up(), torch.float32) for rank in ranks]
    assert [len(part) for part in parts] == [len(whole) // 2] * 2
    assert torch.equal(torch.cat(parts), whole)
