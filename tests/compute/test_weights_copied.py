"""New weights are checked whole before nodes hear of them, and copied out of others' reach."""

import json
import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megainfer.checkpoint import copies
from megainfer.checkpoint.copies import SealedCopies
from megainfer.config import EngineConfig, format_bytes
from megainfer.errors import CheckpointError, ConfigError, MegaInferError, ModelError
from megainfer.launch import new_weights
from megainfer.launch.machine import read_machine
from megainfer.launch.new_weights import MAX_VERSION_BYTES, check_version, copied_weights
from megainfer.launch.plan import Plan, make_plan
from tests.support.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return make_plan(EngineConfig(str(folder), micro_batches=1), folder, read_machine())


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "source"))


def open_files() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is(fd)}


def _is(fd: str) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def refused(plan: Plan, source: Path) -> str:
    """Why; nothing is left of it."""
    before = open_files()
    with pytest.raises(MegaInferError) as caught, copied_weights(plan, source):
        pass
    assert open_files() == before
    return str(caught.value)


def changed(source: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = source / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


# --- copies ---------------------------------------------------------------------------------------


def test_a_copy_outlives_its_file_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(bytes(range(256)) * 100)
    with SealedCopies([file]) as held:
        (path,) = held.paths
        file.write_bytes(b"other")
        file.unlink()
        assert Path(path).read_bytes() == bytes(range(256)) * 100
        writable = os.open(path, os.O_RDWR)
        with pytest.raises(PermissionError):
            os.write(writable, b"x")
        os.close(writable)
        with pytest.raises(PermissionError):
            os.truncate(path, 1)
    assert not Path(path).exists()
    held.close()


def test_pieces_and_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "PIECE_BYTES", 7)
    for size in (0, 1, 7, 50):
        (tmp_path / "x").write_bytes(os.urandom(size))
        with SealedCopies([tmp_path / "x"]) as held:
            assert Path(held.paths[0]).read_bytes() == (tmp_path / "x").read_bytes()


def test_what_is_sealed_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"weights")
    with SealedCopies([tmp_path / "x"]) as first, SealedCopies([Path(first.paths[0])]) as second:
        assert os.stat(second.paths[0]).st_ino == os.stat(first.paths[0]).st_ino
    memory = os.memfd_create("open", os.MFD_ALLOW_SEALING)  # somebody may write into it
    try:
        with SealedCopies([Path(f"/proc/self/fd/{memory}")]) as held:
            assert os.stat(held.paths[0]).st_ino != os.fstat(memory).st_ino
    finally:
        os.close(memory)


@pytest.mark.parametrize("size", [3, 12, 7], ids=["shorter", "longer", "as long"])
def test_a_file_that_is_written_to_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    file, send = tmp_path / "x", copies._send
    file.write_bytes(b"weights")
    os.utime(file, ns=(0, 0))

    def written(source: int, copy: int, length: int) -> None:
        file.write_bytes(b"y" * size)
        send(source, copy, length)

    monkeypatch.setattr(copies, "_send", written)
    before = open_files()
    with pytest.raises(CheckpointError, match="was written to while it was read"):
        SealedCopies([file])
    assert open_files() == before


@pytest.mark.parametrize("replaced", [False, True], ids=["written", "replaced"])
def test_files_that_are_written_to_between_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """The first would be of the old checkpoint, the second of the new."""
    files, copy = [tmp_path / "a", tmp_path / "b"], copies._copy
    for file in files:
        file.write_bytes(b"old")
        os.utime(file, ns=(0, 0))

    def copied(path: Path) -> int:
        held = copy(path)
        if path == files[0]:
            for file in files:
                (tmp_path / "next").write_bytes(b"new")
                if replaced:
                    (tmp_path / "next").rename(file)
                else:
                    file.write_bytes(b"new")
        return held

    monkeypatch.setattr(copies, "_copy", copied)
    before = open_files()
    with pytest.raises(CheckpointError, match="a was written to while it was read"):
        SealedCopies(files)
    assert open_files() == before


