"""One layer's routed experts on a GPU."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.compute.experts import Biases, ExpertsShape
from megainfer.compute.gpu.formats.expert import ExpertLayout
from megainfer.compute.gpu.formats.registry import format_of
from megainfer.compute.gpu.kernels.experts.choices import sum_choices
from megainfer.compute.gpu.kernels.experts.grouped_ffn import (
    Slots,
    down_product,
    gate_up_product,
    multiplied_dtype,
)
from megainfer.compute.gpu.kernels.experts.messages import Messages
from megainfer.compute.gpu.kernels.experts.tiles import sort_choices
from megainfer.compute.gpu.measured_tiles import Tiles, measured_tiles
from megainfer.compute.gpu.tile_shape import tile_rows
from megainfer.device import Device, Event


class PreparedExpert(NamedTuple):
    """memory: uint8 [bytes], on the device. ready: after what filled it, or what read it last."""

    memory: Tensor
    ready: Event


class ExpertPool:
    """Memory of a node's experts of one shape, whichever layer they are of.

    weight_format: see `formats.registry`. invariant: a row's bits don't depend on what else is
    computed with it. tiles: what was measured for its products on this kind of GPU.

    Raises ConfigError for a format that isn't there, or for a file of tiles that is no such file.
    """

    def __init__(
        self, shape: ExpertsShape, weight_format: str, device: Device, *, invariant: bool = False
    ) -> None:
        self.shape = shape
        self.device = device
        self.weight_format = weight_format
        self.invariant = invariant
        # They differ by how many tiles there are, on which no bits of an invariant row depend.
        self.tiles: Tiles = {} if invariant else measured_tiles(device.chip.name)
        self.format = format_of(weight_format)
        self.layout = ExpertLayout.of(shape, self.format)
        self._free: list[PreparedExpert] = []
        self.copying = (
            device.stream()
        )  # what is given to others waits for no kernel, nor they for it

    def reserve(self, experts: int) -> None:
        """Have memory for so many more, in one piece."""
        memory = self.device.empty((experts, self.layout.bytes), torch.uint8)
        self._free += [PreparedExpert(own, self.device.event()) for own in memory]

    def take(self) -> PreparedExpert:
        """Memory for one more; several threads may ask."""
        try:
            return self._free.pop()
        except IndexError:
            memory = self.device.empty((self.layout.bytes,), torch.uint8)
            return PreparedExpert(memory, self.device.event())

    def give_back(self, expert: PreparedExpert) -> None:
        """Nothing that the current stream is given from here on reads it."""
        expert.ready.record()
        self._free.append(expert)


class GpuLayerExperts:
    """`experts.LayerExperts` in Triton kernels. What a slot holds is known to the device as a
    pointer: work that was given before `put` or `take` sees what was there.

    expected: how many there will be at most, whose memory is had in one piece.
    """

    def __init__(self, pool: ExpertPool, expected: int) -> None:
        self._pool = pool
        self._device = pool.device
        pool.reserve(expected)
        experts = pool.shape.experts
        self._held: list[PreparedExpert | None] = [None] * experts
        self._memory: list[Tensor] | None = None  # of what they hold, unless that has changed
        self._addresses = pool.device.upload(torch.zeros(experts, dtype=torch.int64))

    def prepare(
        self, gate_up: Tensor, down: Tensor, biases: Biases | None = None
    ) -> PreparedExpert:
        """See `experts.LayerExperts.prepare`: quantised on the host, and copied by the calling
        thread's current stream."""
        assert (biases is not None) == self._pool.shape.bias
        return self.adopt(self._pool.layout.store(gate_up, down, biases))

    @property
    def form(self) -> str:
        """See `experts.LayerExperts.form`."""
        return f"gpu {self._pool.weight_format}"

    @property
    def copied_bytes(self) -> int:
        """See `experts.LayerExperts.copied_bytes`."""
        return self._pool.layout.bytes

    def copied(self, local_id: int) -> Tensor:
        """See `experts.LayerExperts.copied`; waits for the copy, on a stream of its own, and for
        none of what computes."""
        held = self._held[local_id]
        assert held is not None, f"slot {local_id} is empty"
        with self._device.on(self._pool.copying):
            held.ready.wait()
            return held.memory.to("cpu", copy=True)

    def adopt(self, copied: Tensor) -> PreparedExpert:
        """See `experts.LayerExperts.adopt`: by the calling thread's current stream."""
        expert = self._pool.take()
        expert.ready.wait()
        expert.memory.copy_(copied)
        expert.ready.record()
        return expert

    def put(self, local_id: int, prepared: object) -> None:
        """See `experts.LayerExperts.put`."""
        assert isinstance(prepared, PreparedExpert)
        assert self._held[local_id] is None, f"slot {local_id} holds an expert"
        self._held[local_id], self._memory = prepared, None
        prepared.ready.wait()
        self._addresses[local_id].fill_(prepared.memory.data_ptr())

    def take(self, local_id: int) -> PreparedExpert:
        """See `experts.LayerExperts.take`."""
        held = self._held[local_id]
        assert held is not None, f"slot {local_id} is empty"
        self._held[local_id] = self._memory = None
        self._addresses[local_id].zero_()
        return held

    def forget(self, prepared: object) -> None:
        """See `experts.LayerExperts.forget`."""
        assert isinstance(prepared, PreparedExpert)
        self._pool.give_back(prepared)

    def forward(
        self,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        counts: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """See `experts.LayerExperts.forward`."""
        if not hidden:
            return self._device.upload(torch.zeros(self._pool.shape.experts, dtype=torch.int64))
        known = [None] * len(hidden) if counts is None else counts
        messages = Messages.of(self._device, hidden, local_ids, weights, outs, known)
        return self.compute(messages, self.memory)

    @property
    def memory(self) -> list[Tensor]:
        """Of what the slots hold."""
        if self._memory is None:
            self._memory = [expert.memory for expert in self._held if expert is not None]
        return self._memory

    def compute(self, messages: Messages, held: Sequence[Tensor]) -> Tensor:
        """`forward` of messages that the device has a table of. held: the experts' memory, as far
        as it is known by now."""
        device, slots = self._device, self.slots(held)
        found = sort_choices(device, messages, self._addresses, self.tile_rows(messages))
        x = gate_up_product(device, slots, messages, found)
        results = down_product(device, slots, found, x)
        on_input = slots.shape.weight_on_input
        sum_choices(device, messages, found.places, results, on_input=on_input)
        return found.counts

    def slots(self, held: Sequence[Tensor]) -> Slots:
        """Where the experts are; held: as for `compute`."""
        pool = self._pool
        return Slots(self._addresses, held, pool.shape, pool.layout, pool.tiles)

    def tile_rows(self, messages: Messages) -> int:
        """Choices of one expert that are multiplied together."""
        pool = self._pool
        dtype = multiplied_dtype(pool.format.codes, messages.dtype)
        each = messages.rows * messages.top_k / pool.shape.experts
        return tile_rows(each, wide=dtype == torch.float32, invariant=pool.invariant)
