"""Points in a device's work, for those who time it."""

from collections.abc import Callable

from megainfer.device.device import Device, Event


def marks_of(device: Device) -> Callable[[], Event] | None:
    """Makes a mark that the current stream has yet to pass; None on the host, which has done what
    it was given when a call returns and is timed by its own clock."""
    if device.is_host:
        return None

    def mark() -> Event:
        event = device.event(timed=True)
        event.record()
        return event

    return mark


def settle(device: Device) -> None:
    """Block the host until the device has done what the current stream was given."""
    event = device.event()
    event.record()
    event.synchronize()
