"""Plans tried in the simulator, which waits and gathers by the very rules of the nodes."""

from megainfer.planner.rehearsal.rehearsal import Rehearsal, rehearse
from megainfer.planner.rehearsal.traffic import Pattern, Traffic

__all__ = ["Pattern", "Rehearsal", "Traffic", "rehearse"]
