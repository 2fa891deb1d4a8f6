"""Rotary frequencies in every form of config.json against transformers' own."""

import math
from pathlib import Path

import pytest
import torch

from megainfer.compute.reference.kernels import rope_frequencies
from megainfer.errors import ModelError
from megainfer.models.config import Config
from megainfer.models.rope_config import RopeForm, read_rope
from megainfer.models.spec import AttentionSpec, LongRopeScaling, NtkScaling, RopeSpec

HEAD = 32
BASE = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "head_dim": HEAD,
    "max_position_embeddings": 4096,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1 + 0.1 * i for i in range(HEAD // 2)],
    "long_factor": [2 + 0.5 * i for i in range(HEAD // 2)],
    "original_max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
SETTINGS = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": LLAMA3,
    "llama3_no_between": {**LLAMA3, "high_freq_factor": 1.0},
    "yarn": YARN,
    "yarn_attention_factor": {**YARN, "attention_factor": 1.7},
    "yarn_mscale": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.3},
    "yarn_one_mscale": {**YARN, "mscale": 0.8},
    "yarn_beta": {**YARN, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn_untruncated": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    "yarn_no_factor": {**YARN, "factor": None},
    "yarn_one_pair": {**YARN, "beta_fast": 4.0, "beta_slow": 4.0, "truncate": False},
    "longrope": LONGROPE,
    "longrope_attention_factor": {**LONGROPE, "attention_factor": 1.3},
    "longrope_factor": {**LONGROPE, "factor": 16.0},
}


def old_form(settings: dict, theta: float) -> dict:
    kind = settings.pop("rope_type")
    return {"rope_theta": theta, "rope_scaling": {"type": kind, **settings}}


def new_form(settings: dict, theta: float) -> dict:
    return {"rope_parameters": {**settings, "rope_theta": theta}}


def nested_form(settings: dict, theta: float) -> dict:
    other = {"rope_type": "default", "rope_theta": 10.0}
    nested = {"sliding_attention": other, "full_attention": {**settings, "rope_theta": theta}}
    return {"rope_parameters": nested}


def config_of(**values) -> Config:
    return Config(Path("config.json"), {**BASE, **values})


def expected(
    settings: dict, theta: float, context: int, share: float
) -> tuple[torch.Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {**settings, "rope_theta": theta, "partial_rotary_factor": share}
    config = LlamaConfig(**BASE, rope_parameters=parameters)
    return ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, seq_len=context)


@pytest.mark.parametrize("form", [old_form, new_form, nested_form])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_frequencies_are_those_of_transformers(settings, form):
    config = config_of(**form(dict(settings), 5e5))
    rope = read_rope(config, layer_type="full_attention")
    for context in (300, 4096):
        want, want_factor = expected(settings, 5e5, context, 1.0)
        radians, factor = rope_frequencies(rope, HEAD, context)
        torch.testing.assert_close(radians, want, rtol=2e-6, atol=0)
        assert math.isclose(factor, want_factor, rel_tol=1e-9)


@pytest.mark.parametrize("name", ["linear", "llama3", "yarn"])
def test_a_share_of_the_channels_is_scaled_by_its_own_size(name):
    settings = SETTINGS[name]
    form = RopeForm(head_dim=HEAD, share=0.5)
    rope = read_rope(config_of(**new_form(settings, 1e4)), form=form)
    assert rope.rotated == HEAD // 2
    want, _ = expected(settings, 1e4, 4096, 0.5)
    torch.testing.assert_close(rope_frequencies(rope, 16, 4096).radians, want, rtol=2e-6, atol=0)


def test_the_share_is_the_config_s_then_the_family_s():
    form = RopeForm(head_dim=HEAD, share=0.5)
    assert read_rope(config_of(), form=form).rotated == 16
    assert read_rope(config_of(partial_rotary_factor=0.25), form=form).rotated == 8
    inside = {"rope_parameters": {"partial_rotary_factor": 0.75}}
    assert read_rope(config_of(**inside, partial_rotary_factor=0.25), form=form).rotated == 24


def test_alpha_stretches_theta():
    """As HunYuanMoEV1 has it: theta * alpha^(d / (d - 2)), whatever the context."""
    rope = read_rope(config_of(rope_scaling={"type": "dynamic", "alpha": 1000.0, "factor": 1.0}))
    assert rope.scaling == NtkScaling(1000.0)
    theta = 1e4 * 1000.0 ** (HEAD / (HEAD - 2))
    want = rope_frequencies(RopeSpec(theta), HEAD, 1).radians
    assert torch.equal(rope_frequencies(rope, HEAD, 4096).radians, want)


def test_longrope_takes_mscales_of_its_own():
    settings = {**LONGROPE, "short_mscale": 1.25, "long_mscale": 1.5}
    scaling = read_rope(config_of(rope_scaling=settings)).scaling
    assert isinstance(scaling, LongRopeScaling)
    assert (scaling.short_attention_factor, scaling.long_attention_factor) == (1.25, 1.5)


def test_the_original_context_may_stand_outside():
    """Phi writes it there; llama3 and yarn fall back to max_position_embeddings."""
    settings = {key: value for key, value in LLAMA3.items() if "original" not in key}
    scaling = read_rope(config_of(rope_scaling=settings)).scaling
    assert scaling.original_max_position == 4096
    outside = config_of(rope_scaling=settings, original_max_position_embeddings=256)
    assert read_rope(outside).scaling.original_max_position == 256


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not"),
        ({"rope_scaling": {"type": "ntk"}}, "rope_scaling is .*'ntk'.*supported: default"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "'proportional' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling is .* but factor is missing"),
        ({"rope_scaling": {"type": "yarn", "factor": -1}}, "factor is -1"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}}, "less than low_freq_factor"),
        ({"rope_scaling": {**LONGROPE, "short_factor": None}}, "short_factor must be a list"),
        ({"rope_scaling": {**LONGROPE, "long_factor": ["a"]}}, "long_factor must be a list"),
        ({"rope_parameters": {"full_attention": {}}}, "nothing of layers of type None"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but must be 1"),
        ({"rope_parameters": {"partial_rotary_factor": 2.0}}, "partial_rotary_factor is 2.0"),
    ],
)
def test_refused_by_name_and_value(values, message):
    with pytest.raises(ModelError, match=message):
        read_rope(config_of(**values))


def test_channels_that_can_not_be_rotated_are_refused():
    rope = read_rope(config_of(rope_scaling=LONGROPE))
    with pytest.raises(ModelError, match=r"longrope needs 12 factors.* but has 16"):
        AttentionSpec(4, 4, 24, rope)
    with pytest.raises(ModelError, match="7 channels"):
        AttentionSpec(4, 4, 16, RopeSpec(1e4, rotated=7))
    with pytest.raises(ModelError, match="alpha needs more"):
        AttentionSpec(4, 4, 2, RopeSpec(1e4, NtkScaling(2.0)))
