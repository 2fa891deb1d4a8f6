"""Quantised weights are read as what they mean, bit for bit, whole and in parts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megainfer.checkpoint import reader as reader_module
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import ChunkInput
from megainfer.config import EngineConfig
from megainfer.errors import CheckpointError
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import make_plan
from megainfer.launch.plan_text import describe
from megainfer.models.config import Config
from megainfer.models.description import describe_model
from megainfer.models.quantization import quantization_of, read_quantization
from megainfer.models.registry import load_spec
from megainfer.models.stored import Source
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import blocks_of, load_pair
from tests.support.quantised import FORMATS, Format, Stored, quantise, quantise_fused, write

NAME = "model.layers.0.mlp.experts.3.up_proj.weight"
TURNED = [name for name in FORMATS if name.startswith(("awq", "gptq"))]  # stored transposed
ODD = {**dict.fromkeys(TURNED, (24, 40)), "mxfp4": (64, 21)}
every_format = pytest.mark.parametrize("name", FORMATS)


def weight_of(name: str, shape: tuple[int, int] | None = None) -> Tensor:
    """Sizes that are no multiples of anything, where the format has such."""
    generator = torch.Generator().manual_seed(5)
    shape = shape or ODD.get(name, (37, 43))
    return torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator) ** 3


def stored_weight(
    folder: Path, name: str, shape: tuple[int, int] | None = None
) -> tuple[Format, Stored, Tensor]:
    """A folder with one weight in this format, its tensors, and what it means."""
    form, weight = FORMATS[name], weight_of(name, shape)
    stored = form.store(weight)
    module = NAME.removesuffix("weight")
    config = {"quantization_config": form.config}
    write(folder, {module + part: tensor for part, tensor in stored.items()}, config)
    return form, stored, form.meaning(stored, (weight.shape[0], weight.shape[1]))


@every_format
def test_a_weight_is_what_its_format_means(tmp_path, name):
    form, stored, meant = stored_weight(tmp_path, name)
    assert (meant - weight_of(name)).abs().max() < 0.5  # the test's own quantiser is none else
    assert str(quantization_of(tmp_path)) == form.shown
    with WeightReader(tmp_path) as reader:
        assert torch.equal(reader.get(NAME, meant.shape, torch.float32), meant)
        on_disk = sum(tensor.nbytes for tensor in stored.values())
        whole = Source(NAME, tuple(meant.shape))
        assert reader.bytes_read == on_disk == reader.total_bytes([whole])
        assert torch.equal(reader.get(NAME, meant.shape, torch.bfloat16), meant.bfloat16())


@every_format
@pytest.mark.parametrize("chunk_bytes", [1, 90, 1 << 20])
def test_parts_of_a_weight(tmp_path, name, chunk_bytes, monkeypatch):
    monkeypatch.setattr(reader_module, "CHUNK_BYTES", chunk_bytes)
    _, _, meant = stored_weight(tmp_path, name)
    rows, columns = meant.shape
    with WeightReader(tmp_path) as reader:
        for start, stop, step in ((0, rows, 2), (1, rows, 2), (5, 19, 1), (rows - 1, rows, 1)):
            expected = meant[start:stop:step]
            source = Source(NAME, tuple(expected.shape), (rows, columns), rows=(start, stop, step))
            before = reader.bytes_read
            assert torch.equal(reader.load((source,), torch.float32), expected)
            assert reader.bytes_read - before == reader.total_bytes([source])


def fused_folder(folder: Path, name: str) -> tuple[str, list[Tensor]]:
    """Three experts' weights in one; its name, and what they mean."""
    form, weight = FORMATS[name], weight_of(name)
    experts = [form.store(weight * (1 + expert)) for expert in range(3)]
    fused = {part: torch.stack([expert[part] for expert in experts]) for part in experts[0]}
    prefix = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {prefix + part.removeprefix("weight"): tensor for part, tensor in fused.items()}
    write(folder, tensors, {"quantization_config": form.config})
    return prefix, [form.meaning(expert, (weight.shape[0], weight.shape[1])) for expert in experts]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in TURNED])
def test_one_expert_of_a_fused_weight(tmp_path, name):
    prefix, experts = fused_folder(tmp_path, name)
    shape = tuple(experts[0].shape)
    with WeightReader(tmp_path) as reader:
        for index in (0, 2):
            source = Source(prefix, shape, (3, *shape), index=index)
            assert torch.equal(reader.load((source,), torch.float32), experts[index])


