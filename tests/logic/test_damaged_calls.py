"""Calls that models write wrongly, in every notation: recovered, valid, and the same in pieces."""

import pytest

from server.parsing.notations import NOTATIONS
from tests.support.call_recovery import tries
from tests.support.damaged_calls import DAMAGES, HOPELESS

CELLS = [(name, damage) for name, damages in DAMAGES.items() for damage in damages]


def test_every_notation_is_damaged() -> None:
    assert set(DAMAGES) == set(NOTATIONS)


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damaged_calls_are_calls(name: str) -> None:
    for damage in DAMAGES[name]:
        for tried in tries(name, damage, 12):
            assert tried.recovered or damage in HOPELESS, (damage, tried.text)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "damage"), CELLS)
def test_a_hundred_thousand_damaged_calls(name: str, damage: str) -> None:
    for tried in tries(name, damage, -(-100_000 // len(CELLS))):
        assert tried.recovered or damage in HOPELESS, tried.text
