"""Plans tried in the simulator, which waits, gathers and admits requests as the nodes that serve."""

from megainfer.planner.rehearsal.rehearsal import Rehearsal, rehearse
from megainfer.planner.rehearsal.traffic import Pattern, Traffic

__all__ = ["Pattern", "Rehearsal", "Traffic", "rehearse"]
