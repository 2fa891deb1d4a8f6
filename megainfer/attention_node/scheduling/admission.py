"""Which blocks newcomers may have."""

from collections.abc import Iterable

from megainfer.attention_node.scheduling.block_manager import BlockManager
from megainfer.attention_node.scheduling.sequence import Sequence, Status


class Admission:
    """The block budget for newcomers while one step is composed.

    Running sequences come first: each has a claim on the blocks that its known tokens still need
    and on one more to grow into. A newcomer is let in only if all its tokens fit beside these
    claims; else it would take blocks only to be preempted for an older one soon after. When
    nobody runs, there is no claim and whoever is next fits.
    """

    def __init__(self, blocks: BlockManager, running: Iterable[Sequence]) -> None:
        self._blocks = blocks
        self._claimed = sum(map(_claim, running))

    def fits(self, sequence: Sequence, prefix: list[int]) -> bool:
        """Whether it can be let in, given its cached blocks, to which it has no reference yet."""
        unclaimed = self._blocks.num_free - self._claimed - self._blocks.count_unused(prefix)
        return self._blocks.blocks_for(len(sequence.token_ids)) - len(prefix) <= unclaimed

    def admitted(self, sequence: Sequence) -> None:
        """It runs now and has got the blocks of its first chunk."""
        self._claimed += _claim(sequence)


def _claim(sequence: Sequence) -> int:
    return 0 if sequence.status is Status.ABORTING else sequence.num_missing_blocks + 1
