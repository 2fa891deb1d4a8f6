"""Which answers a forward pass takes together, before anybody knows how long they become."""

from collections.abc import Sequence

from megainfer.rl.training.micro_batches import micro_batches


class Groups:
    """A pass's rounding depends on what shares it. So that it doesn't depend on which answer ended
    first, who goes with whom is known beforehand.

    lengths: tokens that each may have then, at most; most_tokens: of a pass.
    """

    def __init__(self, lengths: Sequence[int], most_tokens: int) -> None:
        self._groups = micro_batches(lengths, most_tokens)
        self._left = [len(group) for group in self._groups]
        self._group_of = {place: n for n, group in enumerate(self._groups) for place in group}

    def ended(self, place: int) -> Sequence[int]:
        """The places of its group, if it is the last of them to end; none otherwise.

        >>> groups = Groups([9, 3, 3], most_tokens=9)
        >>> groups.ended(2), groups.ended(0), groups.ended(1)
        ((), [0], [1, 2])
        """
        number = self._group_of[place]
        self._left[number] -= 1
        return () if self._left[number] else self._groups[number]
