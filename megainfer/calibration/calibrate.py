"""All of it in order: what forks first, then what serves, then what computes in this process."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from megainfer.calibration.caches import working_set
from megainfer.calibration.description import Share, device_of
from megainfer.calibration.measured import Exchanged, HostWork, KernelTimes
from megainfer.calibration.toy import BULKY, TOY, Shape, no_cache_holds, write_model
from megainfer.compute.cpu.kernels import library
from megainfer.config import format_bytes
from megainfer.errors import ConfigError
from megainfer.launch.machine import Machine
from megainfer.launch.plan import SPIN_SECONDS
from megainfer.planner.costs import ModelCosts
from megainfer.planner.hardware import Device
from megainfer.planner.live.naming import beside, colocated, of_cores
from megainfer.supervise.forking.libraries import load_libraries

if TYPE_CHECKING:  # which loads torch
    from megainfer.calibration.kernels import Sizes
    from megainfer.calibration.layers import Served

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """name: what its devices' names begin with. cores: of a node, each number a device of its own,
    beside all of them. watts, price: of the whole machine. sizes: of what is computed,
    `kernels.USUAL` unless given. bulky: a layer of the large model that is served."""

    name: str
    cores: tuple[int, ...]
    watts: float
    price: float
    sizes: "Sizes | None" = None
    bulky: Shape = BULKY


WORKING_SETS = 11
"""Of three dtypes two, of two caches one, two of plain memory; some are a layer more than one."""
OTHER_MEMORY = 2 * 2**30
"""Of the models that are served, and of processes."""


def check_memory(machine: Machine) -> None:
    """Raises ConfigError where there isn't enough."""
    needed = WORKING_SETS * working_set() + OTHER_MEMORY
    if machine.available_memory < needed:
        raise ConfigError(
            f"calibrating takes {format_bytes(needed)} of memory, but "
            f"{format_bytes(machine.available_memory)} are free; end what else runs"
        )


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
    memory meanwhile. Of all cores there is none beside; but -colocated, with the host's work of a
    single process. To be called before this process has computed anything, since it forks.

    Raises ConfigError where the CPU kernels aren't built.
    """
    library.load()
    load_libraries()
    from megainfer.calibration.kernels import USUAL
    from megainfer.calibration.links import measure_links

    sizes = wish.sizes or USUAL
    tell("messages between two processes")
    links = measure_links(machine.cores)
    host = _host(no_cache_holds(wish.bulky, sizes.working), tell)
    when = f"{date.today().isoformat()}, {processor}"
    return list(_devices(wish, machine, _Setting(when, links, host, sizes), tell))


@dataclass(frozen=True, slots=True)
class _Placed:
    """Roles that are somewhere. served: what was served there. sends: between two processes."""

    work: HostWork
    served: "Served"
    sends: bool


@dataclass(frozen=True, slots=True)
class _Host:
    """By where the roles are: on shared cores, on cores of their own, in one process."""

    shared: _Placed
    split: _Placed
    colocated: _Placed


@dataclass(frozen=True, slots=True)
class _Setting:
    """What all devices have in common. when: and on what processor."""

    when: str
    links: Sequence[Exchanged]
    host: _Host
    sizes: "Sizes"


def _host(bulky: Shape, tell: Tell) -> _Host:
    from megainfer.calibration.host import COLOCATED, SHARED, SPLIT, measure_host, measure_layers
    from megainfer.calibration.layers import (
        Served,
        among_sleepers,
        taking_turns,
        with_cold_steps,
    )

    arrangements = (SHARED, SPLIT, COLOCATED)
    with tempfile.TemporaryDirectory(prefix="megainfer-calibrate-") as scratch:
        folder = write_model(TOY, Path(scratch) / "toy")
        tell("the host's work, in one process and in two")
        hosts = [measure_host(folder, nodes) for nodes in arrangements]
        folder = write_model(bulky, Path(scratch) / "bulky")
        tell("what rows add to layers, and waking who waits")
        costs = _costs(folder)
        layers = measure_layers(folder, bulky.layers, arrangements)
        of_shared, of_split, in_one = (Served(costs, *times) for times in layers)
    shared, split, colocated = with_cold_steps(hosts, hosts[-1], in_one)
    turns = taking_turns(shared, colocated, of_shared, in_one)
    split = among_sleepers(split, of_split, SPIN_SECONDS)
    return _Host(
        _Placed(turns, of_shared, sends=True),
        _Placed(split, of_split, sends=True),
        _Placed(colocated, in_one, sends=False),
    )


def _costs(folder: Path) -> ModelCosts:
    """As `measure_layers` serves the model."""
    from megainfer.compute.selection import Precision
    from megainfer.models.registry import load_spec

    return ModelCosts.of(load_spec(folder), Precision("bfloat16"))


def _devices(wish: Wish, machine: Machine, setting: _Setting, tell: Tell) -> Iterator[Device]:
    from megainfer.calibration.layers import with_row_work
    from megainfer.calibration.measure import measure_kernels

    sizes, total, host = setting.sizes, len(machine.cores), setting.host

    def made(name: str, cores: int, kernels: KernelTimes, placed: _Placed) -> Device:
        share = Share(name, cores, total, machine.memory, wish.watts, wish.price, setting.when)
        device = device_of(share, kernels, setting.links, placed.work)
        return with_row_work(device, placed.served, placed.sends)

    for count in wish.cores:
        if count == total:
            continue
        own, others, name = machine.cores[:count], machine.cores[count:], of_cores(wish.name, count)
        tell(f"kernels on {count} of {total} cores")
        yield made(name, count, measure_kernels(own, (), sizes), host.split)
        tell("the same beside others that read memory")
        contended = measure_kernels(own, others, sizes)
        yield made(beside(name), count, contended, host.split)
    tell("kernels on all cores")
    whole = measure_kernels(machine.cores, (), sizes)
    yield made(of_cores(wish.name, total), total, whole, host.shared)
    yield made(colocated(wish.name), total, whole, host.colocated)
