"""The plan's terms in /metrics: what nodes count, beside what is expected of the same load."""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from megainfer.messages.from_child import Stats
from megainfer.messages.message import Role
from megainfer.planner.live.terms import Load, Terms
from server.operate.metrics.terms import Expectation, compare, term_families
from server.operate.nodes import NodeBoard, NodeState

LAYERS = 4
PROFILE: Mapping[str, Any] = {
    "attention": [(1, 1e-3), (8, 8e-3)],
    "experts": [(1, 2e-3), (8, 2e-3)],
    "transfer": [(1, 1e-5), (8, 8e-5)],
}


def attention(steps: int, clock: float) -> dict[str, Any]:
    """What a node has counted after so many steps of 8 rows, each with a layer's T_a of 4 ms."""
    runs = steps * LAYERS
    return {
        "clock_seconds": clock,
        "busy_seconds": steps * 0.02,
        "steps": steps,
        "generated_tokens": steps * 6,
        "step_tokens": {"bounds": (1.0,), "counts": [0, steps], "total": steps * 8},
        "attention_seconds": runs * 2e-3,
        "attention_count": runs,
        "dispatch_seconds": runs * 1e-3,
        "dispatch_count": runs,
        "combine_seconds": runs * 1e-3,
        "combine_count": runs,
        "sample_seconds": steps * 2e-3,
        "head_seconds": steps * 1e-3,
        "transfers": runs,
        "transfer_ns": runs * 50_000,
        "running": 12,
        "micro_batches": 2,
        "num_blocks": 100,
        "free_blocks": 40,
    }


def expert(batches: int, clock: float, seconds: float) -> dict[str, Any]:
    return {
        "clock_seconds": clock,
        "busy_seconds": batches * seconds,
        "expert_seconds": batches * seconds,
        "expert_count": batches,
    }


@pytest.fixture
def board() -> NodeBoard:
    """One attention and two expert nodes, heard twice a second apart; 10 steps between."""
    names = ((Role.ATTENTION, 0), (Role.EXPERT, 0), (Role.EXPERT, 1))
    board = NodeBoard([NodeState(*name) for name in names])
    for steps, clock in ((5, 100.0), (15, 101.0)):
        told = {
            "attention node 0": attention(steps, clock),
            "expert node 0": expert(steps * LAYERS, clock, 5e-3),
            "expert node 1": expert(steps * LAYERS, clock, 3e-3),
        }
        board.hear(Stats(None, told))
    return board


def samples(board: NodeBoard, expectation: Expectation) -> dict[str, dict[str, float]]:
    """Family -> term (and rows) -> value."""
    return {
        family.name: {
            " ".join(v for k, v in s.labels.items() if k != "model_name"): s.value
            for s in family.samples
        }
        for family in term_families("m", board, expectation)
    }


def test_terms_of_the_latest_second(board: NodeBoard) -> None:
    found = compare(board, Expectation())
    assert found is not None
    assert found.expected is None
    load, terms = found.now.load, found.now.terms
    assert load == Load(6.0, 2.0, load.context, 2, 1, 2, LAYERS)
    assert load.context == (60 / 12 - 0.5) * 16
    assert terms.attention == pytest.approx(4e-3)
    assert terms.experts == pytest.approx(5e-3), "the busiest node's"
    assert terms.transfer == pytest.approx(50e-6)
    assert terms.outside == pytest.approx(3e-3)
    assert terms.token == pytest.approx(2 / 10), "two micro-batches took turns at ten steps"
    assert found.now.generated == pytest.approx(60)
    assert found.now.idle == pytest.approx((0.8, 1 - (0.2 + 0.12) / 2))


def test_without_anything_to_expect_only_measured_terms_are_told(board: NodeBoard) -> None:
    found = samples(board, Expectation())
    assert found["megainfer:measured_seconds"].keys() == {
        *("attention", "experts", "transfer", "outside", "token")
    }
    others = {name for name in found if name != "megainfer:measured_seconds"}
    assert all(not found[name] for name in others)


class Twice:
    """Expects half of what is measured here, and of a token a tenth of a second."""

    def terms(self, load: Load) -> Terms:
        assert load.rows == 6.0
        return Terms(2e-3, 2.5e-3, 25e-6, 0.0, 0.1)


def test_drift_is_what_was_measured_by_what_was_expected(board: NodeBoard) -> None:
    found = samples(board, Expectation(Twice()))
    drift = found["megainfer:predicted_drift_ratio"]
    assert drift == pytest.approx(
        {"attention": 2.0, "experts": 2.0, "transfer": 2.0, "token": 2.0}
    ), "nothing was expected outside layers, so there is no ratio"
    assert found["megainfer:predicted_seconds"]["outside"] == 0.0
    assert found["megainfer:predicted_tokens_per_second"] == {"": pytest.approx(12 / 0.1)}


def test_the_start_that_measured_is_what_is_expected_without_hardware(board: NodeBoard) -> None:
    expectation = Expectation()
    expectation.learn(PROFILE, 1, 2)
    found = samples(board, expectation)
    assert found["megainfer:profiled_seconds"]["attention 8"] == 8e-3
    assert found["megainfer:predicted_seconds"]["attention"] == pytest.approx(8e-3)
    assert found["megainfer:predicted_drift_ratio"]["experts"] == pytest.approx(2.5)


def test_hardware_that_was_described_is_not_replaced_by_the_start(board: NodeBoard) -> None:
    expectation = Expectation(Twice())
    expectation.learn(PROFILE, 1, 2)
    assert samples(board, expectation)["megainfer:predicted_seconds"]["attention"] == 2e-3


def test_a_start_that_measured_nothing_expects_nothing() -> None:
    expectation = Expectation()
    expectation.learn({}, 1, 1)
    assert expectation.outlook is None


def test_nothing_is_told_while_nothing_is_generated() -> None:
    board = NodeBoard([NodeState(Role.ATTENTION, 0), NodeState(Role.EXPERT, 0)])
    assert compare(board, Expectation(Twice())) is None
    told = {"attention node 0": attention(5, 1.0), "expert node 0": expert(20, 1.0, 5e-3)}
    for _ in range(2):
        board.hear(Stats(None, told))
    found = samples(board, Expectation(Twice()))
    assert not any(found.values())
    assert not math.isnan(sum(sum(rows.values()) for rows in found.values()))


def test_a_node_that_was_lost_is_not_counted(board: NodeBoard) -> None:
    board.lose(Role.EXPERT, 0)
    found = compare(board, Expectation())
    assert found is not None
    assert found.now.load.experts == 1
    assert found.now.terms.experts == pytest.approx(3e-3)
