"""What a section computes on, and how it measures."""

import os
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch

from megainfer.device import HOST, Device, settle

FLUSH_BYTES = 256 << 20  # more than the L2 of any GPU: what is measured comes from memory
WARM_UP, ROUNDS = 3, 15


class Bench:
    """device: the first GPU, or the host with Triton's interpreter in a dry run, which tries the
    code and measures nothing of worth. note: is given what a section has found so far, so that it
    is told even when the section is ended."""

    def __init__(self, dry: bool, note: Callable[[Any], None] = lambda found: None) -> None:
        self.dry = dry
        self.note = note
        self.dtype = torch.float32 if dry else torch.bfloat16
        self.device = _device(dry)
        self._flushed = torch.empty(
            1 if dry else FLUSH_BYTES, dtype=torch.uint8, device=self.device.torch
        )

    def size(self, real: int, dry: int) -> int:
        """Of whatever is smaller in a dry run."""
        return dry if self.dry else real

    def seconds(self, work: Callable[[], object]) -> float:
        """The device's own, the median of several rounds; none finds its input in a cache."""
        for _ in range(0 if self.dry else WARM_UP):
            work()
        return median(self._once(work) for _ in range(1 if self.dry else ROUNDS))

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        """`work` as the device has recorded it, whose time is then the device's own: giving one
        kernel after the other may take the host longer. In a dry run it is given as ever."""
        if self.device.is_host:
            return work
        work()  # compiles its kernels, and makes what is uploaded once
        return self.device.capture(work)

    def given(self, work: Callable[[], object]) -> float:
        """The host's seconds until it has given `work` to a device that has nothing else to do."""
        times = list[float]()
        for _ in range(1 if self.dry else ROUNDS):
            settle(self.device)
            started = perf_counter()
            work()
            times.append(perf_counter() - started)
        return median(times)

    def answers(self, questions: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Of each by itself, or why there is none; each is noted when it is there."""
        found = dict[str, Any]()
        for name, question in questions.items():
            found[name] = tried(question)
            self.note(found)
        return found

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.is_host:
            started = perf_counter()
            work()
            return perf_counter() - started
        self._flushed.zero_()
        begin, end = self.device.event(timed=True), self.device.event(timed=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return end.seconds_since(begin)


def _device(dry: bool) -> Device:
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"  # kernels look at it when they are defined
        return HOST
    from megainfer.device.cuda import CudaDevice

    return CudaDevice()


def tried(question: Callable[[], Any]) -> Any:
    """Its answer, or why there is none: the others are asked all the same."""
    try:
        return question()
    except Exception as error:  # whatever a driver or a library raises is an answer
        return {"failed": f"{type(error).__name__}: {error}"}
