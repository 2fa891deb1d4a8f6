"""The devices that there are, for tests of what each of them promises."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from megainfer.device import HOST, Device
from tests.support.fake_backend import TorchWork
from tests.support.fake_device import FakeDevice


def _cuda() -> Device:
    from megainfer.device.cuda import CudaDevice

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return CudaDevice()


_OPEN: dict[str, Callable[[], Device]] = {"host": lambda: HOST, "fake": FakeDevice, "cuda": _cuda}
LATE = ("fake", pytest.param("cuda", marks=pytest.mark.gpu))
"""Those that compute on their own time."""
DEVICES = ("host", *LATE)


@contextmanager
def opened(kind: str) -> Iterator[Device]:
    """One of DEVICES; within it, what torch is asked to do with its memory is its work."""
    device = _OPEN[kind]()
    with TorchWork(device) if isinstance(device, FakeDevice) else nullcontext():
        yield device
