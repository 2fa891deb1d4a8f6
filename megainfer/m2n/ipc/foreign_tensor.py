"""Memory that torch has not allocated, as a tensor: by DLPack's C structures.

https://dmlc.github.io/dlpack/latest/c_api.html
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

_TYPES = {"cpu": 1, "cuda": 2}  # DLDeviceType
_UINT = 1  # DLDataTypeCode
_NAME = b"dltensor"


class _DLDevice(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_DLManagedTensor))
_DLManagedTensor._fields_ = (
    ("dl_tensor", _DLTensor),
    ("manager_ctx", ctypes.c_void_p),
    ("deleter", _DELETER),
)
_held: dict[int, tuple[Any, ...]] = {}  # by address, what tensors that are alive need
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def _release(managed: Any) -> None:
    _, _, release = _held.pop(ctypes.addressof(managed.contents))
    release()


_RELEASE = _DELETER(_release)


def tensor_at(address: int, size: int, device: torch.device, release: Callable[[], None]) -> Tensor:
    """The `size` bytes from `address` on, uint8, as memory of `device`.

    release: called once the last view of it is gone.
    """
    managed, shape = _DLManagedTensor(), (ctypes.c_int64 * 1)(size)
    managed.dl_tensor.data = address
    managed.dl_tensor.device = _DLDevice(_TYPES[device.type], device.index or 0)
    managed.dl_tensor.ndim = 1
    managed.dl_tensor.dtype = _DLDataType(_UINT, 8, 1)
    managed.dl_tensor.shape = shape
    managed.deleter = _RELEASE
    _held[ctypes.addressof(managed)] = managed, shape, release
    tensor: Tensor = from_dlpack(_new_capsule(ctypes.addressof(managed), _NAME, None))
    return tensor
