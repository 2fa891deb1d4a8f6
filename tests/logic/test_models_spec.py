"""config.json of each family, in every form it comes in, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from pkgutil import iter_modules

import pytest
from safetensors import safe_open

import megainfer.models.families
from megainfer.errors import ConfigError, ModelError
from megainfer.models.registry import FAMILIES, _overridden, load_spec
from megainfer.models.sources import (
    attention_sources,
    attention_weight_bytes,
    sparse_attention_weights,
)
from megainfer.models.spec import DeltaNetSpec, DenseSpec, MoESpec, QkNorm, SharedExpertSpec
from megainfer.topology import contiguous_placement
from tests import variants
from tests.support.checkpoints import VARIANTS, write_checkpoint, write_config

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
}
QWEN = {**COMMON, "num_experts": 8, "moe_intermediate_size": 16}
CONFIGS = {
    "Qwen3MoeForCausalLM": QWEN,
    "Qwen2MoeForCausalLM": {**QWEN, "shared_expert_intermediate_size": 24},
    "MixtralForCausalLM": {**COMMON, "num_local_experts": 8},
    "OlmoeForCausalLM": {**COMMON, "num_experts": 8},
}


QWEN3_NEXT = {
    **QWEN,
    "head_dim": 8,
    "shared_expert_intermediate_size": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 4,
}


@pytest.fixture
def spec_of(tmp_path):
    """Write config.json of an architecture with these changes, and read it."""

    def read(architecture: str, **changes):
        own = {**CONFIGS, "Qwen3NextForCausalLM": QWEN3_NEXT}.get(architecture, {})
        config = {"architectures": [architecture], **own, **changes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return load_spec(tmp_path)

    return read


every_family = pytest.mark.parametrize("architecture", CONFIGS)


def test_every_family_has_shapes_that_are_compared_with_transformers():
    families = {module.name for module in iter_modules(megainfer.models.families.__path__)}
    shapes = {module.name for module in iter_modules(variants.__path__)}
    assert families == shapes
    assert len(families) == len(FAMILIES)


def test_every_family_is_documented_once():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert {family.title: text.count(f"| {family.title} |") for family in FAMILIES} == {
        family.title: 1 for family in FAMILIES
    }


@every_family
def test_what_all_families_share(spec_of, architecture):
    spec = spec_of(architecture, tie_word_embeddings=True, rms_norm_eps=1e-4)
    assert spec.architecture == architecture
    assert (spec.hidden_size, spec.vocab_size, spec.max_position) == (32, 100, 128)
    assert (spec.num_experts, spec.top_k, len(spec.layers)) == (8, 2, 4)
    assert (spec.norm.eps, spec.tie_word_embeddings) == (1e-4, True)
    assert (spec.moe_layers, spec.first_moe_layer) == ((0, 1, 2, 3), 0)
    attention = spec.layers[0].attention
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (4, 2, 8)


def test_where_the_families_differ(spec_of):
    specs = {name: spec_of(name) for name in CONFIGS}
    layers = {name: spec.layers[0] for name, spec in specs.items()}
    assert {name: layer.attention.qk_norm for name, layer in layers.items()} == {
        "Qwen3MoeForCausalLM": QkNorm.HEAD,
        "Qwen2MoeForCausalLM": QkNorm.NONE,
        "MixtralForCausalLM": QkNorm.NONE,
        "OlmoeForCausalLM": QkNorm.FULL,
    }
    biased = {name for name, layer in layers.items() if layer.attention.qkv_bias}
    assert biased == {"Qwen2MoeForCausalLM"}
    normalised = {name for name, layer in layers.items() if layer.ffn.router.normalise}
    assert normalised == {"MixtralForCausalLM"}
    shared = {name: layer.ffn.shared for name, layer in layers.items() if layer.ffn.shared}
    assert shared == {"Qwen2MoeForCausalLM": SharedExpertSpec(24)}
    sizes = {name: spec.expert.intermediate for name, spec in specs.items()}
    assert list(sizes.values()) == [16, 16, 64, 64]


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "OlmoeForCausalLM"])
def test_absent_kv_heads_mean_one_for_each_head(spec_of, architecture):
    assert spec_of(architecture, num_key_value_heads=None).layers[0].attention.num_kv_heads == 4


@pytest.mark.parametrize("architecture", ["Qwen3MoeForCausalLM", "OlmoeForCausalLM"])
def test_attention_bias_is_for_all_four_projections(spec_of, architecture):
    attention = spec_of(architecture, attention_bias=True).layers[0].attention
    assert (attention.qkv_bias, attention.out_bias) == (True, True)


@pytest.mark.parametrize("architecture", ["Qwen3MoeForCausalLM", "Qwen2MoeForCausalLM"])
def test_dense_layers_in_between(spec_of, architecture):
    spec = spec_of(architecture, num_hidden_layers=6, mlp_only_layers=[3], decoder_sparse_step=2)
    assert spec.moe_layers == (1, 5)
    assert [type(layer.ffn) for layer in spec.layers[:2]] == [DenseSpec, MoESpec]
    assert spec.layers[3].ffn == DenseSpec(64)


def test_recurrent_layers_come_by_interval_or_as_listed(spec_of):
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    by_default, listed = (
        spec_of("Qwen3NextForCausalLM"),
        spec_of("Qwen3NextForCausalLM", layer_types=kinds),
    )
    halves = spec_of("Qwen3NextForCausalLM", full_attention_interval=2)
    recurrent = [
        [isinstance(layer.attention, DeltaNetSpec) for layer in spec.layers]
        for spec in (by_default, halves, listed)
    ]
    assert recurrent == [[True, True, True, False], [True, False] * 2, [False, True, True, False]]
    assert by_default.is_recurrent
    # 3 inputs of 2 x 16 + 24 channels, 4 heads of 8 x 6; softmax layers have no state.
    assert by_default.state_bytes == 3 * 4 * (3 * 56 + 4 * 48)
    assert by_default.layers[3].attention.rope.rotated == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_types": ["linear_attention"] * 3 + ["sliding_attention"]},
            "layer_types is .* full_attention or linear_attention",
        ),
        ({"layer_types": ["full_attention"] * 3}, "layer_types is .* list of 4"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types is .* no KV cache"),
        ({"linear_num_key_heads": 3}, "linear_num_value_heads 4 is not a multiple .* 3"),
        ({"linear_conv_kernel_dim": None}, "linear_conv_kernel_dim is missing"),
    ],
)
def test_recurrent_layers_that_make_no_sense_are_refused(spec_of, changes, message):
    with pytest.raises(ModelError, match=message):
        spec_of("Qwen3NextForCausalLM", **changes)


@every_family
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 7.0, "rope_parameters": {"rope_theta": 5e5}},
    ],
)
def test_rope_settings_in_every_form(spec_of, architecture, rope):
    assert spec_of(architecture, **rope).layers[0].attention.rope.theta == 5e5


@every_family
def test_default_rope_theta_is_the_family_s(spec_of, architecture):
    expected = 1e6 if architecture == "MixtralForCausalLM" else 1e4
    assert spec_of(architecture).layers[0].attention.rope.theta == expected


def test_what_is_not_quantised_is_bfloat16_unless_told_otherwise(spec_of):
    quantised = {"quantization_config": {"quant_method": "fp8"}}
    assert spec_of("MixtralForCausalLM").dtype == "float32"
    assert spec_of("MixtralForCausalLM", **quantised).dtype == "bfloat16"
    assert spec_of("MixtralForCausalLM", **quantised, torch_dtype="float32").dtype == "float32"


@every_family
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "factor is 0.0"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "low_freq_factor is missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'.*supported: silu"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": 30}, "4 attention heads cannot share"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9.*8 experts"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ],
)
def test_refused_by_name_and_value(spec_of, architecture, changes, message):
    with pytest.raises(ModelError, match=message):
        spec_of(architecture, **changes)


ON, NONE, EVERY = {"use_sliding_window": True}, [None] * 4, [60] * 4
SOME = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
DENSE = {**COMMON, "num_experts_per_tok": None}


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("MixtralForCausalLM", {}, EVERY),
        ("MixtralForCausalLM", {"sliding_window": None}, NONE),
        ("MixtralForCausalLM", {"sliding_window": 128}, NONE),
        ("Qwen3MoeForCausalLM", {}, NONE),
        ("Qwen3MoeForCausalLM", ON, EVERY),
        ("Qwen2MoeForCausalLM", {}, NONE),
        ("Qwen2MoeForCausalLM", ON, [60, None, 60, None]),
        ("Qwen2MoeForCausalLM", {**ON, "max_window_layers": 1}, [60, None, None, None]),
        ("Qwen2MoeForCausalLM", {**ON, "max_window_layers": 0}, NONE),
        ("Qwen2MoeForCausalLM", {**ON, "layer_types": SOME}, [None, 60, None, None]),
        ("MistralForCausalLM", {**DENSE}, EVERY),
        ("MistralForCausalLM", {**DENSE, "sliding_window": None}, NONE),
        ("Qwen3ForCausalLM", {**DENSE, **ON, "max_window_layers": 3}, [None, None, None, 60]),
        ("Qwen2ForCausalLM", {**DENSE, "layer_types": SOME}, NONE),
    ],
)
def test_windows_by_layer(spec_of, architecture, changes, expected):
    spec = spec_of(architecture, **{"sliding_window": 60, **changes})
    assert [layer.attention.window for layer in spec.layers] == expected


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("GptOssForCausalLM", {}, "rope_scaling is None"),
        ("MiniMaxM2ForCausalLM", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("MiniMaxM2ForCausalLM", {"qk_norm_type": "per_head"}, "qk_norm_type is 'per_head'"),
        ("MiniMaxM2ForCausalLM", {"shared_intermediate_size": 8}, "shared expert is not"),
        ("MiniMaxM2ForCausalLM", {"attn_type_list": [1, 0, 1, 1]}, "linear attention is not"),
        ("Llama4ForCausalLM", {"no_rope_layers": [1, 0]}, "must say it of 4 layers"),
        ("Llama4ForCausalLM", {"layer_types": ["linear_attention"] * 4}, "or chunked_attention"),
        ("MistralForCausalLM", {"layer_types": SOME}, "must be a list of 4: full_attention"),
    ],
)
def test_what_a_family_does_not_have_is_refused(spec_of, architecture, changes, message):
    own = {"num_local_experts": 8, "intermediate_size_mlp": 64}
    with pytest.raises(ModelError, match=message):
        spec_of(architecture, **{**COMMON, **own, **changes})


def test_a_dense_model_s_network_is_its_only_expert(spec_of):
    spec = spec_of("LlamaForCausalLM", **DENSE)
    assert (spec.num_experts, spec.top_k, spec.moe_layers) == (1, 1, (0, 1, 2, 3))
    with pytest.raises(ConfigError, match=r"2 expert nodes .* the model has 1 expert"):
        contiguous_placement(spec.num_experts, 2, spec.moe_layers)


def test_the_language_model_of_a_multimodal_checkpoint(spec_of):
    text = {**COMMON, "num_local_experts": 8, "intermediate_size_mlp": 64}
    alone = spec_of("Llama4ForCausalLM", **text, dtype="bfloat16")
    wrapped = spec_of(
        "Llama4ForConditionalGeneration", text_config=text, dtype="bfloat16", vision_config={}
    )
    assert replace(wrapped, names=alone.names) == alone
    names = {source.name for source in attention_sources(wrapped)}
    assert "language_model.lm_head.weight" in names
    assert all(name.startswith("language_model.") for name in names)
    with pytest.raises(ModelError, match=r"text_config is \{\}, but must describe"):
        spec_of("Llama4ForConditionalGeneration", text_config={})


@pytest.mark.parametrize("kinds", [["linear_attention"] * 4, "full_attention", 5])
def test_unknown_layer_types_are_refused(spec_of, kinds):
    with pytest.raises(ModelError, match="layer_types is"):
        spec_of("Qwen2MoeForCausalLM", use_sliding_window=True, layer_types=kinds)


def test_a_checkpoint_without_experts_is_refused(spec_of):
    with pytest.raises(ModelError, match="no layer of this checkpoint has experts"):
        spec_of("Qwen3MoeForCausalLM", mlp_only_layers=[0, 1, 2, 3])


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (None, None, ()),
        (7, None, (7,)),
        ([7, 8], None, (7, 8)),
        (7, {"eos_token_id": [9, 10]}, (9, 10)),
        (7, {"eos_token_id": 9}, (9,)),
        (7, {}, (7,)),
        (7, {"eos_token_id": None}, (7,)),
    ],
)
def test_end_tokens(spec_of, tmp_path, config, generation, expected):
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert spec_of("MixtralForCausalLM", eos_token_id=config).eos_token_ids == expected


def test_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="is not a folder"):
        load_spec(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_spec(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "[1]", "\x00"])
def test_config_that_is_no_json_object(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_spec(tmp_path)


@pytest.mark.parametrize("architectures", [None, [], "MixtralForCausalLM", ["GPT2LMHeadModel"]])
def test_unsupported_architecture_is_refused(tmp_path, architectures):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    with pytest.raises(ModelError, match="architectures is"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"architectures": ["Qwen4MoeForCausalLM"]},
            "the nearest that are: Qwen3MoeForCausalLM, Qwen2MoeForCausalLM",
        ),
        (
            {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "vision_config": {}},
            "it takes vision beside text, and vision isn't served",
        ),
        (
            {"architectures": ["Whisper"], "vision_config": {}, "audio_config": {}},
            "and audio isn't",
        ),
        ({"architectures": ["BertModel"]}, "`megainfer models` lists all families"),
    ],
)
def test_an_unsupported_architecture_is_told_what_is_near(tmp_path, config, told):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=told) as failure:
        load_spec(tmp_path)
    assert len(str(failure.value).removeprefix(str(tmp_path))) < 300


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pytorch_model.bin", "a pickle.*convert it once.*save_pretrained"),
        ("consolidated.00.pth", "a pickle"),
    ],
)
def test_a_folder_of_another_format_says_so_and_the_way_out(tmp_path, name, told):
    (tmp_path / name).touch()
    with pytest.raises(ModelError, match=f"holds no config.json.*{told}"):
        load_spec(tmp_path)


def test_overrides_replace_fields_and_those_of_the_text_part_one_by_one(tmp_path):
    write_config("mixtral", "gqa", tmp_path)
    assert load_spec(tmp_path).top_k == 2
    assert load_spec(tmp_path, {"num_experts_per_tok": 1}).top_k == 1
    assert _overridden({"text_config": {"a": 1, "b": 2}}, {"text_config": {"b": 3}}) == {
        "text_config": {"a": 1, "b": 3}
    }


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_weight_bytes_add_up_to_the_checkpoint(tmp_path: Path, family: str, variant: str):
    spec = load_spec(write_checkpoint(family, variant, tmp_path))
    experts = spec.num_experts * len(spec.moe_layers) * spec.expert_weight_bytes(4)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        on_disk = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert attention_weight_bytes(spec, 4) + experts == on_disk


@pytest.mark.parametrize(
    ("family", "variant", "sparse"),
    [("deepseek_v32", "nine_positions", True), ("deepseek_v3", "groups", False)],
)
def test_sparse_attention_is_counted_apart(
    tmp_path: Path, family: str, variant: str, sparse: bool
) -> None:
    spec = load_spec(write_checkpoint(family, variant, tmp_path))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if re.search("self_attn|input_layer", name)]  # noqa: SIM118
        on_disk = sum(file.get_tensor(name).numel() for name in names)
    assert sparse_attention_weights(spec) == (on_disk if sparse else 0)
