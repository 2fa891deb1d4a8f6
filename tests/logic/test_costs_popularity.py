"""Who is chosen, against the sum over all sets that a token can choose, and against drawing."""

import random
from collections.abc import Iterator
from itertools import combinations, pairwise, product
from math import comb, prod, sqrt
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.models.spec import ExpertGroups, GroupScore
from megainfer.planner.costs import Popularity, expected_maximum
from megainfer.planner.costs.held import Held
from megainfer.planner.costs.nodes import FEW, nodes_of, placed
from megainfer.planner.costs.popularity import counts_inside
from megainfer.planner.costs.straggling import normal_maximum

popularities = st.builds(
    lambda weights, k: Popularity(tuple(weights), min(k, len(weights))),
    st.lists(st.floats(0.01, 100), min_size=2, max_size=7),
    st.integers(1, 4),
)


def sets(popularity: Popularity) -> list[tuple[tuple[int, ...], float]]:
    """Every set of experts that a token can choose, with its probability."""
    members = list(combinations(range(popularity.experts), popularity.top_k))
    weights = [prod(popularity.weights[e] for e in own) for own in members]
    return [(own, weight / sum(weights)) for own, weight in zip(members, weights, strict=True)]


@given(popularities)
def test_probabilities_are_those_of_the_sets(popularity):
    expected = [
        sum(p for own, p in sets(popularity) if expert in own)
        for expert in range(popularity.experts)
    ]
    assert popularity.chosen() == pytest.approx(expected)
    assert sum(popularity.chosen()) == pytest.approx(popularity.top_k)


@given(popularities, st.data())
def test_a_node_gets_the_tokens_that_chose_one_of_its_experts(popularity, data):
    """Some experts are on both of two nodes, each with a part of their tokens."""
    parts = st.sampled_from((0.0, 0.25, 0.5, 1.0))
    here = {e: data.draw(parts) for e in range(popularity.experts)}
    first = {e: part for e, part in here.items() if part}
    second = {e: 1 - part for e, part in here.items() if part < 1}
    for own, inside in zip(
        (first, second), counts_inside(popularity, (first, second)), strict=True
    ):
        expected = [0.0] * (popularity.top_k + 1)
        for chosen, p in sets(popularity):
            for here_too in product((False, True), repeat=len(chosen)):
                ways = [
                    own.get(e, 0.0) if it_is else 1 - own.get(e, 0.0)
                    for e, it_is in zip(chosen, here_too, strict=True)
                ]
                expected[sum(here_too)] += p * prod(ways)
        assert inside == pytest.approx(expected)
        node = Held.of([popularity.chosen()[e] * part for e, part in own.items()], inside,
                       popularity.top_k)  # fmt: skip
        mean = sum(n * p for n, p in enumerate(expected))
        assert node.choices == pytest.approx(mean)
        spread = sqrt(sum(p * (n - mean) ** 2 for n, p in enumerate(expected)))
        assert node.spread == pytest.approx(spread, abs=1e-6)
        assert node.sent == pytest.approx(1 - expected[0])


@settings(max_examples=20)
@given(popularities)
def test_active_experts_are_those_that_some_token_chose(popularity):
    node = nodes_of(popularity, 1).busiest
    expected = sum(
        p * q * len(set(first) | set(second))
        for (first, p), (second, q) in product(sets(popularity), repeat=2)
    )
    assert node.activated(2) == pytest.approx(expected)
    assert node.activated(1) == pytest.approx(popularity.top_k)
    assert node.activated(1e6) <= popularity.experts


