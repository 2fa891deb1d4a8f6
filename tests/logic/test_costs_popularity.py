"""Who is chosen, against the sum over all sets that a token can choose."""

from itertools import combinations, product
from math import comb, prod, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.models.spec import ExpertGroups, GroupScore
from megainfer.planner.costs import Popularity, expected_maximum
from megainfer.planner.costs.nodes import _held, nodes_of
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
    held = data.draw(st.sets(st.sampled_from(range(popularity.experts)), min_size=1))
    # With equal weights any as many will do.
    own = range(len(held)) if popularity.is_uniform else held
    node = _held(popularity, tuple(held))
    counts = [(len(set(own) & set(chosen)), p) for chosen, p in sets(popularity)]
    assert node.sent == pytest.approx(sum(p for n, p in counts if n))
    mean = sum(n * p for n, p in counts)
    assert node.choices == pytest.approx(mean)
    spread = sqrt(sum(p * (n - mean) ** 2 for n, p in counts))
    assert node.spread == pytest.approx(spread, abs=1e-6)


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
    node = nodes_of(Popularity.uniform(16, 2), 8).busiest
    mean = 100 * node.choices
    assert mean < node.most_choices(100, 8) < 1.5 * mean
    assert node.most_choices(100, 1) == mean
    assert node.most_choices(1, 8) <= 2


def test_the_largest_of_normal_variables():
    """Of 2 and 3: 1 / sqrt(pi) and 3 / (2 sqrt(pi)); of 8 and 64 as tables of order statistics."""
    expected = {1: 0.0, 2: 0.56419, 3: 0.84628, 8: 1.42360, 64: 2.34373}
    for count, value in expected.items():
        assert normal_maximum(count) == pytest.approx(value, abs=1e-4)
    assert expected_maximum(8, 0.1) == pytest.approx(1.14236, abs=1e-5)
    assert expected_maximum(8, 0) == expected_maximum(1, 0.5) == 1
