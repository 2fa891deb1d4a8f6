"""A whole step of the reference on a device that has shapes but no values: whoever asks it for a
value or for a shape that depends on one fails, and so does whoever brings a tensor of the host."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, dtype
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from megainfer.attention_node.sampling.sampler import SampleRow, begin_sampling
from megainfer.compute.batch import ChunkInput
from megainfer.compute.reference.backend import ReferenceBackend
from megainfer.device import HostDevice
from megainfer.device.host import HostReadback
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import blocks_of, open_pair

FAMILIES = [
    ("qwen2_moe", "dense_between"),  # dense layers, shared experts
    ("deepseek_v3", "groups"),  # latent attention
    ("qwen3_next", "grouped"),  # recurrent states
    ("gpt_oss", "alternating"),  # sinks, windows, biases
]
ROWS = [
    SampleRow(temperature=0.0, top_p=1.0, top_k=0, seed=0, position=3, logprobs=2),
    SampleRow(temperature=0.8, top_p=0.9, top_k=5, seed=0, position=3, min_p=0.1),
]


class ValuelessDevice(HostDevice):
    """`Device` whose tensors have no values; read_backs: their shapes."""

    name = "valueless"
    is_host = False

    def __init__(self) -> None:
        super().__init__()
        _setup_privateuseone_for_python_backend(self.name)
        self.torch = torch.device(self.name)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.read_backs = list[tuple[int, ...]]()

    def empty(self, shape: Sequence[int], dtype: dtype) -> Tensor:
        with self.mode:
            return torch.empty(*shape, dtype=dtype, device=self.torch)

    def upload(self, host: Tensor) -> Tensor:
        return self.empty(host.shape, host.dtype)

    def read_back(self, tensor: Tensor) -> HostReadback:
        assert tensor.device.type == self.name
        self.read_backs.append(tuple(tensor.shape))
        return HostReadback(torch.zeros(tensor.shape, dtype=tensor.dtype))


@pytest.fixture(scope="module")
def device() -> Iterator[ValuelessDevice]:
    library = torch.library.Library("aten", "IMPL", "Meta")

    def places(ordered: Tensor, values: Tensor, **options: bool) -> Tensor:
        return torch.empty_like(values, dtype=torch.int64)

    library.impl("searchsorted.Tensor", places)  # torch doesn't say what shape it gives
    yield ValuelessDevice()
    library._destroy()


@pytest.fixture(autouse=True)
def _no_copies_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would come without values."""

    def refuse(tensor: Tensor) -> Tensor:
        raise AssertionError(f"{tuple(tensor.shape)} is copied to the host")

    monkeypatch.setattr(torch.Tensor, "cpu", refuse)


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_a_step_reads_nothing_of_a_device_but_its_tokens(tmp_path, device, family):
    backend = ReferenceBackend(torch.float32, torch.float32, device)
    pair = open_pair(write_checkpoint(*family, tmp_path), 2, backend)
    chunks = [
        ChunkInput([3], 7, blocks_of(0), True, 0),
        ChunkInput(list(range(20)), 0, blocks_of(1), True, 1),
    ]
    device.read_backs.clear()
    with device.mode:
        logits = pair.step(chunks)
        assert logits.device.type == device.name
        drawn = begin_sampling(logits, ROWS, backend.tokens, device)
    tokens, finite, best = (2,), (2,), (2,)
    assert device.read_backs == [finite, tokens, best, best, (1,), (1,)]
    assert drawn.done()


def test_whoever_asks_fails(device):
    with device.mode:
        x = device.upload(torch.arange(6))
        for ask in (x.tolist, x.nonzero, lambda: bool((x > 2).any()), lambda: torch.bincount(x)):
            with pytest.raises(Exception, match=r"nonzero|_local_scalar_dense|bincount"):
                ask()
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.arange(6)
