"""A backend on the fake device: the reference, each operation of which is work of its own.

While `TorchWork` is entered, whatever torch is asked to do with the device's memory is given to the
device's current stream, also by those who don't know the device: a node, a sampler, a road.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megainfer.compute.reference import kernels as reference
from megainfer.compute.reference.backend import ReferenceBackend
from megainfer.compute.reference.tokens import ReferenceTokens
from megainfer.compute.tokens import DrawWish, TokenKernels
from tests.support.fake_device import FakeDevice
from tests.support.happens_before import Race

META = torch.device("meta")


class TorchWork(TorchDispatchMode):
    """Torch's operations as work of the fake device."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [*_tensors((args, kwargs))]
        if not any(map(self._device.uses.knows, tensors)):
            return func(*args, **kwargs)
        with self:  # in inference mode operations come whole that are made of others
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        if _is_view(func):
            return func(*args, **kwargs)
        name = str(func)
        if func is torch.ops.aten._local_scalar_dense.default:
            raise Race(f"the host asks the device for a value and waits: {name}")
        written = list(_written(func, args, kwargs))
        if written:
            self._device.launch(lambda: func(*args, **kwargs), tensors, written, name=name)
            return written[0] if len(written) == 1 else tuple(written)
        results = _mapped(self._new, _shapes(func, args, kwargs))
        outs = [*_tensors(results)]

        def work() -> None:
            for to, made in zip(outs, _tensors(func(*args, **kwargs)), strict=True):
                to.copy_(made)

        self._device.launch(work, tensors, outs, name=name)
        return results

    def _new(self, like: Tensor) -> Tensor:
        return self._device.own(torch.empty_strided(like.shape, like.stride(), dtype=like.dtype))


def _is_view(func: Any) -> bool:
    """Whether it gives another look at the same memory, and touches no value."""
    aliases = [r.alias_info for r in func._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[place] if place < len(args) else kwargs.get(argument.name))


def _shapes(func: Any, args: Any, kwargs: Any) -> Any:
    """Its results without values. Raises Race where they depend on values."""
    args, kwargs = _mapped(_without_values, args), _mapped(_without_values, kwargs)
    if "device" in kwargs:
        kwargs["device"] = META
    try:
        return func(*args, **kwargs)
    except (NotImplementedError, RuntimeError) as error:
        raise Race(f"the host asks the device for a shape and waits: {func}: {error}") from error


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All that are in an operation's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors([*value.values()])


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(change, each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_mapped(change, each) for each in value])
    return value


class FakeTokens(ReferenceTokens):
    """`TokenKernels` that draw in one piece of work."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__(device)
        self._fake = device

    def draw(self, logits: Tensor, wishes: Sequence[DrawWish]) -> Tensor:
        tokens = self._fake.empty((len(logits),), torch.int64)

        def work() -> None:
            tokens.copy_(reference.draw(logits, wishes))

        self._fake.launch(work, [logits], [tokens], name="draw")
        return tokens


class FakeBackend(ReferenceBackend):
    """`Backend` on a fake device."""

    name = "fake"

    def __init__(self, device: FakeDevice, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype, dtype, device)
        self.tokens: TokenKernels = FakeTokens(device)
