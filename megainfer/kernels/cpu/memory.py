"""Memory as the compiled library wants it."""

import mmap

import torch
from torch import Tensor


def large_pages(size: int) -> Tensor:
    """uint8 [size] of memory whose pages are as large as the system gives: fewer misses of the
    TLB, and prefetchers stop at a page's end."""
    memory = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


def address(tensor: Tensor) -> int:
    """Where a contiguous tensor's elements are."""
    assert tensor.is_contiguous()
    return tensor.data_ptr()
