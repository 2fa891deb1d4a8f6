"""How many bytes this process has allocated and not freed, as the C library counts them."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

PAGE = 4096
FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def allocated_bytes() -> int:
    """Of the main thread's arena; where the C library doesn't tell, what is resident."""
    library = _library()
    if library is None:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


@cache
def _library() -> Any:
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):  # glibc's, since 2.33
        return None
    library.mallinfo2.restype = _Mallinfo
    return library
