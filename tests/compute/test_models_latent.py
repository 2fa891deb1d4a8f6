"""Families with latent attention: config.json as their makers publish it, and what is refused."""

import json
from dataclasses import replace
from math import log

import pytest
import torch

from megainfer.config import BLOCK_SIZE
from megainfer.errors import ModelError
from megainfer.models.registry import load_spec
from megainfer.models.spec import (
    ExpertGroups,
    GroupScore,
    IndexerSpec,
    MlaSpec,
    ModelSpec,
    RouterScore,
    SharedExpertSpec,
    YarnScaling,
)
from tests.support.checkpoints import write_checkpoint
from tests.support.mutations import attention, reference_pair
from tests.support.node_pair import load_pair

YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
LATENT = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_act": "silu",
    "rope_theta": 10000,
    "num_nextn_predict_layers": 1,
}
V3 = {
    **LATENT,
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "rope_scaling": YARN,
}
KIMI = {
    **V3,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    "first_k_dense_replace": 1,
    "rope_theta": 50000.0,
    "rope_scaling": {**YARN, "beta_fast": 1.0, "factor": 32.0},
}
LITE = {
    **LATENT,
    "architectures": ["DeepseekV2ForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 102400,
    "max_position_embeddings": 163840,
    "q_lora_rank": None,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}
FLASH = {
    **V3,
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "n_group": 1,
    "topk_group": 1,
    "rope_scaling": None,
    "mlp_layer_types": None,
    "partial_rotary_factor": 1.0,
}
V32 = {
    **V3,
    "architectures": ["DeepseekV32ForCausalLM"],
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
}
GLM5 = {
    **V32,
    "architectures": ["GlmMoeDsaForCausalLM"],
    "index_n_heads": 32,
    "n_group": 1,
    "topk_group": 1,
    "indexer_rope_interleave": True,
    "rope_scaling": None,
}


@pytest.fixture
def spec_of(tmp_path):
    """Write this config.json, with these changes, and read it."""

    def read(config: dict, **changes) -> ModelSpec:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        return load_spec(tmp_path)

    return read


def attention_of(spec: ModelSpec) -> MlaSpec:
    attention = spec.layers[0].attention
    assert isinstance(attention, MlaSpec)
    return attention


def test_deepseek_v3(spec_of):
    spec = spec_of(V3)
    attention, router = attention_of(spec), spec.layers[3].ffn.router
    assert (attention.num_heads, attention.kv_lora_rank, attention.q_lora_rank) == (128, 512, 1536)
    assert (attention.nope_dim, attention.rope_dim, attention.v_dim) == (128, 64, 128)
    assert attention.scale == pytest.approx(192**-0.5 * (0.1 * log(40) + 1) ** 2)
    assert isinstance(attention.rope.scaling, YarnScaling)
    assert attention.rope.scaling.attention_factor == 1.0
    assert (spec.first_moe_layer, len(spec.moe_layers)) == (3, 58)
    assert router.score is RouterScore.SIGMOID
    assert (router.selection_bias, router.normalise, router.scale) == (True, True, 2.5)
    assert router.groups == ExpertGroups(8, 4, GroupScore.TOP2_SUM)
    assert spec.layers[3].ffn.shared == SharedExpertSpec(2048, gated=False)


def test_kimi_k2_keeps_all_groups(spec_of):
    spec = spec_of(KIMI)
    assert spec.layers[1].ffn.router.groups is None
    assert (spec.num_experts, spec.first_moe_layer) == (384, 1)
    assert spec_of(KIMI, architectures=["KimiK2ForCausalLM"]).layers == spec.layers


def test_deepseek_v2_lite(spec_of):
    spec = spec_of(LITE)
    attention, router = attention_of(spec), spec.layers[1].ffn.router
    assert attention.q_lora_rank is None
    assert attention.scale == pytest.approx(192**-0.5 * (0.0707 * log(40) + 1) ** 2)
    assert (router.score, router.groups, router.normalise) == (RouterScore.SOFTMAX, None, False)
    assert spec.layers[1].ffn.shared == SharedExpertSpec(2816, gated=False)


def test_deepseek_v2_s_groups(spec_of):
    grouped = {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3}
    router = spec_of(LITE, **grouped).layers[1].ffn.router
    assert router.groups == ExpertGroups(8, 3, GroupScore.MAX)


def test_glm_4_7_flash(spec_of):
    spec = spec_of(FLASH)
    assert (spec.first_moe_layer, len(spec.moe_layers)) == (1, 46)
    assert attention_of(spec).scale == 256**-0.5
    mixed = spec_of(FLASH, num_hidden_layers=3, mlp_layer_types=["sparse", "dense", "sparse"])
    assert mixed.moe_layers == (0, 2)


def test_experts_in_every_second_layer(spec_of):
    spec = spec_of(LITE, num_hidden_layers=7, first_k_dense_replace=2, moe_layer_freq=2)
    assert spec.moe_layers == (2, 4, 6)


def test_deepseek_v32_is_v3_with_an_indexer(spec_of):
    plain, indexed = attention_of(spec_of(V3)), spec_of(V32)
    assert attention_of(indexed) == replace(plain, indexer=IndexerSpec(64, 128, 2048))
    assert indexed.moe_layers == spec_of(V3).moe_layers
    assert indexed.kv_bytes_per_token(2) == 61 * (576 + 128) * 2


def test_glm_5_s_indexer_has_pairs(spec_of):
    assert attention_of(spec_of(GLM5)).indexer == IndexerSpec(32, 128, 2048, interleaved=True)


def test_an_indexer_that_keeps_all_changes_nothing(tmp_path):
    folder = write_checkpoint("deepseek_v32", "more_than_there_are", tmp_path)
    spec, sequences = load_spec(folder), [list(range(64)), list(range(90, 60, -1))]
    plain = reference_pair(folder, attention(indexer=None)(spec)).all_logits(sequences)
    chosen = reference_pair(folder, spec).all_logits(sequences)
    assert all(map(torch.equal, plain, chosen))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (V3, {"scoring_func": "softmax"}, "scoring_func is 'softmax'.*sigmoid"),
        (V3, {"topk_method": "greedy"}, "topk_method is 'greedy'.*noaux_tc"),
        (V3, {"num_key_value_heads": 8}, "num_key_value_heads is 8.*128"),
        (V3, {"qk_rope_head_dim": 63}, "63 channels of a head can't be rotated"),
        (V3, {"n_group": 7}, "n_group 7 does not divide 256"),
        (V3, {"first_k_dense_replace": -1}, "first_k_dense_replace is -1"),
        (V3, {"kv_lora_rank": None}, "kv_lora_rank is missing"),
        (V3, {"rope_scaling": {"type": "su"}}, "rope type 'su'"),
        (LITE, {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'.*softmax"),
        (LITE, {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'.*group_limited_greedy"),
        (LITE, {"norm_topk_prob": True}, "norm_topk_prob is True"),
        (FLASH, {"mlp_layer_types": ["sparse"]}, "mlp_layer_types .*list of 47"),
        (FLASH, {"mlp_layer_types": ["moe"] * 47}, "mlp_layer_types .*dense or sparse"),
        (V32, {"index_head_dim": 32}, "index_head_dim 32 is less than the 64"),
        (V32, {"q_lora_rank": None}, "q_lora_rank is missing"),
        (V32, {"indexer_rope_interleave": True}, "indexer_rope_interleave is True"),
        (V32, {"layer_types": ["full_attention"] * 61}, "layer_types .*indexed_attention"),
        (GLM5, {"indexer_types": ["full"] * 60 + ["shared"]}, "indexer_types .*full"),
        (GLM5, {"index_topk_freq": 4}, "index_topk_freq is 4"),
        (FLASH, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)
def test_refused_by_name_and_value(spec_of, config, changes, message):
    with pytest.raises(ModelError, match=message):
        spec_of(config, **changes)


def test_a_token_of_deepseek_v3_leaves_576_numbers_a_layer(spec_of):
    assert spec_of(V3).kv_bytes_per_token(2) == 61 * 576 * 2


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_the_cache_takes_what_is_planned(tmp_path, kernels):
    folder = write_checkpoint("deepseek_v3", "groups", tmp_path)
    pair = load_pair(folder, 1, kernels=kernels)
    tokens = pair.kv.num_blocks * BLOCK_SIZE
    assert pair.kv.bytes == tokens * load_spec(folder).kv_bytes_per_token(4) == tokens * 3 * 32 * 4
