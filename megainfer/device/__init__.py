"""What computes on its own time, and how its work is ordered, waited for and timed.

A host thread gives work to streams: what one stream is given is done in that order, what two are
given in any, unless an event puts one after the other. Nothing here knows models or messages.
"""

from megainfer.device.device import Chip, Device, Event, MemoryUse, Readback, Replay, Stream
from megainfer.device.host import HOST, HostDevice
from megainfer.device.measuring import marks_of, memory_counters, settle
from megainfer.device.recordings import OnGraph, Recordings

__all__ = [
    "HOST",
    "Chip",
    "Device",
    "Event",
    "HostDevice",
    "MemoryUse",
    "OnGraph",
    "Readback",
    "Recordings",
    "Replay",
    "Stream",
    "marks_of",
    "memory_counters",
    "settle",
]
