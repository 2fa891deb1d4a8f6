"""One pass of one micro-batch through all layers: what it computes."""

from dataclasses import dataclass

from megainfer.attention_node.scheduling.sequence import Sequence


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Consecutive tokens of one sequence: one row of the step each."""

    sequence: Sequence
    start: int  # position of the first token
    length: int
    samples: bool  # it ends at the newest known token, so its last row gives the next one

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def token_ids(self) -> list[int]:
        return self.sequence.token_ids[self.start : self.end]


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """Composed as a whole and numbered in the order of composing, over all micro-batches."""

    number: int
    micro_batch: int
    depends_on: tuple[int, ...]  # steps in flight when it was composed, ascending; all smaller
    chunks: tuple[Chunk, ...]  # decoding sequences, then prefill, then newly admitted ones

    @property
    def num_rows(self) -> int:
        return sum(chunk.length for chunk in self.chunks)
