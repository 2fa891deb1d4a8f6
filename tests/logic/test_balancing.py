"""When experts move, where to, and that they stay where they are on an even load."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.planner.balancing import Balancer, ReadCost
from megainfer.planner.balancing.balancer import Proposal
from megainfer.planner.balancing.cost import ExpertLoad, costs_of, node_costs
from megainfer.planner.balancing.fresh import fresh_placement
from megainfer.planner.balancing.loads import Loads
from megainfer.planner.balancing.steps import Steps
from megainfer.simulator.experts import ExpertNodes, Traffic
from megainfer.topology import (
    EMPTY,
    Membership,
    Placement,
    Table,
    contiguous_placement,
    first_membership,
    placed,
)

COST = ReadCost()


def imbalance(nodes: ExpertNodes, batches: int, cost: ReadCost = COST) -> float:
    """The slowest node's time in each layer, by the mean, over so many batches."""
    times: dict[tuple[int, int], float] = {}
    for _ in range(batches):
        for layer, works in enumerate(nodes.batch()):
            for node, work in enumerate(works):
                spent = cost.read * work.reads + cost.row * work.rows
                times[layer, node] = times.get((layer, node), 0.0) + spent
    count = nodes.placement.num_nodes
    layers = {layer for layer, _ in times}
    slowest = sum(max(times[layer, node] for node in range(count)) for layer in layers)
    return slowest * count / sum(times.values())


class Balanced:
    """Simulated nodes that a balancer looks at."""

    def __init__(self, traffic: Traffic, replicas: int) -> None:
        first = contiguous_placement(traffic.experts, 4, traffic.layers, replicas)
        self.nodes = ExpertNodes(traffic, first)
        self.balancer = Balancer(traffic.layers, traffic.experts)
        self.membership = first_membership(1, first)

    def serve(self, batches: int = 40) -> float:
        found = imbalance(self.nodes, batches)
        for node, counters in self.nodes.counters():
            self.balancer.hear(node, counters)
        return found

    def look(self) -> Proposal | None:
        proposal = self.balancer.propose(self.membership)
        if proposal is not None:
            placement = proposal.placement
            epoch = self.membership.epoch + 1
            self.membership = replace(self.membership, epoch=epoch, placement=placement)
            self.nodes.placement = placement
        return proposal


@pytest.mark.parametrize("replicas", [0, 1, 4])
def test_a_skewed_load_is_balanced_and_one_that_turns_is_followed(replicas) -> None:
    balanced = Balanced(Traffic(layers=(1, 3)), replicas)
    assert balanced.serve() > 1.3
    assert balanced.look() is None, "what was counted before is no load"
    balanced.serve()
    for _ in range(6):
        before = balanced.membership.placement
        proposal = balanced.look()
        if proposal is not None:
            assert proposal.after < 0.97 * proposal.before
            assert proposal.moved == moved(before, proposal.placement) <= 2 * 4
        found = balanced.serve()
    assert found < 1.1
    assert balanced.look() is None, "it stays where it is"
    balanced.nodes.turn()
    assert balanced.serve() > 1.15
    for _ in range(5):
        balanced.look()
        found = balanced.serve()
    assert found < 1.1


def moved(before: Placement, after: Placement) -> int:
    return sum(
        len(set(after.experts_of(node, layer)) - set(before.experts_of(node, layer)))
        for layer in before.layers
        for node in range(before.num_nodes)
    )


@pytest.mark.parametrize("seed", range(3))
def test_on_an_even_load_nothing_moves(seed) -> None:
    balanced = Balanced(Traffic(layers=(0, 1), exponent=0.0, tokens=32, seed=seed), replicas=1)
    first = balanced.membership.placement
    for _ in range(10):
        balanced.serve(batches=25)
        assert balanced.look() is None
    assert balanced.nodes.placement == first