def test_equal_weights_give_the_published_formula():
    """1 - C(E - E/N, K) / C(E, K)."""
    popularity = Popularity.uniform(32, 4)
    for nodes in (1, 2, 8, 32):
        spread = nodes_of(popularity, nodes)
        sent = 1 - comb(32 - 32 // nodes, 4) / comb(32, 4)
        assert spread.fanout == pytest.approx(nodes * sent)
        assert spread.most_sent == pytest.approx(sent)
    assert nodes_of(popularity, 32).fanout == pytest.approx(4)
    assert nodes_of(Popularity.zipf(32, 4, 0.0), 8) == nodes_of(popularity, 8)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_groups_keep_a_token_on_fewer_nodes(nodes, kept):
    groups = ExpertGroups(count=3, kept=kept, score=GroupScore.MAX)
    popularity = Popularity((1.0,) * 12, 2, groups)
    size = 12 // nodes
    chosen = [
        {4 * group + place for group, place in own}
        for own_groups in combinations(range(3), kept)
        for own in combinations([(g, e) for g in own_groups for e in range(4)], 2)
    ]
    held = [set(range(node * size, (node + 1) * size)) for node in range(nodes)]
    per_node = [sum(not own.isdisjoint(experts) for own in chosen) for experts in held]
    spread = nodes_of(popularity, nodes)
    assert spread.fanout == pytest.approx(sum(per_node) / len(chosen))
    assert spread.most_sent == pytest.approx(max(per_node) / len(chosen))


def test_skew_reads_fewer_experts_and_loads_one_node_more():
    even, skewed = Popularity.uniform(64, 8), Popularity.zipf(64, 8, 1.0)
    one, other = nodes_of(even, 1).busiest, nodes_of(skewed, 1).busiest
    assert other.activated(16) < one.activated(16)
    assert other.choices == pytest.approx(one.choices)
    assert nodes_of(skewed, 64).busiest.choices > 3 * nodes_of(even, 64).busiest.choices
    # Packed by how popular they are, eight a node come out nearly even.
    assert nodes_of(skewed, 8).busiest.choices < 1.2 * nodes_of(even, 8).busiest.choices


def test_every_expert_is_somewhere():
    for popularity in (Popularity.uniform(10, 2), Popularity.zipf(10, 2, 0.7)):
        for nodes in range(1, 11):
            assert nodes_of(popularity, nodes).most_experts == -(-10 // nodes)
            assert nodes_of(popularity, nodes).count == nodes


@pytest.mark.parametrize("nodes", [0, 11])
def test_a_node_without_experts_is_refused(nodes):
    with pytest.raises(ConfigError, match="10 experts can't be on"):
        nodes_of(Popularity.uniform(10, 2), nodes)


def test_weights_and_choices_that_cannot_be():
    with pytest.raises(ConfigError, match="can't choose 5 of 4"):
        Popularity.uniform(4, 5)
    with pytest.raises(ConfigError, match="must be more than 0"):
        Popularity((1.0, 0.0), 1)


def test_the_busiest_node_is_above_the_mean_but_not_above_all():
    nodes = nodes_of(Popularity.uniform(16, 2), 8)
    mean = 100 * nodes.busiest.choices
    assert mean < nodes.most_choices(100) < 1.5 * mean
    assert nodes.most_choices(1) <= 2
    alone = nodes_of(Popularity.uniform(16, 2), 1)
    assert alone.most_choices(100) == 200


def tokens(popularity: Popularity, chance: random.Random) -> Iterator[tuple[int, ...]]:
    """What one token after the other chooses."""
    if popularity.is_uniform:
        while True:
            yield tuple(chance.sample(range(popularity.experts), popularity.top_k))
    members, weights = zip(*sets(popularity), strict=True)
    while True:
        yield from chance.choices(members, weights, k=1000)


def drawn(
    popularity: Popularity, held: list[dict[int, float]], rows: int, batches: int
) -> tuple[float, float]:
    """The mean of the most choices, and of the most active experts, that a node has in a batch."""
    chance = random.Random(rows)
    choosing = tokens(popularity, chance)
    homes = {
        e: [(node, own[e]) for node, own in enumerate(held) if e in own]
        for e in range(popularity.experts)
    }
    choices, active = list[int](), list[int]()
    for _ in range(batches):
        got: list[list[int]] = [[] for _ in held]
        for _ in range(rows):
            for e in next(choosing):
                nodes, parts = zip(*homes[e], strict=True)
                (node,) = chance.choices(nodes, parts)
                got[node].append(e)
        choices.append(max(map(len, got)))
        active.append(max(len(set(own)) for own in got))
    return fmean(choices), fmean(active)


@pytest.mark.parametrize("rows", [1, 3, 10, 40])
@pytest.mark.parametrize(
    ("experts", "top_k", "count", "skew", "spares"),
    [
        (8, 2, 8, 0.0, 0),
        (8, 2, 4, 0.0, 0),
        (16, 4, 4, 0.0, 0),
        (128, 8, 32, 0.0, 0),
        (128, 8, 4, 0.0, 0),
        (16, 2, 8, 1.0, 0),
        (16, 4, 4, 1.0, 0),
        (16, 4, 5, 0.7, 0),
        (16, 2, 16, 1.0, 1),
        (16, 4, 4, 1.5, 2),
    ],
)
def test_the_busiest_node_does_what_drawing_tokens_gives(
    experts: int, top_k: int, count: int, skew: float, spares: int, rows: int
) -> None:
    popularity = Popularity.zipf(experts, top_k, skew)
    nodes = nodes_of(popularity, count, spares)
    choices, active = drawn(popularity, placed(popularity, count, spares), rows, 400)
    assert nodes.most_active(rows) == pytest.approx(active, rel=0.1)
    if rows >= 10:
        assert nodes.most_choices(rows) == pytest.approx(choices, rel=0.15)
    assert nodes.most_choices(rows) >= 0.9 * active


def test_the_mean_of_a_node_is_far_below_the_most_active():
    """8 tokens, of 8 choices each, and 32 nodes of 4 experts."""
    nodes = nodes_of(Popularity.uniform(128, 8), 32)
    mean = nodes.busiest.activated(8)
    assert mean == pytest.approx(4 * (1 - (1 - 8 / 128) ** 8))
    assert nodes.most_active(8) > 1.9 * mean


@given(popularities, st.integers(1, 7), st.integers(0, 3), st.floats(0.1, 50), st.floats(1, 3))
def test_more_tokens_never_read_less_or_compute_less(popularity, count, spares, rows, factor):
    count = min(count, popularity.experts)
    spares = min(spares, popularity.experts - -(-popularity.experts // count))
    nodes = nodes_of(popularity, count, spares)
    assert nodes.most_active(rows * factor) >= nodes.most_active(rows) * (1 - 1e-9)
    assert nodes.most_choices(rows * factor) >= nodes.most_choices(rows) * (1 - 1e-9)


@pytest.mark.parametrize("skew", [0.0, 0.3, 0.7, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_nor_where_a_node_has_many_experts(skew, count):
    nodes = nodes_of(Popularity.zipf(128, 8, skew), count)
    assert nodes.most_experts > FEW
    active = [nodes.most_active(1.1**n) for n in range(-10, 120)]
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(active))


def test_between_computed_rows_active_experts_are_nearly_straight():
    popularity = Popularity.zipf(16, 4, 1.0)
    nodes = nodes_of(popularity, 4)
    for rows in (1.2, 5.0, 20.0, 77.0):
        assert nodes.most_active(rows) == pytest.approx(nodes._most_active(rows), rel=0.01)


def test_spares_take_load_from_the_node_with_the_most_popular_expert():
    popularity = Popularity.zipf(64, 4, 1.2)
    by_spares = [nodes_of(popularity, 64, spares) for spares in (0, 1, 2, 4)]
    loads = [nodes.busiest.choices for nodes in by_spares]
    assert loads == sorted(loads, reverse=True)
    assert loads[-1] < 0.4 * loads[0]
    for nodes, spares in zip(by_spares, (0, 1, 2, 4), strict=True):
        assert nodes.most_experts == 1 + spares
        total = sum(held.choices * count for held, count in nodes.kinds)
        assert total == pytest.approx(4), "no token's choice is lost"


def test_spares_of_experts_that_are_alike_spare_nothing():
    even = Popularity.uniform(8, 2)
    assert nodes_of(even, 4, 1).most_choices(10) == nodes_of(even, 4).most_choices(10)
    assert nodes_of(even, 4, 1).most_experts == 3
    with pytest.raises(ConfigError, match="7 spare experts on each of 4 nodes: others have 6"):
        nodes_of(even, 4, 7)


def test_the_largest_of_normal_variables():
    """Of 2 and 3: 1 / sqrt(pi) and 3 / (2 sqrt(pi)); of 8 and 64 as tables of order statistics."""
    expected = {1: 0.0, 2: 0.56419, 3: 0.84628, 8: 1.42360, 64: 2.34373}
    for count, value in expected.items():
        assert normal_maximum(count) == pytest.approx(value, abs=1e-4)
    assert expected_maximum(8, 0.1) == pytest.approx(1.14236, abs=1e-5)
    assert expected_maximum(8, 0) == expected_maximum(1, 0.5) == 1
