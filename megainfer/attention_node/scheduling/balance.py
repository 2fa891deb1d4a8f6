"""Which running sequence decodes in which micro-batch."""

from megainfer.attention_node.scheduling.sequence import Sequence

ROW_COST = 1024
"""A row's fixed cost, in tokens of context.

The projections of a row take 2 D^2 (grouped heads) to 4 D^2 multiply-adds a layer, its attention
2 D for each token of context: equal at D to 2 D tokens. Its share of dispatch and experts adds to
the first, the poorer use of the memory bus to the second; that leaves this magnitude. The exact
value only shifts which of two nearly equal micro-batches a sequence goes to.
"""


def cost(sequence: Sequence) -> int:
    """What a decoding sequence adds to its micro-batch's step, in tokens of context."""
    return ROW_COST + len(sequence.token_ids)


class Balance:
    """Every running sequence is either a member of one micro-batch or open to all.

    Members decode; they are at rest whenever no step of their micro-batch is in flight. Open are
    those whose prompt isn't fully scheduled yet, and those that were left out of a step because
    no block was free: whichever micro-batch is composed next may take them.
    """

    def __init__(self, num_micro_batches: int) -> None:
        self.active = num_micro_batches  # members of the others leave at their steps' ends
        self._members: list[dict[int, Sequence]] = [{} for _ in range(num_micro_batches)]
        self._open: dict[int, Sequence] = {}

    def assign(self, sequence: Sequence, micro_batch: int) -> None:
        """Make it a member of this micro-batch, wherever it was."""
        if sequence.micro_batch != micro_batch:
            self.remove(sequence)
            sequence.micro_batch = micro_batch
            self._members[micro_batch][sequence.arrival] = sequence

    def open_to_all(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self._open[sequence.arrival] = sequence

    def remove(self, sequence: Sequence) -> None:
        """Forget it, if it is known."""
        self._home(sequence).pop(sequence.arrival, None)
        sequence.micro_batch = None

    def holds(self, sequence: Sequence) -> bool:
        """Whether exactly the right one of the micro-batches, or the open set, has it."""
        homes = [h for h in (self._open, *self._members) if sequence.arrival in h]
        return len(homes) == 1 and homes[0] is self._home(sequence)

    def candidates(self, micro_batch: int) -> list[Sequence]:
        """Those that a step of this micro-batch may hold."""
        return [*self._members[micro_batch].values(), *self._open.values()]

    def has_candidates(self, micro_batch: int) -> bool:
        return bool(self._members[micro_batch] or self._open)

    @property
    def num_prompt_lanes(self) -> int:
        """Micro-batches that may compute prompts: two even where decoding is better off in one,
        since both sides have much to compute for a prompt, and can do so at the same time."""
        return min(max(2, self.active), len(self._members))

    def is_retired(self, micro_batch: int) -> bool:
        """Nobody is left in it, and nobody is to come."""
        return micro_batch >= self.num_prompt_lanes and not self._members[micro_batch]

    def load(self, micro_batch: int) -> int:
        return sum(map(cost, self._members[micro_batch].values()))

    def settle(self, micro_batch: int) -> None:
        """Hand members over to lighter micro-batches, at the end of this one's step.

        A sequence moves only if the two differ by one and a half times its cost. By less than
        one, the move would make things worse; by about one, it would only swap the two, and a
        few tokens later swap them back. With each move the sum of squared loads falls. Everybody
        leaves a micro-batch that is no longer active.
        """
        loads = [self.load(other) for other in range(self.active)]
        if micro_batch >= self.active:
            self._retire(micro_batch, loads)
            return
        if loads[micro_batch] - min(loads) <= ROW_COST:  # less than anybody costs
            return
        for sequence in sorted(self._members[micro_batch].values(), key=cost, reverse=True):
            lightest = loads.index(min(loads))
            if 2 * (loads[micro_batch] - loads[lightest]) >= 3 * cost(sequence):
                loads[micro_batch] -= cost(sequence)
                loads[lightest] += cost(sequence)
                self.assign(sequence, lightest)

    def _retire(self, micro_batch: int, loads: list[int]) -> None:
        for sequence in sorted(self._members[micro_batch].values(), key=cost, reverse=True):
            lightest = loads.index(min(loads))
            loads[lightest] += cost(sequence)
            self.assign(sequence, lightest)

    def _home(self, sequence: Sequence) -> dict[int, Sequence]:
        if sequence.micro_batch is None:
            return self._open
        return self._members[sequence.micro_batch]