def test_nothing_is_concluded_from_little() -> None:
    balanced = Balanced(Traffic(layers=(0,), exponent=2.0), replicas=1)
    balanced.serve(1)
    balanced.serve(19)
    assert balanced.look() is None
    balanced.serve(20)
    assert balanced.look() is not None
    balanced.balancer.forget(2)
    balanced.serve(100)
    assert balanced.look() is None, "of a node that has started again too little is known"


def table(experts: Sequence[Sequence[int]], ways: Sequence[Sequence[int]]) -> Table:
    return Table(tuple(map(tuple, experts)), tuple(map(tuple, ways)))


def run(start: Table, loads: Sequence[float], cost: ReadCost, room: int = 9) -> Table:
    costs = costs_of([ExpertLoad(own, own) for own in loads], cost)
    return Steps(start, costs, range(len(start.experts)), dict.fromkeys(range(9), room)).run()


ROWS_ONLY = ReadCost(read=0.0)
READS_ONLY = ReadCost(row=0.0)


def test_rows_of_a_hot_expert_are_shared_out_first_among_those_who_hold_it() -> None:
    start = table([(0, 1, 2), (2, 3, 0)], [(16, 16, 0), (16, 16, 0)])
    assert run(start, [10, 1, 1, 1], ROWS_ONLY, room=0) == table(
        start.experts, [(9, 16, 0), (16, 16, 7)]
    )


def test_an_expert_that_is_read_anyway_is_not_read_twice() -> None:
    """Sharing it out would make two nodes read it: there is nothing to gain."""
    start = table([(0, 1, 2), (2, 3, 0)], [(16, 16, 0), (16, 16, 0)])
    assert run(start, [90, 20, 20, 20], READS_ONLY) == start


def test_a_replica_is_made_where_a_spare_is_worth_less() -> None:
    start = table([(0, 1, 3), (2, 3, 1)], [(16, 16, 0), (16, 16, 0)])
    after = run(start, [12, 1, 3, 1], ROWS_ONLY)
    assert after.experts[0] == (0, 1, 3)
    assert set(after.experts[1]) >= {2, 0}, "what only it holds, and a replica of the hot one"
    costs = costs_of([ExpertLoad(own, own) for own in (12, 1, 3, 1)], ROWS_ONLY)
    assert node_costs(after, costs) == [8.5, 8.5]
    assert run(start, [12, 1, 3, 1], ROWS_ONLY, room=0).experts == start.experts


def test_an_empty_slot_is_taken_before_a_spare_is_given_up() -> None:
    start = table([(0, 1, 3), (2, 3, 1, EMPTY)], [(16, 16, 0), (16, 16, 0, 0)])
    after = run(start, [12, 1, 1, 1], ROWS_ONLY)
    assert after.experts == ((0, 1, 3), (2, 3, 1, 0))


def test_without_replicas_experts_change_places() -> None:
    start = table([(0, 1), (2, 3)], [(16, 16), (16, 16)])
    after = run(start, [6, 5, 1, 2], ROWS_ONLY)
    assert sorted(sum(own) for own in pairs_of(after, [6, 5, 1, 2])) == [7, 7]
    assert run(start, [6, 5, 1, 2], ROWS_ONLY, room=0) == start


def pairs_of(after: Table, loads: Sequence[float]) -> list[list[float]]:
    return [[loads[expert] for expert in own] for own in after.experts]


def test_a_cover_of_all_experts_is_kept() -> None:
    """Each of four experts twice on four nodes: none may lose its second replica."""
    first = contiguous_placement(4, 4, [0], replicas=1).tables[0]
    after = run(first, [30, 1, 1, 1], ROWS_ONLY)
    assert Placement(4, (after,), {0: 0}).survives_any_node
    costs = costs_of([ExpertLoad(own, own) for own in (30, 1, 1, 1)], ROWS_ONLY)
    assert max(node_costs(after, costs)) < max(node_costs(first, costs))


