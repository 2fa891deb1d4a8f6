"""Weights of GGUF files, read and dequantised."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from megainfer.checkpoint.check import check_weights
from megainfer.checkpoint.ggml import dequantise
from megainfer.checkpoint.reader import LooseFiles, WeightReader
from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.config import EngineConfig
from megainfer.errors import CheckpointError, ModelError
from megainfer.gguf.kinds import BLOCKS
from megainfer.gguf.kinds import KINDS as SIZES
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import make_plan
from megainfer.launch.plan_text import describe
from megainfer.model_folder.gguf import gguf_folder
from megainfer.models.quantization import EXACT, kept_blocks, quantization_of
from megainfer.models.registry import load_spec
from megainfer.models.stored import Source
from megainfer.rl.run.preparation import model_folder
from tests.support.checkpoints import write_checkpoint
from tests.support.gguf_files.write import write_gguf
from tests.support.kernel_experts import levels

KINDS = [kind.name for kind in BLOCKS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def random_blocks(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of any value: NaN and infinite scales, subnormal ones, all codes."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    generator = np.random.default_rng(3)
    return generator.integers(0, 256, (*shape[:-1], shape[-1] // values * size), dtype=np.uint8)


def theirs(codes: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.array(dequantize(codes, gguf.GGMLQuantizationType[kind]), np.float32)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """All NaNs count as one."""
    assert actual.shape == expected.shape
    same = actual.view(np.uint32) == expected.view(np.uint32)
    assert (same | (np.isnan(actual) & np.isnan(expected))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_gguf_packages_bit_for_bit(kind):
    codes = random_blocks(kind, (96, 512))
    assert_same_bits(dequantise(torch.from_numpy(codes), kind).numpy(), theirs(codes, kind))


def test_every_exponent_of_mxfp4_is_ggmls():
    codes = np.repeat(random_blocks("MXFP4", (1, 32)), 256, 0)
    codes[:, 0] = np.arange(256)
    assert_same_bits(dequantise(torch.from_numpy(codes), "MXFP4").numpy(), theirs(codes, "MXFP4"))


@pytest.fixture
def stacked(tmp_path) -> tuple[Path, np.ndarray]:
    """Five experts of 300 x 256, so that one is read in several chunks."""
    codes = random_blocks("Q4_K", (5, 300, 256))
    codes.reshape(-1, 144)[:, 1] &= 0x3F  # finite scales
    codes.reshape(-1, 144)[:, 3] &= 0x3F
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", codes, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, theirs(codes, "Q4_K")


def test_an_experts_rows_and_columns_are_read_alone(stacked, monkeypatch):
    path, values = stacked
    monkeypatch.setattr("megainfer.checkpoint.reader.CHUNK_BYTES", 10_000)
    whole = (5, 300, 256)
    with WeightReader(LooseFiles((path,), None)) as reader:
        expert = Source("x", (300, 256), whole, index=3)
        assert_same_bits(reader.read((expert,), torch.float32).numpy(), values[3])
        assert reader.bytes_read == reader.total_bytes([expert]) == 300 * 144
        turned = Source("x", (256, 300), whole, index=1, transposed=True)
        assert_same_bits(reader.read((turned,), torch.float32).numpy(), values[1].T.copy())
        some = Source("x", (20, 256), whole, index=4, rows=(10, 50, 2))
        assert_same_bits(reader.read((some,), torch.float32).numpy(), values[4, 10:50:2].copy())
        rounded = reader.read((expert,), torch.bfloat16)
        assert torch.equal(rounded, torch.from_numpy(values[3]).bfloat16())


@pytest.fixture
def folder(tmp_path) -> Path:
    own = write_checkpoint("qwen2_moe", "gqa", tmp_path / "own", hidden_size=64)
    return gguf_folder(write_gguf(own, tmp_path / "m.gguf", "BF16", "F16"))


def test_a_tensor_that_is_missing_or_misshapen_is_found_before_a_start(folder):
    spec, quantization = load_spec(folder), quantization_of(folder)
    assert check_weights(folder, spec, quantization) > 0
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q_norm\.weight|holds no tensor"):
        check_weights(folder, load_spec_with(folder, "Qwen3MoeForCausalLM"), quantization)
    with pytest.raises(CheckpointError, match=r"token_embd\.weight has shape \[160, 64\], but"):
        check_weights(folder, load_spec(folder, {"vocab_size": 161}), quantization)


def load_spec_with(folder: Path, architecture: str):
    return load_spec(folder, {"architectures": [architecture]})


def test_the_types_are_told_in_words(folder):
    assert str(quantization_of(folder)) == "gguf: F16 (experts), BF16 and F32 (others)"


def test_it_is_not_trained(tmp_path):
    path = tmp_path / "m.gguf"
    path.touch()
    with pytest.raises(ModelError, match="is GGUF, which is served, but not trained"):
        model_folder(str(path), print)


KEPT = [(kind, kept) for kept, kinds in EXACT.items() for kind in kinds]


def finite_blocks(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Any codes, scales of any sign, size and mantissa that a float16 has and no NaN."""
    codes = random_blocks(kind, shape)
    blocks = codes.reshape(-1, SIZES[kind].size)
    if kind == "MXFP4":
        blocks[:, 0] = 100 + blocks[:, 0] % 50
    else:
        blocks[:, 1] &= 0xBF
        blocks[:4, :2] = 0  # a scale of 0
        blocks[4:8, 1] &= 0x83  # subnormal ones
    return codes


@pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")
@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize(("kind", "weight_dtype"), KEPT)
def test_what_kernels_keep_of_a_blocks_values_is_those_values(level, kind, weight_dtype):
    """Rows of a single one: a product is a weight, if it was kept, whatever becomes of rows."""
    outputs, inputs = 40, 160  # a block of 128 and part of another
    codes = finite_blocks(kind, (outputs, inputs))
    weight = torch.from_numpy(theirs(codes, kind))
    kernel = AttentionKernel(1, level)
    packed = kernel.pack(weight, weight_dtype)
    actual = kernel.linear(packed, torch.eye(inputs))
    torch.testing.assert_close(actual, weight.T, rtol=3e-7, atol=0)  # rows may be of eight bits


def test_what_a_file_is_kept_as():
    assert kept_blocks(["Q8_0", "IQ4_NL"]) == "int8_32"
    assert kept_blocks(["MXFP4"]) == "mxfp4"
    assert kept_blocks(["MXFP4", "Q8_0"]) == kept_blocks(["Q4_K"]) == "int8_32"
    assert kept_blocks(["Q4_0", "F16"]) is kept_blocks([]) is None


@pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")
@pytest.mark.parametrize(
    ("kind", "weight_dtype", "said"),
    [
        ("Q4_0", "int4", "in int4 (experts) and"),
        ("Q8_0", "int8_32", "in int8_32 (experts) and"),
        ("Q4_1", "int8_32", "in int8_32 (experts; Q4_1 quantised anew) and"),
        ("F16", "float32", "in float32 (experts) and"),
    ],
)
def test_experts_are_kept_as_they_are_stored(tmp_path, kind, weight_dtype, said):
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32}
    own = write_checkpoint("qwen3_moe", "gqa", tmp_path / "own", **sizes)
    folder = gguf_folder(write_gguf(own, tmp_path / "m.gguf", "Q8_0", kind))
    config = EngineConfig(dtype="float32", kernels="cpu")
    plan = make_plan(config, folder, read_machine())
    assert plan.expert_dtype == weight_dtype
    assert f"computed {said} float32 (others)" in "\n".join(describe(plan))
    other = make_plan(replace(config, expert_dtype="bfloat16"), folder, read_machine())
    assert "computed in bfloat16 (experts) and" in "\n".join(describe(other))
