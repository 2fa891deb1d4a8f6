"""From what was measured to a device, in the planner's own terms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from megainfer.calibration.measured import Exchanged, HostWork, KernelTime, KernelTimes
from megainfer.memory import stored_bytes
from megainfer.planner.hardware import Device, Efficiency, Link, Utilisation
from megainfer.planner.hardware.efficiency import ANY

MEASURED = "measured by megainfer calibrate"
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Share:
    """What part of the machine a device is. memory_bytes: all of the machine's, as watts are.
    price: of the machine, relative (an L20 is 1)."""

    name: str
    cores: int
    of_cores: int
    memory_bytes: float
    watts: float
    price: float
    when: str  # and on what processor

    @property
    def part(self) -> float:
        return self.cores / self.of_cores


def device_of(
    share: Share, kernels: KernelTimes, links: Sequence[Exchanged], host: HostWork
) -> Device:
    """A node on so many cores of a machine."""
    rate, flops = _memory_rate(kernels), _peaks(kernels)
    # Packing, which one direction has, is the host's work on a layer already.
    noticing = max(0.0, host.transfer - links[0].packing / 2)
    sleep = {"awake_seconds": host.awake, "waking_seconds": host.waking}
    road = Link(rate, noticing, max(1, share.of_cores // share.cores), **sleep)
    return Device(
        name=share.name,
        kind="cpu",
        memory_bytes=share.memory_bytes * share.part,
        memory_bytes_per_second=rate,
        flops=flops,
        link=road,
        nic=Link(rate, noticing, **sleep),
        watts=share.watts * share.part,
        price=share.price * share.part,
        efficiency=_efficiency(kernels, rate, flops, links, host),
        sources=_sources(share),
    )


def _peaks(kernels: KernelTimes) -> dict[str, float]:
    """The best that was seen, by arithmetic. Quantised weights that are no faster than bfloat16 are
    widened first, and have that one's: `Device.rate` says the same."""
    seen = {
        dtype: max(time.rate for time in (*times, *kernels.experts[dtype]))
        for dtype, times in kernels.products.items()
    }
    own = ("float32", "bfloat16")
    return {d: rate for d, rate in seen.items() if d in own or rate > seen["bfloat16"]}


def _memory_rate(kernels: KernelTimes) -> float:
    """The best that was seen, in bytes a second: experts, whose calls read a hundred times what a
    call takes, may be better at it than a plain sum. Products aren't asked: their times are less
    their calls', and what that leaves of a small one may be quicker than any memory."""
    reading = [
        stored_bytes(round(time.amount / 2 / time.size), dtype) / time.seconds
        for dtype, times in kernels.experts.items()
        for time in times
    ]
    return max(kernels.summing, *reading)


def _efficiency(
    kernels: KernelTimes,
    rate: float,
    flops: Mapping[str, float],
    links: Sequence[Exchanged],
    host: HostWork,
) -> Efficiency:
    attention = {dtype: _reached(rate, _times(own)) for dtype, own in kernels.attention.items()}
    return Efficiency(
        products=_by_dtype(kernels.products, flops),
        expert_products=_by_dtype(kernels.experts, flops),
        attention_read={**attention, ANY: attention["bfloat16"]},
        # Curves of products hold what memory allows as well; so this bounds what they don't know.
        weights_read=Utilisation.constant(1.0),
        experts_read=Utilisation.constant(1.0),
        copied=_copied(rate, links),
        link=Utilisation.constant(1.0),
        nic=Utilisation.constant(1.0),
        launch_seconds=0.0,  # calls are among the host's work on a layer
        attention_layer_seconds=host.attention_layer,
        expert_layer_seconds=host.expert_layer,
        step_seconds=host.step,
        sequence_seconds=host.sequence,
    )


def _by_dtype(
    measured: Mapping[str, tuple[KernelTime, ...]], flops: Mapping[str, float]
) -> dict[str, Utilisation]:
    curves = {
        dtype: Utilisation.measured(
            flops.get(dtype, flops["bfloat16"]) / _flops_a_row(own), _times(_per_row(own))
        )
        for dtype, own in measured.items()
    }
    return {**curves, ANY: curves["bfloat16"]}


def _per_row(measured: Iterable[KernelTime]) -> list[KernelTime]:
    """As if all had the FLOPs of the first for each of their rows: experts are measured with fewer
    of them where each has many rows."""
    measured = [*measured]
    a_row = _flops_a_row(measured)
    return [
        KernelTime(time.size, a_row * time.size, a_row * time.size / time.rate) for time in measured
    ]


def _flops_a_row(measured: Iterable[KernelTime]) -> float:
    first = next(iter(measured))
    return first.amount / first.size


def _times(measured: Iterable[KernelTime]) -> list[tuple[float, float]]:
    return [(time.size, time.seconds) for time in measured]


def _copied(rate: float, links: Sequence[Exchanged]) -> Utilisation:
    """What more bytes take than the smallest message, whose time is the host's work on it."""
    first, *others = links
    times = [(own.moved_bytes, own.moving - first.moving) for own in others]
    return _reached(rate, [(size, seconds) for size, seconds in times if seconds > 0])


def _reached(rate: float, times: Sequence[tuple[float, float]]) -> Utilisation:
    """Of (bytes, seconds); all of it where nothing took any time."""
    return Utilisation.measured(rate, times) if times else Utilisation.constant(1.0)


def _sources(share: Share) -> dict[str, str]:
    """Of every figure."""
    measured = ("memory_bytes_per_second", "flops", "link", "efficiency")
    told = dict.fromkeys(measured, f"{MEASURED}, {share.when}")
    return {
        **told,
        "memory_bytes": f"{share.cores} of {share.of_cores} cores' part of the machine's memory",
        "nic": f"{NOT_MEASURED}: as link; this machine has no other to measure with",
        "watts": "as given by --watts",
        "price": "as given by --price",
    }
