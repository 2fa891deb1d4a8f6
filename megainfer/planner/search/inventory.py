"""Which devices there are, and how many of each."""

from collections import Counter
from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.planner.hardware import Device
from megainfer.planner.search.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Inventory:
    """Devices and how many of each; no device is there twice."""

    stock: tuple[tuple[Device, int], ...]

    def __post_init__(self) -> None:
        if not self.stock:
            raise ConfigError("a plan needs at least one kind of device, such as H20:64")
        names = [device.name for device, _ in self.stock]
        for device, count in self.stock:
            if count < 1:
                raise ConfigError(f"{count} of {device.name}, but there must be at least 1")
            if names.count(device.name) > 1:
                raise ConfigError(f"{device.name} is named twice; give one count for all of them")

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(device for device, _ in self.stock)

    def count(self, device: Device) -> int:
        """How many there are of this one; 0 without any."""
        return next((count for own, count in self.stock if own.name == device.name), 0)

    def instances(self, deployment: Deployment) -> int:
        """How often there are devices for it at a time."""
        needs = Counter[str]()
        for role in deployment.roles:
            needs[role.device.name] += role.devices
        counts = {device.name: count for device, count in self.stock}
        return min(counts.get(name, 0) // need for name, need in needs.items())

    def describe(self) -> str:
        """Such as "64 H20 and 64 L40S"."""
        return " and ".join(f"{count} {device.name}" for device, count in self.stock)