loads_of = st.lists(st.floats(0, 100), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(loads=loads_of, nodes=st.integers(1, 4), replicas=st.integers(0, 3), read=st.floats(0, 50))
def test_steps_never_make_it_worse_and_give_a_placement(loads, nodes, replicas, read) -> None:
    nodes = min(nodes, len(loads))
    replicas = min(replicas, len(loads) - -(-len(loads) // nodes))
    first = contiguous_placement(len(loads), nodes, [7], replicas)
    costs = costs_of([ExpertLoad(own, own / 2) for own in loads], ReadCost(read))
    steps = Steps(first.tables[0], costs, range(nodes), dict.fromkeys(range(nodes), 3))
    before, after = steps.peak, steps.run()
    placement = placed(len(loads), {7: after})
    assert placement.survives_any_node or not first.survives_any_node
    assert [len(own) for own in after.experts] == [len(own) for own in first.tables[0].experts]
    assert max(node_costs(after, costs)) == pytest.approx(steps.peak)
    assert steps.peak <= before + 1e-9
    assert moved(first, placement) <= 3 * nodes


@settings(max_examples=60, deadline=None)
@given(loads=loads_of, nodes=st.integers(1, 4), replicas=st.integers(0, 3))
def test_other_nodes_get_a_placement_of_their_own(loads, nodes, replicas) -> None:
    members = range(1, 2 * min(nodes, len(loads)), 2)  # some numbers are of nodes that left
    before = contiguous_placement(len(loads), 1, [7])
    costs = costs_of([ExpertLoad(own, own / 2) for own in loads], COST)
    after = fresh_placement({7: costs}, members, replicas, before)
    assert Membership(1, (0,), tuple(members), after)
    room = -(-len(loads) // len(members)) + replicas
    assert [after.num_slots(node) for node in members] == [room] * len(members)


def test_who_stays_keeps_most_of_what_it_has() -> None:
    before = contiguous_placement(12, 3, [0, 1])
    even = costs_of([ExpertLoad(1, 1)] * 12, COST)
    fresh = fresh_placement({0: even, 1: even}, [0, 1, 2], 0, before)
    rotated = Placement(
        12, tuple(replace(t, experts=t.experts[1:] + t.experts[:1]) for t in fresh.tables), {0: 0}
    )
    again = fresh_placement({0: even}, [0, 1, 2], 0, rotated)
    assert moved(rotated, again) == 0
    with pytest.raises(ConfigError, match="13 expert nodes can't share 12 experts"):
        fresh_placement({0: even}, range(13), 0, before)


def test_loads_are_what_was_counted_since_each_node_began() -> None:
    loads = Loads(num_layers=2, num_experts=3)

    def counters(batches: int, tokens: int, reads: int) -> dict[str, object]:
        return {
            "batches": batches,
            "expert_tokens": [{0: tokens}, {}],
            "expert_reads": [{0: reads}, {}],
        }

    loads.hear(0, counters(1000, 9999, 999))
    loads.hear(0, counters(1200, 10199, 1049))
    assert loads.batches([0]) == 100
    assert loads.layer(0)[0] == ExpertLoad(2.0, pytest.approx(0.693, abs=1e-3))
    assert loads.layer(0)[1] == loads.layer(1)[0] == ExpertLoad()
    loads.hear(0, counters(20, 40, 10))  # its successor
    assert loads.layer(0)[0].rows == 2.0
    loads.hear(1, counters(0, 0, 0))
    loads.hear(1, counters(100, 50, 50))
    assert loads.layer(0)[0].rows == 3.0, "of all who hold it"
    assert loads.batches([0, 1]) == 50
    assert loads.batches([0, 1, 2]) == 0
    loads.fade()
    assert loads.batches([0]) == 25
    assert loads.layer(0)[0].rows == 3.0


def test_costs_grow_with_ways_and_reading_is_paid_by_each_holder() -> None:
    (own,) = costs_of([ExpertLoad(rows=8.0, hits=8.0)], ReadCost(read=4.0))
    assert own[0] == 0.0
    assert all(a < b for a, b in pairwise(own))
    assert own[16] == pytest.approx(8 + 4, abs=0.01)
    assert own[8] == pytest.approx(4 + 4, abs=0.1)
