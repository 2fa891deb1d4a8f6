"""Weights of GGUF files, read and dequantised."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from megainfer.checkpoint.check import check_weights
from megainfer.checkpoint.ggml import dequantise
from megainfer.checkpoint.reader import LooseFiles, WeightReader
from megainfer.errors import CheckpointError, ModelError
from megainfer.gguf.kinds import BLOCKS
from megainfer.model_folder.gguf import gguf_folder
from megainfer.models.quantization import quantization_of
from megainfer.models.registry import load_spec
from megainfer.models.stored import Source
from megainfer.rl.run.preparation import model_folder
from tests.support.checkpoints import write_checkpoint
from tests.support.gguf_files.write import write_gguf

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
