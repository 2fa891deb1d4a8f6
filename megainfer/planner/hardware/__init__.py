"""Kinds of GPUs and CPU servers: what they have, what they reach of it, and the table of them."""

from megainfer.planner.hardware.curve import Utilisation
from megainfer.planner.hardware.device import Device, Link
from megainfer.planner.hardware.efficiency import Efficiency
from megainfer.planner.hardware.fields import to_toml
from megainfer.planner.hardware.table import find_device, load_devices, paper_devices

__all__ = [
    "Device",
    "Efficiency",
    "Link",
    "Utilisation",
    "find_device",
    "load_devices",
    "paper_devices",
    "to_toml",
]
