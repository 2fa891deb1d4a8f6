"""Tensors as a safetensors file in memory, which another process can read and nobody can change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megainfer.checkpoint.copies import SealedCopies, is_sealed_file
from megainfer.checkpoint.shared import shared_weights
from megainfer.errors import CheckpointError

TENSORS = {
    "odd": torch.arange(3).to(torch.bfloat16),  # what follows isn't aligned
    "matrix": torch.randn(5, 7),
    "turned": torch.randn(4, 6).T,
    "scalar": torch.tensor(2.5),
    "none": torch.zeros(0, 3),
    "codes": torch.arange(9, dtype=torch.int8),
    "trained": torch.nn.Parameter(torch.ones(2)),
}


def test_it_is_a_safetensors_file() -> None:
    with shared_weights(TENSORS) as path:
        found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_another_process_reads_it_and_nobody_writes_it() -> None:
    with shared_weights(TENSORS) as path:
        size = f"import os; print(os.stat({path!r}).st_size)"
        told = subprocess.run([sys.executable, "-c", size], capture_output=True, check=True)
        assert int(told.stdout) == Path(path).stat().st_size
        assert is_sealed_file(Path(path))
        with SealedCopies([Path(path)]) as copies:
            assert os.stat(copies.paths[0]).st_ino == os.stat(path).st_ino
        with pytest.raises(PermissionError):
            os.truncate(path, 1)
    assert not Path(path).exists()


def test_what_can_not_be_shared_is_named() -> None:
    with pytest.raises(CheckpointError, match="x is a list, not a tensor"):
        shared_weights({"x": [1.0]}).__enter__()  # type: ignore[dict-item]  # what is refused
    with pytest.raises(CheckpointError, match=r"tensor x is torch\.complex64"):
        shared_weights({"x": torch.zeros(1, dtype=torch.complex64)}).__enter__()
