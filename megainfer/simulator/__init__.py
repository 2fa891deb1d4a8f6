"""A discrete-event simulation of the pipeline: many attention and expert nodes, no tensors.

It drives the very `PingPong` and `Gather` that the nodes use, through stage costs that may jitter,
uneven and stalling nodes, messages without rows, rests, late joins and deaths, and compares our
gather with serving whatever waits ("greedy") and with waiting for everyone ("lockstep").
Steps are all alike, or hold requests that arrive: then it says when their tokens come.
`simulate_together` has both roles on the same nodes, one step after the other.
`python -m megainfer.simulator` prints a table; docs/pipeline.md discusses it.
"""

from megainfer.simulator.feed import Load
from megainfer.simulator.request import Latencies, Percentiles, Request
from megainfer.simulator.scenario import Chance, Outcome, Policy, Scenario, Span, Spell
from megainfer.simulator.together import simulate_together
from megainfer.simulator.work import FREE, Cost, Work
from megainfer.simulator.world import simulate

__all__ = [
    "FREE",
    "Chance",
    "Cost",
    "Latencies",
    "Load",
    "Outcome",
    "Percentiles",
    "Policy",
    "Request",
    "Scenario",
    "Span",
    "Spell",
    "Work",
    "simulate",
    "simulate_together",
]
