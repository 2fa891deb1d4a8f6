"""A whole step of the GPU's half and experts on a device without values: nobody asks it for any."""

from collections.abc import Iterator

import pytest
import torch

from megainfer.compute.gpu.backend import GpuBackend
from tests.support.checkpoints import write_checkpoint
from tests.support.valueless_device import (
    ValuelessDevice,
    assert_reads_its_tokens_only,
    refuse_copies,
    valueless_device,
)

FAMILIES = [
    ("qwen2_moe", "dense_between"),  # dense layers, shared experts
    ("deepseek_v32", "nine_positions"),  # latent attention to positions that are chosen
    ("qwen3_next", "grouped"),  # recurrent states
    ("gpt_oss", "alternating"),  # sinks, windows, biases
    ("llama4_text", "maverick"),  # chunks, temperature
]


@pytest.fixture(scope="module")
def device() -> Iterator[ValuelessDevice]:
    with valueless_device() as device:
        yield device


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_a_step_reads_nothing_of_a_gpu_but_its_tokens(tmp_path, device, family, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cpu", refuse_copies)
    backend = GpuBackend(torch.float32, torch.float32, device)
    assert_reads_its_tokens_only(write_checkpoint(*family, tmp_path), backend, device)
    assert device.launched
