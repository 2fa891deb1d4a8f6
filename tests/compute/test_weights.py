"""Tensors read by name; every way in which a checkpoint can be broken names what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megainfer.attention_node.model import AttentionModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.selection import open_backend
from megainfer.errors import CheckpointError
from megainfer.expert_node.experts import ExpertModel
from megainfer.models.registry import load_spec
from megainfer.models.sources import attention_sources, expert_sources
from megainfer.models.stored import Source
from megainfer.topology import contiguous_placement
from tests.support.checkpoints import VARIANTS, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1, 3), "n": torch.ones(2).int()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_get_converts_and_copies(folder):
    with WeightReader(folder) as reader:
        tensor = reader.get("a", (2, 3), torch.bfloat16)
    assert torch.equal(tensor, torch.arange(6.0).view(2, 3).bfloat16())
    tensor.zero_()
    assert WeightReader(folder).get("a", (2, 3), torch.float32).sum() == 15


def test_pieces_are_concatenated_along_the_first_axis(folder):
    joined = WeightReader(folder).load((Source("b", (1, 3)), Source("a", (2, 3))), torch.float32)
    assert joined.tolist() == [[1, 1, 1], [0, 1, 2], [3, 4, 5]]


def test_progress_counts_bytes_on_disk(folder):
    seen: list[int] = []
    reader = WeightReader(folder, seen.append)
    assert reader.total_bytes([Source("a", (2, 3)), Source("b", (1, 3))]) == 36
    reader.get("a", (2, 3), torch.float32)
    reader.get("b", (1, 3), torch.bfloat16)
    assert seen == [24, 36]


def test_missing_tensor_is_named(folder):
    reader = WeightReader(folder)
    with pytest.raises(CheckpointError, match=r"no tensor model\.norm"):
        reader.get("model.norm", (2,), torch.float32)
    with pytest.raises(CheckpointError, match=r"no tensor model\.norm"):
        reader.total_bytes([Source("model.norm", (2,))])


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), (1, 3)])
def test_misshapen_tensor_is_named_with_both_shapes(folder, shape):
    with pytest.raises(CheckpointError) as error:
        WeightReader(folder).get("a", shape, torch.float32)
    for part in ("model.safetensors", "tensor a", "[2, 3]", str(list(shape))):
        assert part in str(error.value)


def test_integers_are_no_weights(folder):
    with pytest.raises(CheckpointError, match=r"tensor n is stored as I32.*F32"):
        WeightReader(folder).get("n", (2,), torch.float32)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def scramble_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:20] = b"x" * 12
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def huge_header(path: Path) -> None:
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize("damage", [cut, scramble_header, empty, huge_header])
def test_damaged_file_is_named(folder, damage):
    damage(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt or truncated"):
        WeightReader(folder)


def test_folder_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        WeightReader(tmp_path)


def test_a_lone_file_may_have_any_name(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert WeightReader(folder).get("b", (1, 3), torch.float32).sum() == 3
    save_file({"c": torch.ones(1)}, folder / "more.safetensors")
    with pytest.raises(CheckpointError, match="2 safetensors files but no"):
        WeightReader(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../a"}}']
)
def test_index_that_is_none(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is not a safetensors index"):
        WeightReader(folder)


def index_of(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_index_that_names_a_missing_file(folder):
    index_of(folder, {"a": "model.safetensors", "b": "model-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"names model-00002\.safetensors"):
        WeightReader(folder)


def test_index_that_names_a_file_without_the_tensor(folder):
    index_of(folder, {"absent": "model.safetensors"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors holds no tensor absent"):
        WeightReader(folder).get("absent", (1,), torch.float32)


def test_shards_give_what_one_file_gives(tmp_path):
    whole = write_checkpoint("qwen3_moe", "gqa", tmp_path / "whole")
    shards = write_checkpoint("qwen3_moe", "gqa", tmp_path / "shards", max_shard_size="60KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    with WeightReader(shards) as reader:
        for name, tensor in load_file(whole / "model.safetensors").items():
            assert torch.equal(reader.get(name, tensor.shape, torch.float32), tensor)


def test_a_file_that_nobody_asks_for_stays_closed(tmp_path):
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path, max_shard_size="60KB")
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for path in folder.glob("*.safetensors"):
        if path.name != weight_map["model.norm.weight"]:
            empty(path)
    assert WeightReader(folder).get("model.norm.weight", (48,), torch.float32).shape == (48,)


class RecordingReader(WeightReader):
    """Remembers the names that were read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names: list[str] = []

    def load_into(self, out, pieces):
        self.names += [piece.name for piece in pieces]
        super().load_into(out, pieces)


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_each_role_reads_its_listed_tensors_and_all_are_read(tmp_path, family, variant):
    folder = write_checkpoint(family, variant, tmp_path)
    spec = load_spec(folder)
    nodes = min(3, spec.num_experts)
    placement = contiguous_placement(spec.num_experts, nodes, spec.moe_layers)
    reader = RecordingReader(folder)
    AttentionModel(spec, reader, placement, open_backend())
    assert sorted(reader.names) == sorted(source.name for source in attention_sources(spec))
    assert reader.bytes_read == reader.total_bytes(attention_sources(spec))
    for node in range(nodes):
        already = len(reader.names)
        ExpertModel(spec, reader, placement, node, open_backend())
        expected = [s.name for s in expert_sources(spec, placement.held_by(node))]
        assert sorted(reader.names[already:]) == sorted(expected)
    assert set(reader.names) == set(load_file(folder / "model.safetensors"))


def test_models_report_a_broken_tensor_by_name(tmp_path):
    folder = write_checkpoint("mixtral", "gqa", tmp_path)
    spec = load_spec(folder)
    placement = contiguous_placement(8, 1, spec.moe_layers)
    tensors = load_file(folder / "model.safetensors")
    broken = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    tensors[broken] = tensors[broken].T.contiguous()
    save_file(tensors, folder / "model.safetensors")
    reader = WeightReader(folder)
    AttentionModel(spec, reader, placement, open_backend())
    with pytest.raises(CheckpointError, match=r"experts\.3\.w2\.weight has shape \[40, 48\]"):
        ExpertModel(spec, reader, placement, 0, open_backend())
