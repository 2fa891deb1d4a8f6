"""What one rank of a node with tensor parallelism has of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """rank: of so many ranks, numbered from 0."""

    rank: int = 0
    ranks: int = 1

    @classmethod
    def each(cls, ranks: int) -> "tuple[Shard, ...]":
        """Of all ranks of a node, in order."""
        return tuple(cls(rank, ranks) for rank in range(ranks))

    def of(self, size: int) -> tuple[int, int]:
        """Its part (start, stop) of an axis, which its ranks divide.

        >>> Shard(1, 3).of(12)
        (4, 8)
        """
        assert size % self.ranks == 0, f"{size} in {self.ranks} parts"
        own = size // self.ranks
        return self.rank * own, (self.rank + 1) * own

    def about(self, size: int) -> tuple[int, int]:
        """The same of an axis that its ranks needn't divide: parts that are nearly equal.

        >>> [Shard(rank, 3).about(10) for rank in range(3)]
        [(0, 3), (3, 6), (6, 10)]
        """
        return self.rank * size // self.ranks, (self.rank + 1) * size // self.ranks

    @property
    def leads(self) -> bool:
        """Whether it speaks for its node."""
        return self.rank == 0


WHOLE = Shard()
"""Of a node that is one process."""
