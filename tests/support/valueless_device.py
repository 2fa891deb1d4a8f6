"""A device that has shapes but no values: whoever asks it for a value, or for a shape that depends
on one, fails, and so does whoever brings a tensor of the host."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, dtype
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from megainfer.attention_node.sampling.sampler import SampleRow, begin_sampling
from megainfer.compute.backend import Backend
from megainfer.compute.batch import ChunkInput
from megainfer.device import HostDevice
from megainfer.device.host import HostReadback
from tests.support.node_pair import blocks_of, open_pair

NAME = "valueless"
ROWS = [
    SampleRow(temperature=0.0, top_p=1.0, top_k=0, seed=0, position=3, logprobs=2),
    SampleRow(temperature=0.8, top_p=0.9, top_k=5, seed=0, position=3, min_p=0.1),
]


class ValuelessDevice(HostDevice):
    """`Device` whose tensors have no values, and whose kernels do nothing; read_backs: shapes of
    what the host took. Work is given to it within `mode`."""

    name = NAME
    is_host = False

    def __init__(self) -> None:
        super().__init__()
        self.torch = _registered()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.read_backs = list[tuple[int, ...]]()
        self.launched = list[str]()

    def empty(self, shape: Sequence[int], dtype: dtype) -> Tensor:
        with self.mode:
            return torch.empty(*shape, dtype=dtype, device=self.torch)

    def upload(self, host: Tensor) -> Tensor:
        return self.empty(host.shape, host.dtype)

    def fill(self, to: Tensor, host: Tensor) -> None:
        assert to.device.type == NAME

    def read_back(self, tensor: Tensor) -> HostReadback:
        assert tensor.device.type == NAME
        self.read_backs.append(tuple(tensor.shape))
        return HostReadback(torch.zeros(tensor.shape, dtype=tensor.dtype))

    def launch(
        self,
        work: Callable[[], object],
        reads: Iterable[Tensor],
        writes: Iterable[Tensor],
        *,
        name: str,
    ) -> None:
        for tensor in (*reads, *writes):
            assert tensor.device.type == NAME, f"{name} is given {tuple(tensor.shape)} of the host"
        self.launched.append(name)


@cache
def _registered() -> torch.device:
    """Which torch lets a process do once."""
    _setup_privateuseone_for_python_backend(NAME)
    # Of every device that torch knows, it asks this before it computes activations again.
    getattr(torch, NAME).get_amp_supported_dtype = list
    return torch.device(NAME)


@contextmanager
def valueless_device() -> Iterator[ValuelessDevice]:
    """The one of this process, while torch's operations know it."""
    library = torch.library.Library("aten", "IMPL", "Meta")

    def places(ordered: Tensor, values: Tensor, **options: bool) -> Tensor:
        return torch.empty_like(values, dtype=torch.int64)

    library.impl("searchsorted.Tensor", places)  # torch doesn't say what shape it gives
    yield ValuelessDevice()
    library._destroy()


def refuse_copies(tensor: Tensor) -> Tensor:
    """In place of `Tensor.cpu`, whose result would come without values."""
    raise AssertionError(f"{tuple(tensor.shape)} is copied to the host")


def assert_reads_its_tokens_only(folder: Path, backend: Backend, device: ValuelessDevice) -> None:
    """A decode and a prompt over two expert nodes, one token greedy and one drawn."""
    pair = open_pair(folder, 2, backend)
    chunks = [
        ChunkInput([3], 7, blocks_of(0), True, 0),
        ChunkInput(list(range(20)), 0, blocks_of(1), True, 1),
    ]
    device.read_backs.clear()
    with device.mode:
        logits = pair.step(chunks)
        assert logits.device.type == NAME
        drawn = begin_sampling(logits, ROWS, backend.tokens, device)
    tokens, finite, best = (2,), (2,), (2,)
    assert device.read_backs == [finite, tokens, best, best, (1,), (1,)]
    assert drawn.done()
