"""No axis of a spec is idle: without it a model no longer gives what transformers gives.

The comparison is that of the parity tests, so this also shows that they would notice.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megainfer.models.registry import load_spec
from megainfer.models.spec import SILU, ActivationSpec, NormKind, QkNorm, RopeSpec, RouterScore
from tests.support import mutations
from tests.support.checkpoints import oracle, write_checkpoint
from tests.support.mutations import Mutation, reference_pair

SEQUENCES = [
    torch.randint(160, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (2, 17, 40)
]


def _swiglu(**values: float | None) -> mutations.Change:
    """gpt-oss' activation with one part of it changed."""
    own = {"limit": 7.0, "alpha": 1.702, "up_offset": 1.0, **values}
    return mutations.expert(activation=ActivationSpec(**own))


MUTATIONS = [
    Mutation("mixtral", "gqa", "normalise", mutations.router(normalise=False)),
    Mutation("mixtral", "gqa", "theta", mutations.rope(theta=1e4)),
    Mutation("olmoe", "mha", "norm over all heads", mutations.attention(qk_norm=QkNorm.NONE)),
    Mutation("olmoe", "gqa_clip_tied", "clip", mutations.attention(clip_qkv=None)),
    Mutation("olmoe", "bias_deep", "bias of q, k, v", mutations.attention(qkv_bias=False)),
    Mutation("olmoe", "bias_deep", "bias of the output", mutations.attention(out_bias=False)),
    Mutation("qwen2_moe", "gqa", "shared expert", mutations.without_shared()),
    Mutation("qwen2_moe", "gqa", "gate of it", mutations.shared(gated=False)),
    Mutation("qwen2_moe", "gqa", "not normalised", mutations.router(normalise=True)),
    Mutation("qwen3_moe", "gqa", "norm by head", mutations.attention(qk_norm=QkNorm.NONE)),
    Mutation("deepseek_v3", "groups", "selection bias", mutations.router(selection_bias=False)),
    Mutation("deepseek_v3", "groups", "groups", mutations.router(groups=None)),
    Mutation("deepseek_v3", "groups", "sigmoid", mutations.router(score=RouterScore.SOFTMAX)),
    Mutation("deepseek_v3", "groups", "normalise", mutations.router(normalise=False)),
    Mutation("deepseek_v3", "groups", "scale", mutations.router(scale=1.0)),
    Mutation("deepseek_v2", "yarn_groups", "groups", mutations.router(groups=None)),
    Mutation("deepseek_v2", "yarn_groups", "scale", mutations.router(scale=1.0)),
    Mutation("gpt_oss", "alternating", "alpha", _swiglu(alpha=1.0)),
    Mutation("gpt_oss", "alternating", "offset", _swiglu(up_offset=0.0)),
    Mutation("dots1", "windows", "windows", mutations.attention(window=None)),
    Mutation("granitemoeshared", "shared", "shared expert", mutations.without_shared()),
    Mutation("deepseek_v2", "yarn_groups", "yarn", mutations.rope(scaling=None)),
    Mutation("deepseek_v2", "yarn_groups", "mscale", mutations.attention(scale=16**-0.5)),
    Mutation("deepseek_v2", "lite", "pairs", mutations.attention(interleaved=False)),
    Mutation("deepseek_v2", "lite", "shared experts", mutations.without_shared()),
    Mutation("deepseek_v2", "bias_tied_top_1", "biases", mutations.attention(bias=False)),
    Mutation("deepseek_v3", "halves_unnormalised", "halves", mutations.attention(interleaved=True)),
    Mutation("deepseek_v3", "groups", "pairs", mutations.attention(interleaved=False)),
    Mutation("deepseek_v32", "nine_positions", "indexer", mutations.attention(indexer=None)),
    Mutation("deepseek_v32", "nine_positions", "its halves", mutations.indexer(interleaved=True)),
    Mutation("deepseek_v32", "nine_positions", "its top-k", mutations.indexer(top_k=10)),
    Mutation("glm_moe_dsa", "seventeen_positions", "pairs", mutations.indexer(interleaved=False)),
    Mutation("glm4_moe_lite", "groups_dense_between", "groups", mutations.router(groups=None)),
    Mutation("granitemoe", "multipliers", "embedding", mutations.multipliers(embedding=1.0)),
    Mutation("granitemoe", "multipliers", "residual", mutations.multipliers(residual=1.0)),
    Mutation("granitemoe", "multipliers", "that of experts", mutations.router(scale=1.0)),
    Mutation("granitemoe", "multipliers", "logits", mutations.multipliers(logits=1.0)),
    Mutation("granitemoe", "multipliers", "scores", mutations.attention(scale=None)),
    Mutation(
        "granitemoe",
        "multipliers",
        "softmax of the chosen",
        mutations.router(score=RouterScore.SOFTMAX),
    ),
    Mutation("granitemoe", "bias_old", "bias", mutations.attention(qkv_bias=False)),
    Mutation("dbrx", "gqa_clip", "clip", mutations.attention(clip_qkv=None)),
    Mutation("dbrx", "gqa_clip", "layer norm", mutations.norm(kind=NormKind.RMS)),
    Mutation("dbrx", "gqa_clip", "normalise", mutations.router(normalise=False)),
    Mutation("dbrx", "unnormalised", "not normalised", mutations.router(normalise=True)),
    Mutation("phimoe", "longrope", "sparsemixer", mutations.router(score=RouterScore.SOFTMAX)),
    Mutation("phimoe", "longrope", "jitter", mutations.router(jitter=0.01)),
    Mutation("phimoe", "longrope", "long rope", mutations.rope(scaling=None)),
    Mutation("phimoe", "longrope", "layer norm", mutations.norm(kind=NormKind.RMS)),
    Mutation("phimoe", "longrope", "bias of norms", mutations.norm(bias=False)),
    Mutation("phimoe", "longrope", "bias of q, k, v", mutations.attention(qkv_bias=False)),
    Mutation("phimoe", "longrope", "bias of the output", mutations.attention(out_bias=False)),
    Mutation("phimoe", "longrope", "bias of the head", mutations.model(lm_head_bias=False)),
    Mutation(
        "ernie4_5_moe", "dense_first", "selection bias", mutations.router(selection_bias=False)
    ),
    Mutation("ernie4_5_moe", "dense_first", "least sum", mutations.router(least_sum=0.0)),
    Mutation("ernie4_5_moe", "dense_first", "normalise", mutations.router(normalise=False)),
    Mutation("ernie4_5_moe", "dense_first", "shared experts", mutations.without_shared()),
    Mutation("ernie4_5_moe", "dense_first", "neighbours", mutations.rope(interleaved=False)),
    Mutation("hunyuan_v1_moe", "alpha", "alpha", mutations.rope(scaling=None)),
    Mutation("hunyuan_v1_moe", "alpha", "norm after", mutations.attention(norm_after_rope=False)),
    Mutation("hunyuan_v1_moe", "alpha", "norms", mutations.attention(qk_norm=QkNorm.NONE)),
    Mutation("hunyuan_v1_moe", "alpha", "normalise", mutations.router(normalise=False)),
    Mutation("hunyuan_v1_moe", "alpha", "shared expert", mutations.without_shared()),
    Mutation("hunyuan_v1_moe", "bias_top1", "bias", mutations.attention(qkv_bias=False)),
    Mutation("mixtral", "mqa_wide_heads", "window", mutations.attention(window=None)),
    Mutation("qwen2_moe", "dense_between", "window", mutations.attention(window=None)),
    Mutation("qwen3_moe", "dense_between", "window", mutations.attention(window=None)),
    Mutation("glm4_moe", "qk_norm", "norm by head", mutations.attention(qk_norm=QkNorm.NONE)),
    Mutation("glm4_moe", "qk_norm", "share rotated", mutations.rope(rotated=None)),
    Mutation("glm4_moe", "qk_norm", "scale", mutations.router(scale=1.0)),
    Mutation("glm4_moe", "bias_groups", "bias", mutations.attention(qkv_bias=False)),
    Mutation("glm4_moe", "bias_groups", "groups", mutations.router(groups=None)),
    Mutation("glm4_moe", "bias_groups", "shared experts", mutations.without_shared()),
    Mutation("minimax_m2", "partial", "share rotated", mutations.rope(rotated=None)),
    Mutation("minimax_m2", "partial", "norms", mutations.attention(qk_norm=QkNorm.NONE)),
    Mutation("minimax_m2", "partial", "selection bias", mutations.router(selection_bias=False)),
    Mutation("minimax_m2", "partial", "sigmoid", mutations.router(score=RouterScore.SOFTMAX)),
    Mutation("gpt_oss", "alternating", "sinks", mutations.attention(sinks=False)),
    Mutation("gpt_oss", "alternating", "window", mutations.attention(window=None)),
    Mutation("gpt_oss", "alternating", "yarn", mutations.rope(scaling=None)),
    Mutation("gpt_oss", "alternating", "bias of q, k, v", mutations.attention(qkv_bias=False)),
    Mutation("gpt_oss", "alternating", "bias of the output", mutations.attention(out_bias=False)),
    Mutation("gpt_oss", "alternating", "bias of the router", mutations.router(bias=False)),
    Mutation("gpt_oss", "alternating", "bias of experts", mutations.expert(bias=False)),
    Mutation(
        "gpt_oss",
        "alternating",
        "softmax of the chosen",
        mutations.router(score=RouterScore.SIGMOID),
    ),
    Mutation("gpt_oss", "mqa_odd", "activation", mutations.expert(activation=SILU)),
    Mutation(
        "gpt_oss",
        "mqa_odd",
        "limit",
        mutations.expert(activation=ActivationSpec(alpha=1.702, up_offset=1.0)),
    ),
    Mutation("llama4_text", "scout", "chunks", mutations.attention(chunk=None)),
    Mutation("llama4_text", "scout", "temperature", mutations.attention(temperature=None)),
    Mutation("llama4_text", "scout", "unit norm", mutations.attention(qk_norm=QkNorm.NONE)),
    Mutation("llama4_text", "scout", "neighbours", mutations.rope(interleaved=False)),
    Mutation("llama4_text", "scout", "llama3", mutations.rope(scaling=None)),
    Mutation("llama4_text", "scout", "no positions", mutations.attention(rope=RopeSpec(5e5))),
    Mutation("llama4_text", "scout", "weight on input", mutations.expert(weight_on_input=False)),
    Mutation("llama4_text", "scout", "shared expert", mutations.without_shared()),
    Mutation("llama4_text", "scout", "sigmoid", mutations.router(score=RouterScore.SOFTMAX)),
    Mutation("llama", "llama3_biased", "llama3", mutations.rope(scaling=None)),
    Mutation("llama", "llama3_biased", "bias of q, k, v", mutations.attention(qkv_bias=False)),
    Mutation("llama", "llama3_biased", "bias of the network", mutations.expert(bias=False)),
    Mutation("mistral", "window", "window", mutations.attention(window=None)),
    Mutation("qwen2", "windows_last", "window", mutations.attention(window=None)),
    Mutation("qwen2", "windows_last", "bias of q, k, v", mutations.attention(qkv_bias=False)),
    Mutation("qwen3", "yarn_tied", "yarn", mutations.rope(scaling=None)),
    Mutation("qwen3", "yarn_tied", "norm by head", mutations.attention(qk_norm=QkNorm.NONE)),
    Mutation("qwen3_next", "grouped", "offset of norms", mutations.norm(unit_offset=False)),
    Mutation("qwen3_next", "grouped", "part of a head", mutations.rope(rotated=None)),
    Mutation("qwen3_next", "grouped", "norms", mutations.attention(qk_norm=QkNorm.NONE)),
    Mutation("qwen3_next", "grouped", "keys", mutations.attention(key_heads=1, key_dim=24)),
    Mutation("qwen3_next", "grouped", "normalise", mutations.router(normalise=False)),
    Mutation("qwen3_next", "grouped", "gate of the shared", mutations.shared(gated=False)),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A variant's folder and the oracle's logits of each sequence, made once."""

    @cache
    def make(family: str, variant: str) -> tuple[Path, list[Tensor]]:
        folder = write_checkpoint(family, variant, tmp_path_factory.mktemp(f"{family}_{variant}"))
        theirs = oracle(folder)
        with torch.inference_mode():
            return folder, [theirs(torch.tensor([tokens])).logits[0] for tokens in SEQUENCES]

    return make


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.family}-{m.axis}")
def test_an_axis_taken_away_changes_what_comes_out(checkpoints, mutation):
    folder, expected = checkpoints(mutation.family, mutation.variant)
    spec = load_spec(folder)
    changed = mutation.change(spec)
    assert changed != spec, "nothing was taken away"
    actual = reference_pair(folder, changed).all_logits(SEQUENCES)
    assert not all(map(close, actual, expected))


@pytest.mark.parametrize(("family", "variant"), sorted({(m.family, m.variant) for m in MUTATIONS}))
def test_with_all_axes_it_is_what_transformers_gives(checkpoints, family, variant):
    folder, expected = checkpoints(family, variant)
    actual = reference_pair(folder, load_spec(folder)).all_logits(SEQUENCES)
    assert all(map(close, actual, expected))


def close(actual: Tensor, expected: Tensor) -> bool:
    """Within the tolerance of the parity tests."""
    return torch.allclose(actual, expected, atol=2e-4, rtol=1e-4)
