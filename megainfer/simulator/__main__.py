"""Prints what each policy makes of each scenario, in tokens a second."""

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from megainfer.errors import ConfigError
from megainfer.simulator.scenario import Chance, Policy, Scenario, Spell
from megainfer.simulator.world import simulate

EVEN = Scenario()
UNEVEN = Scenario(unevenness=1.3)

SCENARIOS: dict[str, Scenario] = {
    "all alike": EVEN,
    "uneven, up to 1.3x": UNEVEN,
    "uneven, no rows 1 in 10": replace(UNEVEN, zero_rows=0.1),
    "uneven, m = 1": replace(UNEVEN, micro_batches=1),
    "uneven, m = 4": replace(UNEVEN, micro_batches=4),
    "one 3x slower": replace(EVEN, spells=(Spell(3, 3.0),)),
    "one 10x slower": replace(EVEN, spells=(Spell(3, 10.0),)),
    "10x, half of the time": replace(
        EVEN, spells=tuple(Spell(3, 10.0, t / 10, t / 10 + 0.05) for t in range(20))
    ),
    "10x, 1 layer in 1000": replace(EVEN, stalls=Chance(0.001, 10.0)),
    "30x, 1 step in 100": replace(EVEN, long_steps=Chance(0.01, 30.0)),
    "uneven, rests": replace(UNEVEN, rests=0.1),
    "uneven, two join": replace(UNEVEN, joins=((1, 0.5), (5, 1.0))),
    "uneven, two die": replace(UNEVEN, deaths=((1, 0.7), (5, 1.2))),
}


def table() -> Iterator[str]:
    """The lines of the table, as they are computed."""
    policies: tuple[Policy, ...] = get_args(Policy)
    yield f"{'tokens a second':26}" + "".join(f"{policy:>10}" for policy in policies)
    for name, scenario in SCENARIOS.items():
        yield f"{name:26}" + "".join(f"{_cell(scenario, policy):>10}" for policy in policies)


def _cell(scenario: Scenario, policy: Policy) -> str:
    try:
        chosen = replace(scenario, policy=policy)
    except ConfigError:  # This baseline cannot do it.
        return "-"
    return f"{simulate(chosen).tokens_per_second:.0f}"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
