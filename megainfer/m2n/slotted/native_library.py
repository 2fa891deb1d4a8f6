"""The compiled part of M2N: whether it is there, and its functions."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from megainfer.m2n.geometry import DTYPE_BYTES, Geometry
from megainfer.m2n.message import HEADER_BYTES, Header
from megainfer.native.library import find_library, load_library

FOLDER = Path(__file__).parent.parent


class Layout(Structure):
    """`Layout` of message.h."""

    _fields_ = (
        ("micro_batches", c_int64),
        ("capacity", c_int64),
        ("hidden_size", c_int64),
        ("top_k", c_int64),
        ("dtype_code", c_int64),
        ("element_bytes", c_int64),
        ("error_room", c_int64),
        ("dispatch_slot_bytes", c_int64),
        ("reply_slot_bytes", c_int64),
        ("on_devices", c_int64),
    )


class NativeCounters(Structure):
    """`Counters` of inbox.h, and of counters.py."""

    _fields_ = (
        ("messages_sent", c_int64),
        ("messages_received", c_int64),
        ("rows_sent", c_int64),
        ("rows_received", c_int64),
        ("bytes_sent", c_int64),
        ("bytes_received", c_int64),
        ("dropped", c_int64),
        ("transfer_ns", c_int64),
        ("transfers", c_int64),
    )
    dropped: int
    messages_sent: int
    rows_sent: int
    bytes_sent: int

    def sent(self, header: Header) -> None:
        """One more, that something else than the library has sent."""
        self.messages_sent += 1
        self.rows_sent += header.rows
        self.bytes_sent += HEADER_BYTES + header.length

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name, _ in self._fields_}


class NativeOutbox(Structure):
    """`Outbox` of outbox.h: addresses, and an eventfd or -1."""

    _fields_ = (("slots", c_void_p), ("awake", c_void_p), ("bell", c_int64))


class Setup(Structure):
    """`Setup` of port.h."""

    _fields_ = (
        ("layout", Layout),
        ("index", c_int64),
        ("epoch", c_uint64),
        ("is_attention", c_int64),
        ("slots", c_void_p),
        ("num_slots", c_int64),
        ("peers", POINTER(NativeOutbox)),
        ("num_peers", c_int64),
        ("counters", POINTER(NativeCounters)),
    )


class PollFd(Structure):
    """`struct pollfd` of poll(2)."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


_FUNCTIONS = {
    "megainfer_m2n_new": (c_void_p, [POINTER(Setup)]),
    "megainfer_m2n_delete": (None, [c_void_p]),
    "megainfer_m2n_close": (None, [c_void_p]),
    "megainfer_m2n_set_epoch": (None, [c_void_p, c_uint64, c_char_p]),
    "megainfer_m2n_admit": (None, [c_void_p, c_int64, POINTER(NativeOutbox)]),
    "megainfer_m2n_news": (c_int32, [c_void_p]),
    "megainfer_m2n_awaits": (c_int32, [c_void_p]),
    "megainfer_m2n_scan": (c_int64, [c_void_p, c_int64, c_void_p]),
    "megainfer_m2n_dispatch": (
        c_int32,
        [c_void_p, c_int64, c_int64, c_uint64, c_void_p, c_int64, c_void_p],
    ),
    "megainfer_m2n_begin": (None, [c_void_p, c_int64, c_int64, c_uint64]),
    "megainfer_m2n_post": (
        None,
        [c_void_p, c_int64, c_int32, c_int64, c_int64, c_uint64, c_int64, c_int64],
    ),
    "megainfer_m2n_combine": (
        c_int32,
        [c_void_p, c_int64, c_void_p, c_int32, c_void_p, c_int64, c_int64],
    ),
    "megainfer_m2n_pack": (
        c_int32,
        [POINTER(Layout), c_void_p, c_void_p, c_int64, c_void_p, c_int64],
    ),
    "megainfer_m2n_add": (
        c_int32,
        [POINTER(Layout), c_void_p, c_void_p, c_int64, c_int32, c_void_p, c_int64, c_int64],
    ),
    "megainfer_m2n_sleeper_new": (c_void_p, [c_void_p, c_void_p, c_int32, c_int64]),
    "megainfer_m2n_sleeper_delete": (None, [c_void_p]),
    "megainfer_m2n_sleep": (c_int64, [c_void_p, c_int64, c_void_p, c_int64]),
}


def is_built() -> bool:
    """Whether the package was built with a compiler."""
    return find_library(FOLDER) is not None


@cache
def load() -> ctypes.CDLL:
    """The library, its functions typed.

    Raises ConfigError when it was not built, or from older sources than these.
    """
    return load_library(FOLDER, _FUNCTIONS, "M2N's native calls", "go without them")


def layout_of(geometry: Geometry) -> Layout:
    return Layout(
        geometry.micro_batches,
        geometry.capacity,
        geometry.hidden_size,
        geometry.top_k,
        geometry.dtype_code,
        DTYPE_BYTES[geometry.dtype],
        geometry.error_room,
        geometry.dispatch_slot_bytes,
        geometry.reply_slot_bytes,
        geometry.payloads == "device",
    )
