"""A whole step of the reference on a device that has shapes but no values: whoever asks it for a
value or for a shape that depends on one fails, and so does whoever brings a tensor of the host."""

from collections.abc import Iterator

import pytest
import torch

from megainfer.compute.reference.backend import ReferenceBackend
from tests.support.checkpoints import write_checkpoint
from tests.support.valueless_device import (
    ValuelessDevice,
    assert_reads_its_tokens_only,
    refuse_copies,
    valueless_device,
)

FAMILIES = [
    ("qwen2_moe", "dense_between"),  # dense layers, shared experts
    ("deepseek_v3", "groups"),  # latent attention
    ("qwen3_next", "grouped"),  # recurrent states
    ("gpt_oss", "alternating"),  # sinks, windows, biases
]


@pytest.fixture(scope="module")
def device() -> Iterator[ValuelessDevice]:
    with valueless_device() as device:
        yield device


@pytest.fixture(autouse=True)
def _no_copies_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cpu", refuse_copies)


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_a_step_reads_nothing_of_a_device_but_its_tokens(tmp_path, device, family):
    backend = ReferenceBackend(torch.float32, torch.float32, device)
    assert_reads_its_tokens_only(write_checkpoint(*family, tmp_path), backend, device)


def test_whoever_asks_fails(device):
    with device.mode:
        x = device.upload(torch.arange(6))
        for ask in (x.tolist, x.nonzero, lambda: bool((x > 2).any()), lambda: torch.bincount(x)):
            with pytest.raises(Exception, match=r"nonzero|_local_scalar_dense|bincount"):
                ask()
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.arange(6)
