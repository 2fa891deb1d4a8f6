"""How the devices are called that `megainfer calibrate` makes of one machine."""

from collections.abc import Mapping

from megainfer.errors import ConfigError
from megainfer.planner.hardware import Device

BESIDE, COLOCATED = "-beside", "-colocated"


def of_cores(name: str, cores: int) -> str:
    """A node on so many cores, the others having nothing to do."""
    return f"{name}-{cores}"


def beside(name: str) -> str:
    """The same node while all other cores are at work."""
    return name + BESIDE


def colocated(name: str) -> str:
    """Both roles in one process on all cores."""
    return name + COLOCATED


def node_on_cpu(devices: Mapping[str, Device], name: str | None, suffix: str) -> Device:
    """The device whose name is `name` and this suffix; without a name, the only one with it.

    Raises ConfigError where there is none, or several.
    """
    if name is not None:
        if name + suffix in devices:
            return devices[name + suffix]
        found = []
    else:
        found = [own for own in devices if own.endswith(suffix)]
    if len(found) == 1:
        return devices[found[0]]
    if found:
        bases = ", ".join(sorted(own.removesuffix(suffix) for own in found))
        raise ConfigError(f"--hardware describes several machines ({bases}); say --hardware-name")
    wanted = f"{name or 'NAME'}{suffix}"
    cores = f" --cores {suffix[1:]}" if suffix[1:].isdecimal() else ""
    raise ConfigError(
        f"--hardware has no device {wanted} for nodes such as these; make it with megainfer "
        f"calibrate{cores}"
    )
