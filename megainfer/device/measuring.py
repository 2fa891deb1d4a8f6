"""Points in a device's work, and what it has of memory, for those who measure."""

from megainfer.device.device import Device, Event

EVENTS = 4096
"""Of a node. A step of 94 layers has some 800 marks, and a device is rarely a step behind."""


class EventMarks:
    """`instruments.device_time.Marks`: events that are all made when this is, each of which is
    recorded again once its seconds were told. Those that CUDA would make later cost more then, and
    what has a fixed number can't grow."""

    def __init__(self, device: Device, count: int = EVENTS) -> None:
        self._free = [device.event(timed=True) for _ in range(count)]
        for event in self._free:
            event.record()  # by which torch makes one of CUDA's

    def take(self) -> Event | None:
        """See `Marks.take`."""
        if not self._free:
            return None
        event = self._free.pop()
        event.record()
        return event

    def give_back(self, mark: Event) -> None:
        """See `Marks.give_back`."""
        self._free.append(mark)


def marks_of(device: Device) -> EventMarks | None:
    """For who measures what a device is given; None on the host, which has done that when a call
    returns and is timed by its own clock."""
    return None if device.is_host else EventMarks(device)


def memory_counters(device: Device) -> dict[str, int]:
    """What a node tells of its device's memory; nothing of the host's."""
    memory = device.memory()
    if memory is None:
        return {}
    return {
        "device_bytes_held": memory.held,
        "device_bytes_used": memory.used,
        "device_late_allocations": memory.late,
    }


def settle(device: Device) -> None:
    """Block the host until the device has done what the current stream was given."""
    event = device.event()
    event.record()
    event.synchronize()
