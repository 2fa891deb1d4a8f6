"""How soon a host sees a word that a stream has stored into its memory."""

from mmap import mmap
from statistics import median
from time import perf_counter

import torch

from megainfer.device.cuda import CudaDevice
from megainfer.m2n.ipc.cuda_driver import CudaDriver
from megainfer.m2n.ipc.cuda_words import CudaWords

BYTES, WORD_BYTES = 4096, 8
REPEATS, SECONDS = 200, 2.0


def latency() -> dict[str, float]:
    """Seconds from the call that gives the store until the word is seen, alone and behind a small
    kernel."""
    region = mmap(-1, BYTES)
    words = CudaWords(CudaDevice(), CudaDriver.load())
    place = words.reach(region, [0])[0]
    small = torch.zeros(1024, device="cuda")
    try:
        times = dict[str, list[float]](alone=[], behind_a_kernel=[])
        for number in range(1, 2 * REPEATS + 1):
            name = "behind_a_kernel" if number % 2 else "alone"
            torch.cuda.synchronize()
            started = perf_counter()
            if number % 2:
                small.add_(1)
            words.store([(place, number)])
            while int.from_bytes(region[:WORD_BYTES], "little") != number:
                if perf_counter() - started > SECONDS:
                    raise TimeoutError(f"word {number} isn't seen after {SECONDS} s")
            times[name].append(perf_counter() - started)
        return {name: median(own) for name, own in times.items()}
    finally:
        words.leave(region)
