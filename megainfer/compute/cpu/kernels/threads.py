"""The threads that kernels of one process compute with. No torch."""

import weakref

from megainfer.compute.cpu.kernels import library


class Threads:
    """`count` threads, the caller's among them; the others start with the first computation.

    Kernels that take turns share one: two sets of threads on the same cores would be in each
    other's way. One caller at a time.
    """

    def __init__(self, count: int = 1) -> None:
        native = library.load()
        self.count = count
        self.handle: int = native.megainfer_pool_new(count)
        weakref.finalize(self, native.megainfer_pool_delete, self.handle)


def own_or_shared(threads: "Threads | int") -> Threads:
    """These threads, or new ones of that number."""
    return Threads(threads) if isinstance(threads, int) else threads
