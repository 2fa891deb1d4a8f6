"""All of it in order: what forks first, then what serves, then what computes in this process."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from megainfer.calibration.description import Share, device_of
from megainfer.calibration.measured import HostWork, Links
from megainfer.errors import ConfigError
from megainfer.launch.machine import Machine
from megainfer.planner.hardware import Device
from megainfer.planner.live.naming import beside, colocated, of_cores
from megainfer.supervise.libraries import load_libraries

if TYPE_CHECKING:  # which loads torch
    from megainfer.calibration.kernels import Sizes

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """name: what its devices' names begin with. cores: of a node, each number a device of its own.
    watts, price: of the whole machine. sizes: of what is computed, `kernels.USUAL` unless given."""

    name: str
    cores: tuple[int, ...]
    watts: float
    price: float
    sizes: "Sizes | None" = None


def check_cores(cores: Sequence[int], machine: Machine) -> tuple[int, ...]:
    """Each number once, ascending; without any, half of the machine's cores: a node of each role.

    Raises ConfigError for numbers that it doesn't have.
    """
    have = len(machine.cores)
    for count in cores:
        if not 1 <= count <= have:
            raise ConfigError(f"--cores {count}: this machine has {have}; give 1 to {have}")
    return tuple(sorted(set(cores))) or (max(1, have // 2),)


def calibrate(wish: Wish, machine: Machine, processor: str, tell: Tell) -> list[Device]:
    """The devices that a node on this machine's cores can be.

    For each number of cores one that has the machine's memory to itself, which is what nodes find
    whose roles take turns (one micro-batch), and one named -beside, where all other cores read
    memory meanwhile; then -colocated, all cores with the host's work of a single process.
    To be called before this process has computed anything, since it forks.
    """
    load_libraries()
    from megainfer.calibration.links import measure_links

    tell("messages between two processes")
    links = measure_links(machine.cores)
    apart, together = _host(tell)
    when = f"{date.today().isoformat()}, {processor}"
    return list(_devices(wish, machine, when, links, apart, together, tell))


def _host(tell: Tell) -> tuple[HostWork, HostWork]:
    """Of roles apart, and of both in one process."""
    from megainfer.calibration.host import measure_host
    from megainfer.calibration.toy import write_toy

    with tempfile.TemporaryDirectory(prefix="megainfer-calibrate-") as scratch:
        folder = write_toy(Path(scratch))
        tell("the host's work, roles apart")
        apart = measure_host(folder, colocated=False)
        tell("the host's work, both roles in one process")
        return apart, measure_host(folder, colocated=True)


def _devices(
    wish: Wish,
    machine: Machine,
    when: str,
    links: Links,
    apart: HostWork,
    together: HostWork,
    tell: Tell,
) -> Iterator[Device]:
    from megainfer.calibration.kernels import USUAL
    from megainfer.calibration.measure import measure_kernels

    sizes = wish.sizes or USUAL

    def share(name: str, cores: int) -> Share:
        total = len(machine.cores)
        return Share(name, cores, total, machine.memory, wish.watts, wish.price, when)

    for count in wish.cores:
        own, others = machine.cores[:count], machine.cores[count:]
        name = of_cores(wish.name, count)
        tell(f"kernels on {count} of {len(machine.cores)} cores")
        alone = measure_kernels(own, (), sizes)
        yield device_of(share(name, count), alone, links, apart)
        if others:
            name = beside(name)
            tell("the same beside others that read memory")
            contended = measure_kernels(own, others, sizes)
            yield device_of(share(name, count), contended, links, apart)
    name, every = colocated(wish.name), machine.cores
    tell("kernels on all cores")
    whole = measure_kernels(every, (), sizes)
    yield device_of(share(name, len(every)), whole, links, together)
