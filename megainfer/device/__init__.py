"""What computes on its own time, and how its work is ordered, waited for and timed.

A host thread gives work to streams: what one stream is given is done in that order, what two are
given in any, unless an event puts one after the other. Nothing here knows models or messages.
"""

from megainfer.device.device import Device, Event, MemoryUse, Readback, Stream
from megainfer.device.host import HOST, HostDevice
from megainfer.device.marks import marks_of, settle

__all__ = [
    "HOST",
    "Device",
    "Event",
    "HostDevice",
    "MemoryUse",
    "Readback",
    "Stream",
    "marks_of",
    "settle",
]
