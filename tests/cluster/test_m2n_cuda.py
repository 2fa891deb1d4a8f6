"""What `ipc` asks of the CUDA driver, one that keeps a list; and tensors over its memory."""

import ctypes
import io
import sys
from mmap import mmap
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megainfer.device import HOST
from megainfer.errors import ConfigError, ProtocolError
from megainfer.m2n.geometry import PayloadRoom
from megainfer.m2n.ipc.cuda_driver import CudaDriver, DriverError
from megainfer.m2n.ipc.cuda_memory import CudaMemory
from megainfer.m2n.ipc.cuda_words import MOST_AT_ONCE, CudaWords
from megainfer.m2n.ipc.equipment import equipment_of
from megainfer.m2n.ipc.foreign_tensor import tensor_at
from megainfer.m2n.slotted.native_end import address_of
from tests.support.scripted_driver import UNIT, Result, ScriptedDriver

ROOM = PayloadRoom(slots=3, stride=UNIT // 2)
OWNER = bytes([70]) * 16


def memory_of(scripted: ScriptedDriver) -> CudaMemory:
    return CudaMemory(HOST, CudaDriver(scripted))


def test_memory_is_made_shared_and_given_back() -> None:
    scripted = ScriptedDriver()
    memory = memory_of(scripted)
    assert memory.uuid == OWNER
    own = memory.allocate(ROOM)
    assert scripted.handles == {}  # what holds the memory are its mapping and its descriptor
    theirs = memory_of(ScriptedDriver())
    with io.FileIO(own.fileno(), "r", closefd=False) as file:
        adopted = theirs.adopt(file, ROOM, OWNER)
    for payloads in (own, adopted):
        for slot in range(ROOM.slots):
            payloads.tensor(slot, 64, torch.bfloat16, (5, 8)).fill_(slot)
    assert list(scripted.mapped.values()) == [2 * UNIT]
    view = own.tensor(2, 64, torch.bfloat16, (5, 8))
    own.withdraw()
    del own, payloads
    assert scripted.mapped  # a view of it is left
    assert view.unique().tolist() == [2]
    del view
    assert scripted.mapped == scripted.reserved == {}
    assert scripted.names()[-3:] == ["cuCtxSynchronize", "cuMemUnmap", "cuMemAddressFree"]


def test_each_call_about_memory_has_its_context() -> None:
    """Whoever meets a peer does so in a thread of its own."""
    scripted = ScriptedDriver()
    memory = memory_of(scripted)
    begun = len(scripted.calls)
    memory.allocate(ROOM)
    names = [name for name, _ in scripted.calls[begun:]]
    assert names[::2] == ["cuCtxSetCurrent"] * (len(names) // 2)
    assert "cuCtxSetCurrent" not in names[1::2]


def test_memory_is_the_devices_own_and_exported_by_descriptor() -> None:
    scripted = ScriptedDriver()
    memory_of(scripted).allocate(ROOM)
    calls = dict(scripted.calls)
    wanted = calls["cuMemCreate"][1]
    assert (wanted.type, wanted.requestedHandleTypes) == (1, 1)
    assert (wanted.location.type, wanted.location.id) == (1, 0)
    ((access,), count) = calls["cuMemSetAccess"][2:]
    assert (access.location.id, access.flags, count) == (0, 3, 1)


@pytest.mark.parametrize(
    ("attribute", "what"),
    [(102, "map memory by handles"), (103, "share it by descriptors"), (122, "store 64-bit words")],
)
def test_a_gpu_that_lacks_something_is_named(attribute: int, what: str) -> None:
    scripted = ScriptedDriver()
    scripted.lacking.add(attribute)
    with pytest.raises(ConfigError, match=f"a GPU that can {what}.*, cpu cannot"):
        memory_of(scripted)


def test_memory_that_is_short_says_how_much_is_needed() -> None:
    memory = memory_of(ScriptedDriver(cuMemCreate=Result.CUDA_ERROR_OUT_OF_MEMORY))
    with pytest.raises(
        ConfigError, match=f"3 slots take {2 * UNIT} bytes of cpu.*CUDA_ERROR_OUT_OF_MEMORY.*lower"
    ):
        memory.allocate(ROOM)


@pytest.mark.parametrize(
    "call", ["cuMemImportFromShareableHandle", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"]
)
def test_memory_that_cannot_be_reached_is_refused_and_nothing_is_kept(call: str) -> None:
    own = memory_of(ScriptedDriver()).allocate(ROOM)
    scripted = ScriptedDriver(**{call: Result.CUDA_ERROR_NOT_SUPPORTED})
    memory = memory_of(scripted)
    with (
        io.FileIO(own.fileno(), "r", closefd=False) as file,
        pytest.raises(ProtocolError, match=f"{OWNER.hex()} cannot be reached .*{call}.*SUPPORTED"),
    ):
        memory.adopt(file, ROOM, OWNER)
    assert scripted.handles == scripted.mapped == scripted.reserved == {}


# --- words ----------------------------------------------------------------------------------------


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> int:
    def current(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=4711)

    monkeypatch.setattr(torch.cuda, "current_stream", current)
    return 4711


def batches(scripted: ScriptedDriver) -> list[tuple[Any, ...]]:
    return [arguments for name, arguments in scripted.calls if name == "cuStreamBatchMemOp"]


def test_words_are_stored_by_the_current_stream(stream: int) -> None:
    scripted, region = ScriptedDriver(), mmap(-1, 4096)
    words = CudaWords(HOST, CudaDriver(scripted))
    places = words.reach(region, [0, 128, 256])
    address = address_of(region)
    assert dict(scripted.calls)["cuMemHostRegister"] == (address, 4096, 3)
    words.store([(places[2], 6), (places[0], 2**63)])
    ((on, count, operations, flags),) = batches(scripted)
    assert (on, count, flags) == (stream, 2, 0)
    assert [operation.operation for operation in operations] == [5, 5]
    stores = [(op.writeValue.address, op.writeValue.value64) for op in operations]
    assert stores == [(address + 2**40 + 256, 6), (address + 2**40, 2**63)]
    assert {operation.writeValue.flags for operation in operations} == {0}  # with a fence before
    words.leave(region)
    assert scripted.names()[-2:] == ["cuCtxSynchronize", "cuMemHostUnregister"]
    assert scripted.registered == set()


@pytest.mark.usefixtures("stream")
def test_more_words_than_the_driver_takes_go_one_batch_after_another() -> None:
    scripted, region = ScriptedDriver(), mmap(-1, 8 * 600)
    words = CudaWords(HOST, CudaDriver(scripted))
    places = words.reach(region, [8 * i for i in range(600)])
    words.store([(place, i) for i, place in enumerate(places)])
    given = batches(scripted)
    assert [count for _, count, _, _ in given] == [MOST_AT_ONCE, MOST_AT_ONCE, 90]
    values = [op.writeValue.value64 for _, _, operations, _ in given for op in operations]
    assert values == list(range(600))


@pytest.mark.usefixtures("stream")
def test_an_error_of_the_driver_names_the_call() -> None:
    scripted = ScriptedDriver(cuStreamBatchMemOp=Result.CUDA_ERROR_NOT_SUPPORTED)
    words = CudaWords(HOST, CudaDriver(scripted))
    (place,) = words.reach(mmap(-1, 4096), [0])
    with pytest.raises(DriverError, match=r"cuStreamBatchMemOp .* CUDA_ERROR_NOT_SUPPORTED"):
        words.store([(place, 2)])


# --- the bindings ---------------------------------------------------------------------------------


def test_bindings_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(ConfigError, match="needs cuda-bindings"):
        CudaDriver.load()


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        def cuInit(self, flags: int) -> None:
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    bindings = SimpleNamespace(driver=Nowhere())
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=bindings))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", bindings.driver)
    with pytest.raises(ConfigError, match="no CUDA driver: Failed to dlopen"):
        CudaDriver.load()


def test_only_gpus_have_what_it_takes() -> None:
    for device, name in ((None, "the host"), (HOST, "cpu")):
        with pytest.raises(ConfigError, match=f"this one is on {name}; take 'shm'"):
            equipment_of(device, None)


# --- tensors over foreign memory ------------------------------------------------------------------


def test_a_tensor_over_foreign_memory_is_that_memory() -> None:
    memory, released = np.zeros(64, dtype=np.uint8), []
    tensor = tensor_at(memory.ctypes.data, 64, torch.device("cpu"), lambda: released.append(1))
    assert (tensor.dtype, tensor.shape) == (torch.uint8, (64,))
    assert tensor.data_ptr() == memory.ctypes.data
    tensor.view(torch.float32)[3] = 1.5
    assert ctypes.c_float.from_address(memory.ctypes.data + 12).value == 1.5
    view = tensor[8:].view(torch.int32)
    del tensor
    assert released == []
    del view
    assert released == [1]
