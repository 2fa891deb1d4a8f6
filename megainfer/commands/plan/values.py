"""What options of `megainfer plan` are written as: devices and counts, times, requests."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from megainfer.errors import ConfigError
from megainfer.planner.hardware import Device, find_device
from megainfer.planner.rehearsal import Pattern, Traffic
from megainfer.planner.search.inventory import Inventory
from megainfer.simulator.request import Request
from megainfer.simulator.trace_file import read_trace

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}
MOST_DEVICES = 1_000_000


def parse_seconds(text: str | float, flag: str) -> float:
    """Typer gives the default, a number of seconds, too. Raises ConfigError.

    >>> parse_seconds("150ms", "--tpot"), parse_seconds("2s", "--ttft"), parse_seconds("0.5", "-t")
    (0.15, 2.0, 0.5)
    """
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(us|ms|s|)", str(text).strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not seconds:
        raise ConfigError(f"{flag} needs a time such as 150ms or 2s, not {text!r}")
    return seconds


def parse_inventory(text: str, devices: Mapping[str, Device]) -> Inventory:
    """Of `H20:64,L40S:64`. Raises ConfigError, for an unknown name with those that are near."""
    stock = []
    for part in text.split(","):
        name, colon, count = part.strip().rpartition(":")
        if not colon or not count.isdigit() or not 1 <= int(count) <= MOST_DEVICES:
            raise ConfigError(
                f"--gpus needs a name and a number of each, such as H20:64,L40S:64, not {part!r}"
            )
        stock.append((find_device(devices, name), int(count)))
    return Inventory(tuple(stock))


def parse_tps(text: str) -> tuple[int, ...]:
    """
    >>> parse_tps("1,2,8")
    (1, 2, 8)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise ConfigError(f"--tp needs numbers of devices such as 1,2,4,8, not {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def parse_traffic(
    arrivals: str, lengths: str, share: float, straggler: float, jitter: float
) -> Traffic:
    """arrivals: poisson, bursts, bursts:FACTOR, or a trace's file. lengths: fixed, lognormal,
    lognormal:SIGMA, or a trace's file; those of a trace of arrivals are its own."""
    pattern, factor, trace = _arrivals(arrivals)
    sigma = None
    kind, _, value = lengths.partition(":")
    if kind == "lognormal":
        sigma = _number(value, 1.0, f"--lengths {lengths}")
    elif lengths != "fixed" and not trace:
        trace = tuple(read_trace(_file(lengths, "--lengths", "fixed, lognormal[:SIGMA]")))
    if trace and sigma is not None:
        raise ConfigError(f"--lengths {lengths}: those of --arrivals {arrivals} are its own")
    return Traffic(pattern, share, factor, sigma, trace, jitter, straggler)


def _arrivals(text: str) -> tuple[Pattern, float, tuple[Request, ...]]:
    kind, _, value = text.partition(":")
    usual = Traffic().burst_factor
    if kind in (Pattern.POISSON, Pattern.BURSTS):
        factor = _number(value, usual, f"--arrivals {text}") if kind == Pattern.BURSTS else usual
        return Pattern(kind), factor, ()
    path = _file(text, "--arrivals", "poisson, bursts[:FACTOR]")
    return Pattern.TRACE, usual, tuple(read_trace(path))


def _number(text: str, usual: float, what: str) -> float:
    if not text:
        return usual
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{what}: {text!r} is no number")
    return number


def _file(text: str, flag: str, words: str) -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(f"{flag} must be {words} or a trace's file, and {text!r} is neither")
    return path
