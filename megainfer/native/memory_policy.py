"""Beside which cores the memory of this process is. Linux."""

import ctypes
import logging
import os
import platform
from collections.abc import Sequence

logger = logging.getLogger(__name__)

_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
"""The system call's number: libc has no function for it."""
_PREFERRED, _INTERLEAVE = 1, 3
_MASK_BITS = 1024


def prefer_memory(nodes: Sequence[int]) -> None:
    """Have this process's pages from the memory of these NUMA nodes, page by page in turn where
    there are several, and from others once it is full; of pages that it touches first, and threads
    and children that it starts from now on. Where the system forbids it all stays as it is, and a
    warning says so."""
    number = _SET_MEMPOLICY.get(platform.machine())
    if not nodes or number is None:
        return
    mask = (ctypes.c_ulong * (_MASK_BITS // (8 * ctypes.sizeof(ctypes.c_ulong))))()
    for node in nodes:
        word, bit = divmod(node, 8 * ctypes.sizeof(ctypes.c_ulong))
        mask[word] |= 1 << bit
    libc = ctypes.CDLL(None, use_errno=True)
    mode = _PREFERRED if len(nodes) == 1 else _INTERLEAVE
    # The kernel takes one bit fewer than it is told.
    if libc.syscall(number, mode, mask, ctypes.c_ulong(_MASK_BITS + 1)):
        why = os.strerror(ctypes.get_errno())
        logger.warning("no memory is kept beside this process's cores: %s", why)
