"""The GPU as a device: how its memory is sealed, and what becomes of its errors. Without a GPU, the
calls of torch's CUDA part are a stand-in's."""

import gc
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from megainfer.device import HOST, memory_counters
from megainfer.device import cuda as module
from megainfer.device.cuda import CudaDevice
from megainfer.device.failures import ends_the_node
from megainfer.errors import ConfigError, NodeDied
from megainfer.instruments.stage_clock import StageClock

GIB = 2**30


class FakeCuda(SimpleNamespace):
    """Of `torch.cuda` what a device's memory is asked."""

    def __init__(self) -> None:
        super().__init__(reserved=0, used=0, taken=0, fraction=1.0, chosen=None)

    def set_device(self, device: torch.device) -> None:
        self.chosen = device

    def get_device_properties(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(multi_processor_count=132, name="H200", major=9, minor=0)

    def memory_reserved(self, device: torch.device) -> int:
        return self.reserved

    def memory_allocated(self, device: torch.device) -> int:
        return self.used

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 140 * GIB - self.reserved, 140 * GIB

    def memory_stats(self, device: torch.device) -> dict[str, int]:
        return {"num_device_alloc": self.taken} if self.taken else {}

    def set_per_process_memory_fraction(self, fraction: float, device: torch.device) -> None:
        self.fraction = fraction

    def take(self, size: int) -> None:
        """Torch's allocator takes this from the GPU, in whole 2 MiB, unless the limit forbids."""
        size = -(-size // 2**21) * 2**21
        if self.reserved + size > int(self.fraction * 140 * GIB):
            raise torch.OutOfMemoryError(f"Tried to allocate {size} bytes.")
        self.reserved, self.taken = self.reserved + size, self.taken + 1


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(module, "cuda", fake)
    return fake


@pytest.mark.parametrize("held", [2**21, 5 * GIB, 139 * GIB + 2**21])
def test_a_sealed_device_that_is_strict_takes_no_more(cuda, held):
    device = CudaDevice(2, strict=True)
    assert cuda.chosen == torch.device("cuda", 2)
    cuda.take(held)
    device.seal()
    assert device.memory() == (held, 0, 0)
    with pytest.raises(torch.OutOfMemoryError):
        cuda.take(1)


def test_a_device_that_is_not_strict_counts_what_it_takes_late(cuda):
    device = CudaDevice()
    cuda.take(GIB)
    cuda.take(GIB)
    assert device.memory().late == 0, "it is loading"
    device.seal()
    cuda.take(1)
    assert device.memory() == (2 * GIB + 2**21, 0, 1)
    assert memory_counters(device) == {
        "device_bytes_held": 2 * GIB + 2**21,
        "device_bytes_used": 0,
        "device_late_allocations": 1,
    }
    assert memory_counters(HOST) == {}


class FakeGraph:
    """Of `torch.cuda.CUDAGraph` what records."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        self._told.append(f"begin {pool} {capture_error_mode}")

    def capture_end(self) -> None:
        self._told.append("end")
        if "broken" in self._told:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    def replay(self) -> None:
        self._told.append("replay")


@pytest.fixture
def told(cuda: FakeCuda, monkeypatch) -> list[str]:
    """What graphs of CUDA are asked."""
    told = list[str]()
    cuda.Stream, cuda.stream = SimpleNamespace, lambda stream: nullcontext()
    cuda.CUDAGraph, cuda.graph_pool_handle = (lambda: FakeGraph(told)), lambda: "pool"
    cuda.synchronize = lambda device: told.append("synchronize")
    monkeypatch.setattr(CudaDevice, "stream", lambda device: SimpleNamespace())
    return told


def test_what_is_recorded_is_given_again_and_nothing_is_collected_meanwhile(told):
    def work() -> None:
        told.append(f"work, collecting: {gc.isenabled()}")

    device = CudaDevice()
    replay = device.capture(work)
    assert gc.isenabled()
    assert told == ["synchronize", "begin pool thread_local", "work, collecting: False", "end"]
    replay()
    assert told[-1] == "replay"


def test_a_recording_that_fails_says_what_failed_first_and_collecting_goes_on(told):
    def work() -> None:
        told.append("broken")
        raise torch.AcceleratorError("CUDA error: out of memory")

    device = CudaDevice()
    with pytest.raises(NodeDied, match="out of memory"), ends_the_node("GPU 3 (H200)"):
        device.capture(work)
    assert told[-1] == "end"
    assert gc.isenabled()


@pytest.mark.gpu
def test_a_sealed_gpu_refuses_memory_that_it_has_not_yet_given():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = CudaDevice(strict=True)
    held = [device.empty((2**20,), torch.uint8) for _ in range(64)]
    device.seal()
    try:
        held.pop()
        device.empty((2**20,), torch.uint8)  # what was given back is there
        assert device.memory().late == 0
        with pytest.raises(torch.OutOfMemoryError):
            device.empty((2**30,), torch.uint8)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."


class Mark:
    """Of a device that has yet to pass it."""

    def done(self) -> bool:
        return False

    def seconds_since(self, earlier: "Mark") -> float:
        raise AssertionError("it isn't passed")


class Marks:
    """Of a device that is broken after the second."""

    taken = 0

    def take(self) -> Mark:
        self.taken += 1
        if self.taken > 2:
            raise torch.AcceleratorError(ILLEGAL)
        return Mark()

    def give_back(self, mark: Mark) -> None: ...


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore."),
            r"GPU 3 \(H200\) is out of memory at expert of layer 7, micro-batch 1: CUDA out of "
            r"memory\. Tried to allocate 2\.00 GiB\. A smaller --kv-cache-memory",
        ),
        (
            torch.AcceleratorError(ILLEGAL),
            r"GPU 3 \(H200\) failed, which was noticed at expert of layer 7, micro-batch 1: CUDA "
            r"error: an illegal memory access was encountered$",
        ),
        (
            RuntimeError("Triton Error [CUDA]: misaligned address"),
            r"noticed at expert of layer 7, micro-batch 1: Triton Error \[CUDA\]: misaligned",
        ),
    ],
)
def test_an_error_of_the_gpu_ends_its_node_and_says_where(error, text):
    clock = StageClock(marks=Marks())

    def run() -> None:
        try:
            with clock.span("expert", 1, 7):
                raise error
        finally:
            raise RuntimeError("while ports were closed on a broken device")

    with pytest.raises(NodeDied, match=text), ends_the_node("GPU 3 (H200)"):
        run()


@pytest.mark.parametrize("error", [ConfigError("a wish"), RuntimeError("ours"), KeyError(3)])
def test_all_other_errors_pass(error):
    with pytest.raises(type(error)) as raised, ends_the_node("GPU 0 (H200)"):
        raise error
    assert raised.value is error
