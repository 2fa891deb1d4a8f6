"""Which running sequence has which slot of the recurrent states. No tensors."""

from collections import Counter
from collections.abc import Iterable, Iterator


class StateSlots:
    """Hands out slots 0 .. num_slots - 1; as many as may run, so that there always is one.

    The slot given back last goes out first: its memory is there and warm. Nobody clears it between
    two sequences: a layer takes no notice of a state at position 0.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._free = list(reversed(range(num_slots)))

    def take(self) -> int:
        assert self._free, f"all {self._num_slots} slots of recurrent states are taken"
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        self._free.append(slot)

    def problems(self, taken: Iterable[int | None]) -> Iterator[str]:
        """What contradicts the slots that running sequences say they have."""
        places = Counter(taken) + Counter(self._free)
        for slot in range(self._num_slots):
            if places.pop(slot, 0) != 1:
                yield f"state slot {slot} is not in exactly one place"
        if places:
            yield f"state slots {list(places)} don't exist"
