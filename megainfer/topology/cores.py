"""On which cores the processes of an instance run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice


@dataclass(frozen=True, slots=True)
class Socket:
    """Cores and the memory beside them, which others reach more slowly; `number`: the system's, of
    a NUMA node."""

    number: int
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CoreAssignment:
    """CPU cores of one process; `threads` is how many compute threads it may start. near: its
    memory is to be beside them, in equal parts where they are of several sockets."""

    cores: tuple[int, ...]
    near: bool = False

    @property
    def threads(self) -> int:
        return len(self.cores)

    def shared_by(self, ranks: int) -> "tuple[CoreAssignment, ...]":
        """Those of each of so many processes.

        >>> [a.cores for a in CoreAssignment((2, 3, 4)).shared_by(2)]
        [(2, 3), (4,)]
        """
        if ranks == 1:
            return (self,)
        return tuple(replace(a, near=self.near) for a in assign_cores(ranks, self.cores))


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


def assign_sockets(num_processes: int, sockets: Sequence[Socket]) -> tuple[CoreAssignment, ...]:
    """Share the sockets out in turn, and those that several processes are on among these by
    `assign_cores`; processes beyond them have none of two. Where there are more sockets than
    processes, a process has whole ones.

    >>> two = [Socket(0, (0, 1, 4, 5)), Socket(1, (2, 3, 6, 7))]
    >>> [a.cores for a in assign_sockets(3, two)]
    [(0, 1), (2, 3, 6, 7), (4, 5)]
    >>> [a.cores for a in assign_sockets(1, two)]
    [(0, 1, 2, 3, 4, 5, 6, 7)]
    """
    if num_processes < len(sockets):
        groups = [sockets[process::num_processes] for process in range(num_processes)]
        own = (sorted(core for socket in group for core in socket.cores) for group in groups)
        return tuple(CoreAssignment(tuple(cores)) for cores in own)
    turns = [range(index, num_processes, len(sockets)) for index in range(len(sockets))]
    shares = [
        iter(assign_cores(len(turn), socket.cores))
        for turn, socket in zip(turns, sockets, strict=True)
    ]
    return tuple(next(shares[process % len(sockets)]) for process in range(num_processes))


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
    return tuple(CoreAssignment(tuple(dict.fromkeys(group))) for group in groups)


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
