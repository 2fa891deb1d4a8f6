"""quantization_config is read field by field; what would change the weights unseen is refused."""

import json
from pathlib import Path

import pytest

from megainfer.errors import ModelError
from megainfer.models.config import Config
from megainfer.models.quantization import Codes, QuantizationSpec, read_quantization
from tests.support.quantised import FORMATS, compressed


def read(settings: object, **others: object) -> QuantizationSpec | None:
    return read_quantization(
        Config(Path("config.json"), {**others, "quantization_config": settings})
    )


def test_none_without_one():
    assert read(None) is None
    assert read_quantization(Config(Path("config.json"), {})) is None


def test_it_may_be_the_text_models():
    config = {"text_config": {"quantization_config": FORMATS["fp8"].config}}
    spec = read_quantization(Config(Path("config.json"), config))
    assert spec is not None
    assert (spec.codes, spec.block) == (Codes.FP8, (128, 128))


def test_awq_takes_whole_channels():
    config = {**FORMATS["awq"].config, "group_size": -1}
    spec = read(config)
    assert spec is not None
    assert spec.block == (1, None)


def test_targets_limit_what_is_quantised():
    config = compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32)
    config["config_groups"]["group_0"]["targets"] = [r"re:.*mlp\.experts\.\d+\."]
    spec = read(config)
    assert spec is not None
    assert spec.quantises("model.layers.1.mlp.experts.0.up_proj")
    assert not spec.quantises("model.layers.1.self_attn.q_proj")


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
TWO_SCHEMES = compressed("pack-quantized", **INT4)
TWO_SCHEMES["config_groups"] = {
    **TWO_SCHEMES["config_groups"],
    "group_1": {"targets": ["re:.*self_attn.*"], "weights": {**INT4, "group_size": 64}},
}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def test_gptq_says_what_was_quantised():
    spec = read({**GPTQ, "dynamic": {"-:.*attn.*": {}, "-:lm_head": {}}})
    assert spec is not None
    assert (spec.bits, spec.block, spec.reordered, spec.zero_offset) == (4, (1, 128), False, 1)
    assert spec.quantises("model.layers.1.mlp.experts.0.up_proj")
    assert not spec.quantises("model.layers.1.self_attn.q_proj")
    spec = read({**GPTQ, "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]]})
    assert spec is not None
    assert spec.quantises("model.layers.1.self_attn.q_proj")
    assert not spec.quantises("model.layers.1.self_attn.k_proj")


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({**GPTQ, "bits": 3}, ["bits", "3", "4, 8"]),
        ({**GPTQ, "group_size": 0}, ["group_size", "0"]),
        ({**GPTQ, "checkpoint_format": "marlin"}, ["checkpoint_format", "marlin", "gptq_v2"]),
        ({**GPTQ, "format": "bitblas"}, ["format", "bitblas"]),
        ({**GPTQ, "is_marlin_format": True}, ["is_marlin_format"]),
        ({**GPTQ, "pack_dtype": "int16"}, ["pack_dtype", "int16"]),
        ({**GPTQ, "dynamic": {"+:.*down_proj": {"bits": 8}}}, ["dynamic", "+:.*down_proj"]),
        ({**GPTQ, "dynamic": {"-:(": {}}}, ["dynamic"]),
        ({**GPTQ, "modules_in_block_to_quantize": [[1]]}, ["modules_in_block_to_quantize"]),
        ({"quant_method": "bitsandbytes"}, ["bitsandbytes", "awq"]),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, ["modelopt", "mxfp4"]),
        ({"quant_method": ["fp8"]}, ["quant_method"]),
        ({"bits": 4}, ["quant_method"]),
        ({**FORMATS["fp8"].config, "fmt": "e5m2"}, ["fmt", "e5m2", "e4m3"]),
        ({**FORMATS["fp8"].config, "weight_block_size": [128]}, ["weight_block_size", "128"]),
        ({**FORMATS["fp8"].config, "weight_block_size": [128, 0]}, ["weight_block_size", "0"]),
        ({**FORMATS["fp8"].config, "modules_to_not_convert": "a"}, ["modules_to_not_convert"]),
        ({**FORMATS["fp8"].config, "modules_to_not_convert": ["("]}, ["modules_to_not_convert"]),
        ({**FORMATS["awq"].config, "version": "gemv"}, ["version", "gemv", "gemm"]),
        ({**FORMATS["awq"].config, "bits": 3}, ["bits", "3"]),
        ({**FORMATS["awq"].config, "zero_point": False}, ["zero_point", "False"]),
        ({**FORMATS["awq"].config, "group_size": 0}, ["group_size", "0"]),
        (
            compressed("nvfp4-pack-quantized", num_bits=4),
            ["nvfp4-pack-quantized", "int-quantized"],
        ),
        (compressed("marlin-24", **INT4), ["format", "marlin-24"]),
        (compressed("pack-quantized", **{**INT4, "num_bits": 3}), ["num_bits", "3"]),
        (compressed("pack-quantized", **{**INT4, "type": "float"}), ["type", "float"]),
        (compressed("pack-quantized", **{**INT4, "strategy": "tensor_group"}), ["tensor_group"]),
        (compressed("pack-quantized", num_bits=4, type="int", strategy="group"), ["group_size"]),
        (compressed("float-quantized", num_bits=4, type="float"), ["num_bits", "4"]),
        ({**compressed("pack-quantized", **INT4), "transform_config": {"a": 1}}, ["transform"]),
        (
            {**compressed("pack-quantized", **INT4), "sparsity_config": {"format": "sparse-24"}},
            ["sparsity_config"],
        ),
        (TWO_SCHEMES, ["config_groups", "one scheme"]),
        ({**TWO_SCHEMES, "config_groups": {}}, ["config_groups"]),
        ({**TWO_SCHEMES, "config_groups": {"group_0": [1]}}, ["group_0 is [1]", "object"]),
        ({**TWO_SCHEMES, "format": None}, ["format is None", "pack-quantized"]),
    ],
)
def test_what_is_not_supported_is_named(config, parts):
    with pytest.raises(ModelError) as error:
        read(json.loads(json.dumps(config)))
    for part in ("config.json", *parts):
        assert part in str(error.value)
