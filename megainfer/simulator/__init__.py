"""A discrete-event simulation of the pipeline: many attention and expert nodes, no tensors.

It drives the very `PingPong` and `Gather` that the nodes use, through stage costs that may jitter,
uneven and stalling nodes, messages without rows, rests, late joins and deaths, and compares our
gather with serving whatever waits ("greedy") and with waiting for everyone ("lockstep").
`python -m megainfer.simulator` prints a table; docs/pipeline.md discusses it.
"""

from megainfer.simulator.scenario import Chance, Cost, Outcome, Policy, Scenario, Spell
from megainfer.simulator.world import simulate

__all__ = ["Chance", "Cost", "Outcome", "Policy", "Scenario", "Spell", "simulate"]