@pytest.mark.parametrize("name", ["fp8", "fp8_ue8m0", "fp8_tensor", "mxfp4"])
def test_rows_of_one_transposed_expert_of_a_fused_weight(tmp_path, name):
    prefix, experts = fused_folder(tmp_path, name)
    rows, columns = experts[0].shape
    picked = (1, columns // 2 * 2, 2)
    source = Source(
        prefix, (columns // 2, rows), (3, rows, columns), index=1, transposed=True, rows=picked
    )
    with WeightReader(tmp_path) as reader:
        expected = experts[1].T[slice(*picked)]
        assert torch.equal(reader.load((source,), torch.float32), expected)
        assert reader.bytes_read == reader.total_bytes([source])


def test_channels_of_a_transposed_fused_weight_are_its_outputs(tmp_path):
    """As Llama 4 fuses experts: [E, inputs, outputs], with a scale an output, [E, 1, outputs]."""
    form = FORMATS["fp8_channel"]
    stored = form.store(weight_of("fp8_channel"))
    outputs, inputs = weight_of("fp8_channel").shape
    tensors = {
        "experts.down_proj": stored["weight"].view(torch.uint8).T.contiguous()[None],
        "experts.down_proj_scale": stored["weight_scale"].T.contiguous()[None],
    }
    tensors["experts.down_proj"] = tensors["experts.down_proj"].view(torch.float8_e4m3fn)
    write(tmp_path, tensors, {"quantization_config": form.config})
    source = Source(
        "experts.down_proj", (outputs, inputs), (1, inputs, outputs), index=0, transposed=True
    )
    with WeightReader(tmp_path) as reader:
        meant = form.meaning(stored, (outputs, inputs))
        assert torch.equal(reader.load((source,), torch.float32), meant)


# --- a whole model ------------------------------------------------------------------------------

SIZES = {"hidden_size": 64, "moe_intermediate_size": 32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_moe")
    settings = {**SIZES, "num_hidden_layers": 2, "num_experts": 4}
    return write_checkpoint("qwen3_moe", "gqa", folder, **settings)


def logits(folder: Path) -> Tensor:
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]
    chunks = [ChunkInput(tokens, 0, blocks_of(i), True) for i, tokens in enumerate(prompts)]
    return load_pair(folder, 2).step(chunks)


@every_format
def test_a_quantised_checkpoint_gives_the_logits_of_what_it_means(checkpoint, tmp_path, name):
    quantise(checkpoint, tmp_path / "quantised", tmp_path / "meant", FORMATS[name])
    ours = logits(tmp_path / "quantised")
    assert torch.equal(ours, logits(tmp_path / "meant"))
    assert not torch.equal(ours, logits(checkpoint))


def test_gpt_oss_gives_the_logits_of_what_its_mxfp4_means(tmp_path):
    settings = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
    folder = write_checkpoint("gpt_oss", "alternating", tmp_path / "plain", **settings)
    quantise_fused(folder, tmp_path / "quantised", tmp_path / "meant", FORMATS["mxfp4"])
    ours = logits(tmp_path / "quantised")
    assert torch.equal(ours, logits(tmp_path / "meant"))
    assert not torch.equal(ours, logits(folder))


def test_the_plan_says_what_is_on_disk_and_what_is_computed_in(checkpoint, tmp_path):
    quantise(checkpoint, tmp_path / "quantised", tmp_path / "meant", FORMATS["fp8"])
    config = EngineConfig(model=str(tmp_path), dtype="bfloat16")
    text = "\n".join(describe(make_plan(config, tmp_path / "quantised", read_machine())))
    assert "fp8 (128 x 128 blocks), says config.json; computed in fp8 (experts) and bfl" in text
    assert "says config.json" not in "\n".join(
        describe(make_plan(config, tmp_path / "meant", read_machine()))
    )


def test_the_description_says_what_is_on_disk(checkpoint):
    stored = dict(describe_model(load_spec(checkpoint), None))["stored as"]
    assert stored == "float32"
    quantised = read_quantization(
        Config(Path("config.json"), {"quantization_config": FORMATS["int4"].config})
    )
    stored = dict(describe_model(load_spec(checkpoint), quantised))["stored as"]
    assert stored == "compressed-tensors int4 (groups of 16), others float32"


# --- contradictions -----------------------------------------------------------------------------


def read(folder: Path, shape: tuple[int, ...], name: str = NAME) -> Tensor:
    with WeightReader(folder) as reader:
        return reader.get(name, shape, torch.float32)


def refused(folder: Path, *parts: str, name: str = NAME, shape: tuple[int, ...] = (24, 40)) -> None:
    with pytest.raises(CheckpointError) as error:
        read(folder, shape, name)
    for part in parts:
        assert part in str(error.value)


def test_a_plain_weight_where_config_says_quantised(tmp_path):
    write(tmp_path, {NAME: torch.ones(24, 40)}, {"quantization_config": FORMATS["fp8"].config})
    refused(tmp_path, NAME, "F32", "fp8 (128 x 128 blocks)", "does not except it")


@pytest.mark.parametrize(
    ("key", "listed", "name"),
    [
        ("fp8", ["model.layers.0.mlp.experts"], NAME),
        ("fp8", ["up_proj"], NAME),
        ("fp8", [r"model.layers.\d+.mlp"], NAME),
        ("awq", ["mlp.experts"], NAME),
        ("fp8", [], "model.layers.0.mlp.gate.weight"),
        ("fp8", [], "model.layers.0.ffn.router.layer.weight"),
        ("fp8", [], "lm_head.weight"),
        ("mxfp4", [], "model.layers.0.self_attn.q_proj.weight"),
        ("gptq", ["mlp.experts.3.up_proj"], NAME),
        ("int4", ["re:.*experts.*"], NAME),
        ("int4", [NAME.removesuffix(".weight")], NAME),
    ],
)
def test_what_config_excepts_is_read_as_it_is(tmp_path, key, listed, name):
    config = dict(FORMATS[key].config)
    config["ignore" if "format" in config else "modules_to_not_convert"] = listed
    write(tmp_path, {name: torch.ones(24, 40)}, {"quantization_config": config})
    assert read(tmp_path, (24, 40), name).sum() == 24 * 40


@pytest.mark.parametrize("listed", ["model.layers.0.mlp.experts.3.up", "layers.0", "xup_proj"])
def test_what_only_looks_like_an_exception_is_none(tmp_path, listed):
    config = {**FORMATS["fp8"].config, "modules_to_not_convert": [listed]}
    write(tmp_path, {NAME: torch.ones(24, 40)}, {"quantization_config": config})
    refused(tmp_path, "does not except it")


def test_codes_that_nothing_explains(tmp_path):
    form, stored, meant = stored_weight(tmp_path, "fp8")
    write(tmp_path, {NAME: stored["weight"]}, {"quantization_config": form.config})
    refused(tmp_path, NAME, "F8_E4M3", "no scales beside it", shape=tuple(meant.shape))
    write(tmp_path, {NAME: stored["weight"]}, {})
    refused(tmp_path, NAME, "F8_E4M3", "no quantization_config", shape=tuple(meant.shape))


def test_codes_of_another_format_than_config_says(tmp_path):
    _, stored, meant = stored_weight(tmp_path, "int8")
    tensors = {NAME.removesuffix("weight") + part: tensor for part, tensor in stored.items()}
    write(tmp_path, tensors, {"quantization_config": FORMATS["fp8_channel"].config})
    refused(tmp_path, NAME, "I8", "compressed-tensors fp8", shape=tuple(meant.shape))


@pytest.mark.parametrize(
    ("name", "part", "change", "words"),
    [
        ("fp8_small_blocks", "weight_scale_inv", lambda t: t[:-1], "takes [3, 2]"),
        ("fp8_channel", "weight_scale", lambda t: t[:5], "takes [37, 1]"),
        ("int8_asymmetric", "weight_zero_point", None, "no tensor"),
        ("int4", "weight_scale", lambda t: t[:, :-1], "takes [37, 3]"),
        ("int4", "weight_packed", lambda t: t[:, :-1], "calls for [37, 6]"),
        ("int4", "weight_shape", lambda t: t + 1, "is [38, 44]"),
        ("int4", "weight_packed", lambda t: t.long(), "must be I32"),
        ("int4_asymmetric", "weight_zero_point", lambda t: t[:-1], "calls for [5, 6]"),
        ("awq", "qzeros", lambda t: t[:-1], "calls for [3, 3]"),
        ("awq", "scales", None, "no tensor"),
        ("gptq", "qweight", lambda t: t[:-1], "calls for [5, 24]"),
        ("gptq", "qweight", lambda t: t.long(), "must be I32"),
        ("gptq", "qzeros", lambda t: t[:, :-1], "calls for [3, 3]"),
        ("gptq", "scales", lambda t: t[:-1], "calls for [3, 24]"),
        ("gptq", "scales", None, "no tensor"),
        ("gptq", "g_idx", lambda t: t[:-1], "calls for [40]"),
        ("gptq", "g_idx", lambda t: t.float(), "must be one of"),
        ("gptq", "g_idx", lambda t: t + 1, "names groups that aren't there"),
        ("gptq_act_order", "g_idx", None, "no tensor"),
        ("mxfp4", "weight_scales", lambda t: t[:-1], "calls for [21, 2]"),
        ("mxfp4", "weight_blocks", lambda t: t[..., :-1], "calls for [21, 2, 16]"),
    ],
)
def test_a_part_that_does_not_fit_is_named(tmp_path, name, part, change, words):
    form, stored, meant = stored_weight(tmp_path, name)
    stored = dict(stored)
    wrong = stored.pop(part)
    if change is not None:
        stored[part] = change(wrong).contiguous()
    module = NAME.removesuffix("weight")
    tensors = {module + key: tensor for key, tensor in stored.items()}
    write(tmp_path, tensors, {"quantization_config": form.config})
    refused(tmp_path, module + part, words, shape=tuple(meant.shape))


def test_gptq_without_a_table_has_its_groups_in_a_row(tmp_path):
    form, stored, meant = stored_weight(tmp_path, "gptq")
    module = NAME.removesuffix("weight")
    tensors = {module + part: tensor for part, tensor in stored.items() if part != "g_idx"}
    write(tmp_path, tensors, {"quantization_config": form.config})
    assert torch.equal(read(tmp_path, tuple(meant.shape)), meant)


def test_reordered_groups_are_refused(tmp_path):
    form, stored, meant = stored_weight(tmp_path, "int4")
    tensors = {NAME.removesuffix("weight") + part: tensor for part, tensor in stored.items()}
    tensors[f"{NAME}_g_idx"] = torch.arange(meant.shape[1]).int()
    write(tmp_path, tensors, {"quantization_config": form.config})
    refused(tmp_path, "weight_g_idx", "actorder", shape=tuple(meant.shape))


def test_odd_sizes_that_a_format_has_no_room_for(tmp_path):
    for name, shape, words in (
        ("awq", (25, 40), "multiple of 8"),
        ("gptq", (28, 40), "28 outputs, which is not a multiple of 8"),
        ("gptq_int8", (28, 42), "42 inputs, which is not a multiple of 4"),
        ("mxfp4", (65, 4), "of 32"),
    ):
        stored_weight(tmp_path, name)
        refused(tmp_path, words, shape=shape)


# --- other readers of the same formats -----------------------------------------------------------


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (2, 6, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (2, 6, 3), generator=generator, dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    tensors = {"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales}
    write(tmp_path, tensors, {"quantization_config": FORMATS["mxfp4"].config})
    with WeightReader(tmp_path) as reader:
        for expert in (0, 1):
            source = Source("experts.gate_up_proj", (96, 6), (2, 96, 6), index=expert)
            assert torch.equal(reader.load((source,), torch.float32), theirs[expert])


def test_blocks_of_fp8_are_what_transformers_makes_of_them(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    form = FORMATS["fp8_small_blocks"]
    stored = form.store(weight_of("fp8", (48, 64)))
    module = NAME.removesuffix("weight")
    tensors = {module + part: tensor for part, tensor in stored.items()}
    write(tmp_path, tensors, {"quantization_config": form.config})
    theirs = Fp8Dequantize(None)._dequantize_one(stored["weight"], stored["weight_scale_inv"])
    assert torch.equal(read(tmp_path, (48, 64)), theirs)


@pytest.mark.parametrize(
    "name",
    ["int4", "int4_asymmetric", "int8_packed_channel", "int8", "int8_asymmetric", "fp8_channel"],
)
def test_compressed_tensors_are_what_their_package_makes_of_them(tmp_path, name):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    form, stored, _ = stored_weight(tmp_path, name, (37, 48))  # it refuses unfinished groups
    (group,) = form.config["config_groups"].values()
    scheme = QuantizationScheme(**group)
    compressor = BaseCompressor.get_value_from_registry(form.config["format"])
    theirs = compressor.decompress(dict(stored), scheme)["weight"]
    with WeightReader(tmp_path) as reader:
        assert torch.equal(reader.get(NAME, (37, 48), theirs.dtype), theirs)
