"""An NVIDIA GPU as a device: torch's streams, events and caching allocator."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, cuda, dtype

from megainfer.device.device import Chip, MemoryUse, Replay, Stream
from megainfer.device.staging import Staging

SMALL_BYTES = 2**20
"""What a step uploads is smaller, and never waits; what is larger are weights."""
_ROUNDING_BYTES = 2**20  # half of the least that torch's allocator takes from a device


class CudaEvent:
    """`device.Event`."""

    def __init__(self, timed: bool) -> None:
        self._event = cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]  # torch's

    def record(self) -> None:
        """See `Event.record`."""
        self._event.record()

    def done(self) -> bool:
        """See `Event.done`."""
        return bool(self._event.query())  # type: ignore[no-untyped-call]  # torch's

    def wait(self) -> None:
        """See `Event.wait`."""
        self._event.wait()

    def synchronize(self) -> None:
        """See `Event.synchronize`."""
        self._event.synchronize()

    def seconds_since(self, earlier: "CudaEvent") -> float:
        """See `Event.seconds_since`."""
        return float(earlier._event.elapsed_time(self._event)) / 1000


class CudaReadback:
    """`device.Readback` into pinned memory, which torch keeps for the next one."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = pinned(tensor.shape, tensor.dtype)
        self._values.copy_(tensor, non_blocking=True)
        self._event = CudaEvent(timed=False)
        self._event.record()

    def done(self) -> bool:
        """See `Readback.done`."""
        return self._event.done()

    def take(self) -> Tensor:
        """See `Readback.take`."""
        self._event.synchronize()
        return self._values


class CudaDevice:
    """`device.Device` of the index-th GPU that CUDA shows this process, which is initialised.

    The calling thread computes on it from here on. A process has its own GPU as the first
    (`launch.computing`), so that every thread that it starts does.

    strict: once it is sealed, more memory is refused: torch.OutOfMemoryError, where it was asked
    for.
    """

    is_host = False

    def __init__(self, index: int = 0, strict: bool = False) -> None:
        self.name = f"cuda:{index}"
        self.torch = torch.device("cuda", index)
        cuda.set_device(self.torch)
        properties = cuda.get_device_properties(self.torch)
        self.processors: int = properties.multi_processor_count
        self.chip = Chip(properties.name, 10 * properties.major + properties.minor)
        self._strict = strict
        self._taken = 0
        self._capturing: tuple[Stream, Any] | None = None
        self._staging = Staging(self, lambda size: pinned((size,), torch.uint8))

    def empty(self, shape: Sequence[int], dtype: dtype) -> Tensor:
        """See `Device.empty`."""
        return torch.empty(tuple(shape), dtype=dtype, device=self.torch)

    def upload(self, host: Tensor) -> Tensor:
        """See `Device.upload`. Blocks only where weights come faster than they are copied."""
        to = self.empty(host.shape, host.dtype)
        if host.nbytes > SMALL_BYTES:
            self._staging.upload(host, to)
        else:
            self.fill(to, host)
        return to

    def fill(self, to: Tensor, host: Tensor) -> None:
        """See `Device.fill`; torch keeps the pinned memory until the copy is done."""
        to.copy_(pinned(host.shape, host.dtype).copy_(host), non_blocking=True)

    def read_back(self, tensor: Tensor) -> CudaReadback:
        """See `Device.read_back`."""
        return CudaReadback(tensor)

    def stream(self) -> Stream:
        """See `Device.stream`."""
        return cuda.Stream(self.torch)  # type: ignore[no-untyped-call]  # torch's

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """See `Device.on`."""
        assert isinstance(stream, cuda.Stream)
        return cuda.stream(stream)

    def event(self, timed: bool = False) -> CudaEvent:
        """See `Device.event`."""
        return CudaEvent(timed)

    def launch(
        self,
        work: Callable[[], object],
        reads: Iterable[Tensor],
        writes: Iterable[Tensor],
        *,
        name: str,
    ) -> None:
        """See `Device.launch`: Triton takes torch's current stream by itself."""
        work()

    def capture(self, work: Callable[[], object]) -> Replay:
        """See `Device.capture`: a CUDA graph; all of this device's share their memory."""
        graph = cuda.CUDAGraph()
        if self._capturing is None:  # a stream of its own: the default one can't be captured
            self._capturing = self.stream(), cuda.graph_pool_handle()
        stream, pool = self._capturing
        cuda.synchronize(self.torch)
        with self.on(stream), _nothing_collected():
            # Of other threads, which may go on loading weights, nothing is captured.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()

        def replay(reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = ()) -> None:
            graph.replay()

        return replay

    def seal(self) -> None:
        """See `Device.seal`."""
        self._taken = self._times_taken()
        if self._strict:
            held = cuda.memory_reserved(self.torch) + _ROUNDING_BYTES
            _, total = cuda.mem_get_info(self.torch)
            cuda.set_per_process_memory_fraction(min(1.0, held / total), self.torch)

    def memory(self) -> MemoryUse:
        """See `Device.memory`."""
        return MemoryUse(
            held=cuda.memory_reserved(self.torch),
            used=cuda.memory_allocated(self.torch),
            late=self._times_taken() - self._taken if self._taken else 0,
        )

    def _times_taken(self) -> int:
        """How often torch has taken memory from the GPU."""
        return int(cuda.memory_stats(self.torch).get("num_device_alloc", 0))


def pinned(shape: Sequence[int], dtype: dtype) -> Tensor:
    """Host memory that GPUs copy from and to while the host goes on."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Within it Python collects no garbage: memory of a peer that a node has left, for one, waits
    for the GPU when it goes, and nothing may while it records."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
