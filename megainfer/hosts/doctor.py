"""The ways between the hosts of several agents, each way measured by the host where it begins."""

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from megainfer.errors import MegaInferError
from megainfer.hosts.reception import Reception
from megainfer.hosts.wire import Wire, await_messages
from megainfer.launch.hosts.places import Host
from megainfer.messages.hosts import LinkProbed, ProbeLink, from_attendant_decoder

PROBE_SECONDS = 30.0
"""More than a host needs to find out that another answers nothing."""
CONNECT_SECONDS = 5.0
MOST_AHEAD_SECONDS = 0.05
"""Of a clock before another: what lines of two hosts in one log may lie apart."""
MOST_TRIP_SECONDS = 1e-3
"""A layer of a step waits for a round trip: a longer one is most of what a token takes."""


class Finding(NamedTuple):
    """One way. problem: what is to be done about it, None where all is well."""

    source: str
    target: str
    link: LinkProbed
    problem: str | None


def examine(reception: Reception, names: list[str]) -> Iterator[Finding]:
    """Each way between two of these hosts, in both directions, one after the other."""
    for source in names:
        for target in names:
            if source != target:
                link = _probed(reception, source, target)
                yield Finding(source, target, link, problem_of(link))
                reception.attend()


def problem_of(link: LinkProbed) -> str | None:
    """The first thing that is wrong with a link.

    >>> problem_of(LinkProbed(0.0002, 1e9, 0.5))
    'clocks differ by 0.500 s; run NTP on both, or their logs are apart'
    """
    if link.error is not None:
        return link.error
    if abs(link.ahead_seconds) > MOST_AHEAD_SECONDS:
        apart = f"{abs(link.ahead_seconds):.3f} s"
        return f"clocks differ by {apart}; run NTP on both, or their logs are apart"
    if link.round_trip_seconds > MOST_TRIP_SECONDS:
        return (
            f"a round trip takes {link.round_trip_seconds * 1e3:.1f} ms, which every MoE layer of "
            "every token waits for; hosts of one instance belong side by side"
        )
    return None


def tell_gpus(hosts: Sequence[Host]) -> Iterator[str]:
    """What GPUs nodes may have, a line a host that has some; and that drivers differ, where they
    do."""
    drivers = dict[str, str]()
    for host in hosts:
        names = Counter(gpu.gpu.name for gpu in {gpu.place: gpu for gpu in host.offered}.values())
        if problem := host.machine.gpus and host.machine.gpu_problem:
            yield f"{host.name}: GPUs that can't be used: {problem}"
        elif names:
            drivers[host.name] = host.machine.driver
            told = ", ".join(f"{count} {name}" for name, count in names.items())
            yield f"{host.name}: {told}; driver {host.machine.driver}"
    if len({*drivers.values()}) > 1:
        yield f"drivers of GPUs differ between {', '.join(drivers)}: have the same on all"


def _probed(reception: Reception, source: str, target: str) -> LinkProbed:
    try:
        address = reception.listens_at(source)
        to = reception.listens_at(target)
        connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
    except (OSError, KeyError) as error:
        return LinkProbed(error=f"the agent of {source} can't be reached: {error}")
    name = f"host {source}"
    wire = Wire(
        *(connection, reception.token, from_attendant_decoder, name, True, PROBE_SECONDS),
        tls=reception.tls,
    )
    try:
        wire.send(ProbeLink(target, *to))
        (said, *_) = await_messages(wire, PROBE_SECONDS)
    except MegaInferError as error:
        return LinkProbed(error=str(error))
    finally:
        wire.close()
    return said if isinstance(said, LinkProbed) else LinkProbed(error=f"{name} said {said!r:.80}")
