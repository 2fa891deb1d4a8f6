"""Replication and packing of experts: the published example is the module's own; here is what holds
of any loads."""

from collections import Counter
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.planner.eplb import balanced, pack, replicate

loads_of = st.lists(st.integers(0, 1000), min_size=1, max_size=12)


@given(loads=loads_of, nodes=st.integers(1, 5), extra=st.integers(0, 3))
def test_every_node_has_as_many_and_every_expert_is_there(loads, nodes, extra):
    replicas = (-(-len(loads) // nodes) + extra) * nodes
    held = balanced(loads, replicas, nodes)
    assert [len(own) for own in held] == [replicas // nodes] * nodes
    assert set().union(*held) == set(range(len(loads)))


@given(loads=st.lists(st.integers(0, 50), min_size=1, max_size=5), extra=st.integers(0, 5))
def test_no_other_replicas_have_a_smaller_largest_share(loads, extra):
    experts = range(len(loads))

    def largest(added: tuple[int, ...]) -> float:
        return max(loads[e] / (1 + added.count(e)) for e in experts)

    whose = replicate(lambda e, n: loads[e] / n, len(loads), len(loads) + extra)
    assert whose[: len(loads)] == [*experts]
    every = combinations_with_replacement(experts, extra)
    assert largest(tuple(whose[len(loads) :])) == min(map(largest, every))


@given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=24), packs=st.integers(1, 6))
def test_packs_differ_by_no_more_than_the_heaviest_item(weights, packs):
    weights = weights[: len(weights) // packs * packs] or [1] * packs
    packed = pack(weights, packs)
    assert sorted(item for own in packed for item in own) == [*range(len(weights))]
    assert {len(own) for own in packed} == {len(weights) // packs}
    sums = sorted(sum(weights[item] for item in own) for own in packed)
    assert sums[-1] - sums[0] <= max(weights)
    heaviest_first = [[weights[item] for item in own] for own in packed]
    assert all(a >= b for own in heaviest_first for a, b in pairwise(own))


def test_a_hot_expert_is_everywhere_before_others_are_anywhere_twice():
    held = balanced([1000, 1, 1, 1, 1], replicas=8, nodes=4)
    assert Counter(expert for own in held for expert in own)[0] == 4
    assert all(0 in own for own in held)


@given(seed=st.randoms())
def test_groups_stay_with_a_host(seed):
    loads = [seed.randrange(1, 100) for _ in range(24)]
    held = balanced(loads, replicas=32, nodes=8, groups=4, hosts=2)
    hosts = [{expert // 6 for own in held[first : first + 4] for expert in own} for first in (0, 4)]
    assert [len(groups) for groups in hosts] == [2, 2]
    assert not hosts[0] & hosts[1]
    in_any_host = balanced(loads, replicas=32, nodes=8, groups=3, hosts=2)
    assert in_any_host == balanced(loads, replicas=32, nodes=8)


@pytest.mark.parametrize(
    ("experts", "nodes", "groups", "message"),
    [
        (5, 8, 2, "2 groups can't share 5 experts"),
        (8, 3, 1, "3 nodes can't share 8 replicas"),
        (8, 16, 1, "16 nodes can't share 8 replicas"),
    ],
)
def test_what_cannot_be_shared_is_refused(experts, nodes, groups, message):
    with pytest.raises(ConfigError, match=message):
        balanced([1] * experts, 8, nodes, groups)


def test_fewer_replicas_than_experts_are_refused():
    with pytest.raises(ConfigError, match="4 replicas are fewer than the 8 experts"):
        balanced([1] * 8, 4, 2)
