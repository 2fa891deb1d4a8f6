"""Settings of single families that would change outputs and aren't supported: refused by name."""

import json
from typing import Any

import pytest

from megainfer.errors import ModelError
from megainfer.models.description import describe_model
from megainfer.models.registry import load_spec
from megainfer.models.spec import ModelSpec, MoESpec

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "DbrxForCausalLM": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "vocab_size": 100,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "Ernie4_5_MoeForCausalLM": {**_COMMON, "moe_intermediate_size": 16},
    "GraniteMoeForCausalLM": {**_COMMON, "num_local_experts": 8, "num_experts_per_tok": 2},
    "HunYuanMoEV1ForCausalLM": {**_COMMON, "num_experts": 8, "moe_topk": [2, 2, 2, 2]},
    "PhimoeForCausalLM": {**_COMMON, "num_local_experts": 8},
    "Dots1ForCausalLM": {
        **_COMMON,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}


@pytest.fixture
def spec_of(tmp_path):
    def read(architecture: str, **changes: Any) -> ModelSpec:
        config = {"architectures": [architecture], **CONFIGS[architecture], **changes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return load_spec(tmp_path)

    return read


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("PhimoeForCausalLM", {"hidden_size": 10**30}, "hidden_size is 10+, but no size exceeds"),
        (
            "DbrxForCausalLM",
            {"ffn_config": {"moe_normalize_expert_weights": 2.0}},
            "ffn_config is .*moe_normalize_expert_weights must be 1 or null",
        ),
        ("DbrxForCausalLM", {"ffn_config": {"ffn_act_fn": {"name": "gelu"}}}, "ffn_act_fn 'gelu'"),
        ("DbrxForCausalLM", {"rope_theta": 1e4}, "attn_config is .*beside it is 10000.0"),
        ("DbrxForCausalLM", {"n_heads": 5}, "d_model is 32, which 5 attention heads"),
        ("Ernie4_5_MoeForCausalLM", {"use_bias": True}, "use_bias is True"),
        ("Ernie4_5_MoeForCausalLM", {"moe_layer_end_index": -2}, "moe_layer_end_index is -2"),
        ("HunYuanMoEV1ForCausalLM", {"use_cla": True}, "use_cla is True"),
        ("HunYuanMoEV1ForCausalLM", {"use_qk_norm": False}, "use_qk_norm is False"),
        ("HunYuanMoEV1ForCausalLM", {"moe_topk": [2, 3, 2, 2]}, "moe_topk is .*must agree"),
        ("HunYuanMoEV1ForCausalLM", {"moe_topk": []}, r"moe_topk is \[\], .*must agree"),
        ("HunYuanMoEV1ForCausalLM", {"num_shared_expert": 2}, "num_shared_expert is 2"),
        (
            "HunYuanMoEV1ForCausalLM",
            {"moe_intermediate_size": [48] * 4},
            "moe_intermediate_size is .*64",
        ),
        ("PhimoeForCausalLM", {"num_experts_per_tok": 3}, "sparsemixer chooses 2 experts, not 3"),
        ("Dots1ForCausalLM", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("GraniteMoeForCausalLM", {"architectures": [["a"]]}, "architectures is .*not supported"),
        ("GraniteMoeForCausalLM", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_refused(spec_of, architecture, changes, message):
    spec_of(architecture)
    with pytest.raises(ModelError, match=message):
        spec_of(architecture, **changes)


def test_theta_of_dbrx_is_where_its_makers_wrote_it(spec_of):
    assert spec_of("DbrxForCausalLM").layers[0].attention.rope.theta == 500000


def test_layers_with_experts_of_ernie(spec_of):
    def sparse(**changes: int) -> list[bool]:
        spec = spec_of("Ernie4_5_MoeForCausalLM", **changes)
        return [isinstance(layer.ffn, MoESpec) for layer in spec.layers]

    assert sparse() == [False, True, True, True]
    assert sparse(moe_layer_end_index=-1) == [False, True, True, True]
    assert sparse(moe_layer_end_index=1) == [False, True, False, False]
    assert sparse(moe_layer_start_index=0, moe_layer_interval=2) == [False, True, False, True]


def test_ernie_ties_its_head_unless_told_otherwise(spec_of):
    assert spec_of("Ernie4_5_MoeForCausalLM").tie_word_embeddings
    assert not spec_of("Ernie4_5_MoeForCausalLM", tie_word_embeddings=False).tie_word_embeddings


def test_published_phi_names_its_class_as_its_own_code_does(spec_of):
    published = spec_of("PhimoeForCausalLM", architectures=["PhiMoEForCausalLM"])
    assert published == spec_of("PhimoeForCausalLM")


def test_alpha_is_described_in_words(spec_of):
    spec = spec_of("HunYuanMoEV1ForCausalLM", rope_scaling={"type": "dynamic", "alpha": 1000.0})
    assert "theta stretched by alpha 1000" in dict(describe_model(spec, None))["attention"]


def test_first_release_of_dots_has_the_router_s_method_as_its_score(spec_of):
    first = spec_of("Dots1ForCausalLM", scoring_func="noaux_tc")
    assert first == spec_of("Dots1ForCausalLM", scoring_func="sigmoid")
