"""GPUs as NVIDIA's management library knows them: asking it initialises no CUDA, so that a process
that asks may still fork."""

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p, create_string_buffer
from dataclasses import dataclass

from megainfer.errors import MegaInferError

LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96  # the most that any of its texts takes
_NOT_SUPPORTED = 3
_P2P_READ, _P2P_WRITE = 0, 1  # nvmlGpuP2PCapsIndex_t


@dataclass(frozen=True, slots=True)
class Gpu:
    """uuid: what CUDA_VISIBLE_DEVICES takes, whatever order CUDA counts in. memory, free_memory:
    bytes. capability: (major, minor) of its architecture. peers: uuids of the others that it reads
    and writes directly. split: into instances (MIG), each of which CUDA takes for a GPU."""

    uuid: str
    name: str
    memory: int
    free_memory: int
    capability: tuple[int, int]
    peers: tuple[str, ...] = ()
    split: bool = False

    @property
    def architecture(self) -> str:
        """
        >>> Gpu("GPU-0", "H200", 2**37, 2**37, (9, 0)).architecture
        'sm_90'
        """
        major, minor = self.capability
        return f"sm_{major}{minor}"


@dataclass(frozen=True, slots=True)
class Nvidia:
    """gpus: in the order of nvidia-smi. driver: its version, "" without one. problem: why there are
    no GPUs, "" where nothing went wrong."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    problem: str = ""


class _NvmlError(MegaInferError):
    """A call of the library failed."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


def ask_nvml(library: str = LIBRARY) -> Nvidia:
    """What there is now. Never raises: where the library is missing or fails there are no GPUs."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return Nvidia(problem=f"no {library}: there is no NVIDIA driver")
    try:
        nvml.nvmlErrorString.restype = c_char_p
        return _Session(nvml).answer()
    except (_NvmlError, AttributeError) as error:  # also of a library without such a function
        return Nvidia(problem=f"{library} fails: {error}")


class _Session:
    """Calls between nvmlInit and nvmlShutdown."""

    def __init__(self, nvml: ctypes.CDLL) -> None:
        self._nvml = nvml

    def answer(self) -> Nvidia:
        self._call("nvmlInit_v2")
        try:
            driver = self._text("nvmlSystemGetDriverVersion")
            count = c_uint()
            self._call("nvmlDeviceGetCount_v2", byref(count))
            handles = [self._handle(index) for index in range(count.value)]
            return Nvidia(tuple(self._gpu(handle, handles) for handle in handles), driver)
        finally:
            self._nvml.nvmlShutdown()

    def _gpu(self, handle: c_void_p, all_handles: Sequence[c_void_p]) -> Gpu:
        memory, major, minor = _Memory(), c_int(), c_int()
        self._call("nvmlDeviceGetMemoryInfo", handle, byref(memory))
        self._call("nvmlDeviceGetCudaComputeCapability", handle, byref(major), byref(minor))
        others = [other for other in all_handles if other is not handle]
        return Gpu(
            uuid=self._text("nvmlDeviceGetUUID", handle),
            name=self._text("nvmlDeviceGetName", handle),
            memory=memory.total,
            free_memory=memory.free,
            capability=(major.value, minor.value),
            peers=tuple(
                self._text("nvmlDeviceGetUUID", other)
                for other in others
                if self._reaches(handle, other)
            ),
            split=self._is_split(handle),
        )

    def _handle(self, index: int) -> c_void_p:
        handle = c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle))
        return handle

    def _reaches(self, handle: c_void_p, other: c_void_p) -> bool:
        """Whether it reads and writes the other's memory; no, where the driver doesn't know."""
        for wish in (_P2P_READ, _P2P_WRITE):
            status = c_int(-1)
            code = self._nvml.nvmlDeviceGetP2PStatus(handle, other, c_int(wish), byref(status))
            if code or status.value:
                return False
        return True

    def _is_split(self, handle: c_void_p) -> bool:
        current, pending = c_uint(), c_uint()
        code = self._nvml.nvmlDeviceGetMigMode(handle, byref(current), byref(pending))
        if code == _NOT_SUPPORTED:
            return False
        self._check(code)
        return bool(current.value)

    def _text(self, function: str, *arguments: object) -> str:
        text = create_string_buffer(_TEXT_BYTES)
        self._call(function, *arguments, text, c_uint(_TEXT_BYTES))
        return text.value.decode(errors="replace")

    def _call(self, function: str, *arguments: object) -> None:
        self._check(getattr(self._nvml, function)(*arguments))

    def _check(self, code: int) -> None:
        if code:
            text = self._nvml.nvmlErrorString(c_int(code)) or b"?"
            raise _NvmlError(text.decode(errors="replace"))


def visible_gpus(gpus: Sequence[Gpu], wish: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; None: all.

    As CUDA reads it: numbers, or beginnings of uuids, up to the first that is no GPU.

    >>> two = [Gpu(f"GPU-{n}", "H200", 1, 1, (9, 0)) for n in "ab"]
    >>> [gpu.uuid for gpu in visible_gpus(two, "1,GPU-a,7,0")]
    ['GPU-b', 'GPU-a']
    """
    if wish is None:
        return tuple(gpus)
    seen = list[Gpu]()
    for word in map(str.strip, wish.split(",")):
        gpu = _named(gpus, word)
        if gpu is None:
            break
        seen.append(gpu)
    return tuple(seen)


def _named(gpus: Sequence[Gpu], word: str) -> Gpu | None:
    if word.isascii() and word.isdigit():
        return gpus[int(word)] if int(word) < len(gpus) else None
    return next((gpu for gpu in gpus if word and gpu.uuid.startswith(word)), None)
