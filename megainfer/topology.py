"""How many nodes of each role there are, which expert lives where, and on which cores they run.

Pure data: no torch, no processes.
"""

from dataclasses import dataclass

from megainfer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Placement:
    """Which expert nodes hold which experts; the same for every layer.

    owners: for each global expert id, the expert nodes that hold it. The first is the one that
    tokens are sent to; more than one is a replica.
    """

    owners: tuple[tuple[int, ...], ...]
    num_nodes: int

    @property
    def num_experts(self) -> int:
        return len(self.owners)

    def experts_of(self, node: int) -> tuple[int, ...]:
        """Global ids of the experts on `node`, ascending; the index is the local id."""
        return tuple(e for e, nodes in enumerate(self.owners) if node in nodes)

    def home(self, expert: int) -> tuple[int, int]:
        """(node, local id) that tokens for this global expert id are sent to."""
        node = self.owners[expert][0]
        return node, self.experts_of(node).index(expert)


def contiguous_placement(num_experts: int, num_nodes: int) -> Placement:
    """Every expert once, in order, node sizes differing by at most one.

    >>> contiguous_placement(8, 3).owners
    ((0,), (0,), (0,), (1,), (1,), (1,), (2,), (2,))

    Raises ConfigError when there are more nodes than experts.
    """
    if not 1 <= num_nodes <= num_experts:
        raise ConfigError(
            f"{num_nodes} expert nodes were asked for, but the model has {num_experts} experts "
            f"a layer and a node without one would never work; use --ffn-gpus 1 to {num_experts}"
        )
    small, extra = divmod(num_experts, num_nodes)
    sizes = [small + (node < extra) for node in range(num_nodes)]
    owners = tuple((node,) for node, size in enumerate(sizes) for _ in range(size))
    return Placement(owners=owners, num_nodes=num_nodes)


@dataclass(frozen=True, slots=True)
class CoreAssignment:
    """CPU cores of one process; `threads` is how many compute threads it may start."""

    cores: tuple[int, ...]

    @property
    def threads(self) -> int:
        return len(self.cores)


def assign_cores(num_processes: int, cores: tuple[int, ...]) -> tuple[CoreAssignment, ...]:
    """Share the cores: disjoint and near equal where they suffice, else one each, in turn.

    >>> [a.cores for a in assign_cores(2, (0, 1, 2))]
    [(0, 1), (2,)]
    >>> [a.cores for a in assign_cores(3, (0, 1))]
    [(0,), (1,), (0,)]
    """
    if num_processes >= len(cores):
        return tuple(CoreAssignment((cores[i % len(cores)],)) for i in range(num_processes))
    small, extra = divmod(len(cores), num_processes)
    assignments, first = [], 0
    for process in range(num_processes):
        size = small + (process < extra)
        assignments.append(CoreAssignment(cores[first : first + size]))
        first += size
    return tuple(assignments)


def share_cores(num_processes: int, cores: tuple[int, ...]) -> tuple[CoreAssignment, ...]:
    """All cores to every process.

    >>> [a.cores for a in share_cores(2, (0, 1))]
    [(0, 1), (0, 1)]
    """
    return (CoreAssignment(cores),) * num_processes


def have_own_cores(assignments: tuple[CoreAssignment, ...]) -> bool:
    """Whether no two processes share a core.

    >>> have_own_cores(assign_cores(2, (0, 1, 2))), have_own_cores(assign_cores(3, (0, 1)))
    (True, False)
    """
    cores = [core for assignment in assignments for core in assignment.cores]
    return len(cores) == len(set(cores))
