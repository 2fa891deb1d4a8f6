"""On which cores the processes of an instance run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True, slots=True)
class CoreAssignment:
    """CPU cores of one process; `threads` is how many compute threads it may start."""

    cores: tuple[int, ...]

    @property
    def threads(self) -> int:
        return len(self.cores)

    def shared_by(self, ranks: int) -> "tuple[CoreAssignment, ...]":
        """Those of each of so many processes.

        >>> CoreAssignment((2, 3, 4)).shared_by(2)
        (CoreAssignment(cores=(2, 3)), CoreAssignment(cores=(4,)))
        """
        return (self,) if ranks == 1 else assign_cores(ranks, self.cores)


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


def assign_cores_beside(
    light: Sequence[bool], cores: tuple[int, ...]
) -> tuple[CoreAssignment, ...]:
    """A core for each process that is light, since it computes elsewhere; the others share what is
    left. Where cores don't suffice, as `assign_cores`.

    >>> [a.cores for a in assign_cores_beside([True, False, False], (0, 1, 2, 3, 4))]
    [(0,), (1, 2), (3, 4)]
    """
    first = sum(light)
    if len(light) > len(cores):
        return assign_cores(len(light), cores)
    own = iter(assign_cores(first, cores[:first]) if first else ())
    heavy = iter(assign_cores(len(light) - first, cores[first:]) if first < len(light) else ())
    return tuple(next(own if is_light else heavy) for is_light in light)


def join_cores(
    processes: Sequence[CoreAssignment], ranks: Sequence[int]
) -> tuple[CoreAssignment, ...]:
    """Of each node what its processes have; ranks: how many these are, one node after the other.

    >>> [a.cores for a in join_cores(assign_cores(3, (0, 1, 2, 3)), [1, 2])]
    [(0, 1), (2, 3)]
    """
    own = iter(processes)
    groups = ([core for one in islice(own, n) for core in one.cores] for n in ranks)
    return tuple(CoreAssignment(tuple(sorted(set(group)))) for group in groups)


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
