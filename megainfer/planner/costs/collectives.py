"""What ranks of one node, or GPUs of one domain after another, take to exchange rows."""

from math import ceil, log2

from megainfer.planner.costs.stage_time import Time
from megainfer.planner.hardware import Device, Link, Utilisation


def all_reduce(device: Device, num_bytes: float, ranks: int) -> Time:
    """Of so many bytes that each rank has, or an all-gather and a reduce-scatter of them.

    By halving and doubling (Thakur, Rabenseifner and Gropp, 2005): 2 (R - 1) / R of the bytes leave
    each rank, in 2 ceil(log2 R) messages one after the other. Beyond one scale-up domain of d ranks
    it's done within domains, and by the NICs with what each rank has a d-th of.
    """
    return all_gather(device, num_bytes, ranks) * 2


def all_gather(device: Device, num_bytes: float, ranks: int) -> Time:
    """Of so many bytes of which each rank has a part: half of `all_reduce`."""
    near = min(ranks, device.link.devices)
    efficiency = device.efficiency
    time = _doubling(device.link, efficiency.link, num_bytes, near)
    if ranks > near:
        domains = ceil(ranks / near)
        time = time + _doubling(device.nic, efficiency.nic, num_bytes / near, domains)
    return time


def _doubling(link: Link, utilisation: Utilisation, num_bytes: float, ranks: int) -> Time:
    if ranks <= 1 or num_bytes <= 0:
        return Time()
    message = num_bytes / ranks
    seconds = (ranks - 1) * message / (link.bytes_per_second * utilisation.at(message))
    return Time(network=seconds, fixed=ceil(log2(ranks)) * link.latency_seconds)
