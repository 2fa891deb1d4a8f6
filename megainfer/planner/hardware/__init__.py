"""Kinds of GPUs and CPU servers: what they have, what they reach of it, and the table of them."""

from megainfer.planner.hardware.curve import Utilisation
from megainfer.planner.hardware.device import Device, Link
from megainfer.planner.hardware.efficiency import Efficiency

__all__ = ["Device", "Efficiency", "Link", "Utilisation"]
