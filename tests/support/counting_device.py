"""A device that counts what it is given, and does none of it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megainfer.device import HostDevice, Replay

_NO_WORK = ("empty", "detach", "lift_fresh", "_unsafe_view")


class CountingDevice(HostDevice):
    """Kernels count, operations of torch that a GPU would be given as at least one, copies from
    and to the host, and recordings as one each. What kernels would have written is anything."""

    is_host = False

    def __init__(self) -> None:
        super().__init__()
        self.given = list[str]()
        self._counts = True

    @contextmanager
    def counted(self) -> Iterator[list[str]]:
        """Names of what is given within."""
        self.given.clear()
        with _Operations(self):
            yield self.given

    def note(self, name: str) -> None:
        if self._counts:
            self.given.append(name)

    def launch(
        self,
        work: Callable[[], object],
        reads: Iterable[Tensor],
        writes: Iterable[Tensor],
        *,
        name: str,
    ) -> None:
        self.note(name)

    def upload(self, host: Tensor) -> Tensor:
        self.note("upload")
        return super().upload(host)

    def fill(self, to: Tensor, host: Tensor) -> None:
        with self._uncounted():
            super().fill(to, host)
        self.note("fill")

    def capture(self, work: Callable[[], object]) -> Replay:
        with self._uncounted():
            work()

        def replay(reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = ()) -> None:
            self.note("replay")

        return replay

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        before, self._counts = self._counts, False
        try:
            yield
        finally:
            self._counts = before


class _Operations(TorchDispatchMode):
    def __init__(self, device: CountingDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        aliases = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and not name.startswith(_NO_WORK):
            self._device.note(name)
        return func(*args, **(kwargs or {}))
