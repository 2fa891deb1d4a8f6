"""All kernels on some of the machine's cores, alone or beside others that read memory meanwhile."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from megainfer.calibration import kernels
from megainfer.calibration.kernels import USUAL, Case, Sizes
from megainfer.calibration.measured import KernelTime, KernelTimes
from megainfer.calibration.timing import undisturbed
from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.compute.cpu.kernels.experts import on_large_pages
from megainfer.compute.cpu.kernels.threads import Threads


def measure_kernels(cores: Sequence[int], busy: Sequence[int], sizes: Sizes = USUAL) -> KernelTimes:
    """On a thread for each of these cores; others read memory on the `busy` ones meanwhile.

    The calling thread is where it was before, afterwards.
    """
    with _on(cores):
        works = _works(Threads(len(cores)), sizes)
        with _readers(busy, sizes.working):
            seconds = undisturbed({key: case.work for key, case in works.items()})
    times = {key: KernelTime(own.size, own.amount, seconds[key]) for key, own in works.items()}

    def of(kind: str, dtype: str) -> tuple[KernelTime, ...]:
        return tuple(time for key, time in times.items() if key[:2] == (kind, dtype))

    return KernelTimes(
        times["memory", "", 0].rate,
        {
            dtype: _without_call(of("products", dtype), seconds["call", dtype, 0])
            for dtype in kernels.DTYPES
        },
        {dtype: of("experts", dtype) for dtype in kernels.DTYPES},
        {dtype: _less(of("attention", dtype), of("without", dtype)) for dtype in kernels.KV_DTYPES},
    )


Key = tuple[str, str, int]
"""Kind, dtype, and which of them."""


def _works(threads: Threads, sizes: Sizes) -> dict[Key, Case]:
    """All of them at once, so that each round of measuring goes through every one."""
    kernel = AttentionKernel(threads)
    works = {("memory", "", 0): kernels.reading(threads.count, sizes.working)}
    for dtype in kernels.DTYPES:
        works["call", dtype, 0] = kernels.calling(kernel, dtype)
        for place, case in enumerate(kernels.products(kernel, dtype, sizes)):
            works["products", dtype, place] = case
        for place, case in enumerate(kernels.experts(threads, dtype, sizes)):
            works["experts", dtype, place] = case
    for dtype in kernels.KV_DTYPES:
        for place, reading in enumerate(kernels.attention(kernel, dtype, sizes)):
            works["attention", dtype, place] = reading.whole
            works["without", dtype, place] = reading.without
    return works


def _without_call(times: Sequence[KernelTime], call: float) -> tuple[KernelTime, ...]:
    """A node makes one call for a whole layer, which is among the host's work on it; so a product's
    own is taken off, as far as it can have been the smaller part."""
    return tuple(
        KernelTime(own.size, own.amount, max(own.seconds - call, own.seconds / 2)) for own in times
    )


def _less(whole: Sequence[KernelTime], without: Sequence[KernelTime]) -> tuple[KernelTime, ...]:
    """What reading alone takes; without those so small that nothing is left."""
    pairs = zip(whole, without, strict=True)
    return tuple(
        KernelTime(own.size, own.amount, own.seconds - other.seconds)
        for own, other in pairs
        if own.seconds > other.seconds
    )


@contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    """The calling thread, and those that it starts meanwhile; torch gets none of its own, which
    would be in the way of the kernels'."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


@contextmanager
def _readers(cores: Sequence[int], size: int) -> Iterator[None]:
    """A thread on each core that reads memory for as long as this lasts."""
    ended = threading.Event()
    readers = [
        threading.Thread(target=_read, args=(core, ended, size), daemon=True) for core in cores
    ]
    for reader in readers:
        reader.start()
    try:
        yield
    finally:
        ended.set()
        for reader in readers:
            reader.join()


def _read(core: int, ended: threading.Event, size: int) -> None:
    os.sched_setaffinity(0, {core})
    memory, native = on_large_pages(size).fill_(0), library.load()
    while not ended.is_set():
        native.megainfer_read(memory.data_ptr(), size // 4)  # without the interpreter's lock