def test_one_that_can_not_be_read_closes_the_others(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"weights")
    before = open_files()
    with pytest.raises(CheckpointError, match="nowhere can't be read: No such file"):
        SealedCopies([tmp_path / "x", tmp_path / "nowhere"])
    assert open_files() == before


# --- checks ---------------------------------------------------------------------------------------


def test_a_folder_and_its_file(plan: Plan, source: Path) -> None:
    for given in (source, str(source), source / "model.safetensors"):
        with copied_weights(plan, given) as weights:
            (path,) = weights.files
            assert Path(path).read_bytes() == (source / "model.safetensors").read_bytes()
            assert weights.quantization is None


def test_files_of_an_index(plan: Plan, tmp_path: Path) -> None:
    parts = write_checkpoint("mixtral", "gqa", tmp_path / "parts", max_shard_size="50KB")
    with copied_weights(plan, parts) as weights:
        assert len(weights.files) == len(list(parts.glob("*.safetensors"))) > 1


def test_a_tensor_of_another_name(plan: Plan, source: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    changed(source, lambda tensors: tensors.update({"q": tensors.pop(name)}))
    assert f"holds no tensor {name}" in refused(plan, source)


def test_a_tensor_of_another_shape(plan: Plan, source: Path) -> None:
    name = "model.layers.2.self_attn.o_proj.weight"
    changed(source, lambda tensors: tensors.update({name: torch.zeros(48, 47)}))
    error = refused(plan, source)
    assert name in error
    assert "has shape [48, 47], but config.json calls for [48, 48]" in error


def test_a_tensor_of_another_dtype(plan: Plan, source: Path) -> None:
    name = "model.norm.weight"
    changed(source, lambda t: t.update({name: torch.zeros(48, dtype=torch.int8)}))
    error = refused(plan, source)
    assert f"tensor {name} is stored as I8" in error


def test_floats_of_any_width_will_do(plan: Plan, source: Path) -> None:
    changed(source, lambda t: t.update({name: x.bfloat16() for name, x in t.items()}))
    with copied_weights(plan, source):
        pass


def test_a_truncated_file(plan: Plan, source: Path) -> None:
    file = source / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert "corrupt or truncated" in refused(plan, source)


def test_the_config_of_another_model(plan: Plan, source: Path) -> None:
    config = json.loads((source / "config.json").read_text())

    def written(**fields: object) -> None:
        (source / "config.json").write_text(json.dumps({**config, **fields}))

    written(rms_norm_eps=0.5)
    assert "is of another model than the one that is served: they differ in norm" in refused(
        plan, source
    )
    written(architectures=["Unheard"])
    with pytest.raises(ModelError), copied_weights(plan, source):
        pass
    written(dtype="bfloat16", eos_token_id=7, max_position_embeddings=512)  # as trainers write it
    with copied_weights(plan, source):
        pass


def test_neither_folder_nor_file(plan: Plan, tmp_path: Path) -> None:
    assert "is neither a folder nor a safetensors file" in refused(plan, tmp_path / "nowhere")
    assert "holds no *.safetensors file" in refused(plan, tmp_path)


def test_a_machine_without_memory_for_them(
    plan: Plan, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = replace(read_machine(), available_memory=mmap.PAGESIZE)
    monkeypatch.setattr(new_weights, "read_machine", lambda: machine)
    assert "new weights take " in (error := refused(plan, source))
    assert f"this machine has {format_bytes(mmap.PAGESIZE)} of memory" in error


@pytest.mark.parametrize("name", [3, 1.5, b"3", "", "x" * 257, "\udc80"], ids=ascii)
def test_what_no_version_can_be_called(name: Any) -> None:
    with pytest.raises(ConfigError, match="version must be a string of 1 to 256 bytes"):
        check_version(name)


@pytest.mark.parametrize("name", [None, "3", "x" * MAX_VERSION_BYTES, "\u00e9t\u00e9"], ids=ascii)
def test_what_a_version_can_be_called(name: str | None) -> None:
    check_version(name)
