"""Steps that come back to a fixed place, layer after layer, while others were there."""

from collections import OrderedDict

from torch import Tensor, int64

from megainfer.compute.batch import StepBatch
from megainfer.device import Device

STEPS = 8
"""That are kept: of micro-batches whose experts are asked."""


class StepsAside:
    """Tables of steps as they stood at their fixed places, whichever bucket's those are: copied
    there in one piece when a step comes back. Its memory is had when stages are recorded."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free = list[Tensor]()
        self._known = OrderedDict[int, tuple[StepBatch, Tensor]]()  # by the batch's id

    def reserve(self, numbers: int) -> None:
        """Have room for so many a step, as long as none is kept."""
        assert not self._known, "room for steps is had before there are any"
        if not self._free or len(self._free[0]) < numbers:
            self._free = [*self._device.empty((STEPS, numbers), int64)]

    def put(self, batch: StepBatch, tables: Tensor) -> None:
        """tables: int64, the step's. The one that was put there longest ago is forgotten where
        there is no room."""
        if not self._free:
            _, (_, memory) = self._known.popitem(last=False)
            self._free.append(memory)
        memory = self._free.pop()
        memory[: len(tables)].copy_(tables)
        self._known[id(batch)] = batch, memory

    def take(self, batch: StepBatch, tables: Tensor) -> bool:
        """Copy this step's to `tables`; False where it isn't known (any more)."""
        if id(batch) not in self._known:
            return False
        _, memory = self._known.pop(id(batch))
        tables.copy_(memory[: len(tables)])
        self._free.append(memory)
        return True
