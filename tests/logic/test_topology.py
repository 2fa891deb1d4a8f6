"""Placement of experts, membership, and sharing of cores."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.messages.message import encode
from megainfer.messages.supervision import to_child_decoder
from megainfer.messages.to_child import Enter
from megainfer.topology import (
    EMPTY,
    WAYS,
    Membership,
    Owners,
    Placement,
    Table,
    assign_cores,
    contiguous_placement,
    first_membership,
    have_own_cores,
    placement_of,
)

# Expert 1 is on two nodes, and at home in another one of them in each layer.
REPLICATED = placement_of(3, {1: ((0,), (2, 1), (2,)), 4: ((1,), (0, 2), (2,))})


@given(experts=st.integers(1, 70), data=st.data())
def test_every_expert_has_one_home_and_nodes_differ_by_one(experts, data):
    nodes = data.draw(st.integers(1, experts))
    placement = contiguous_placement(experts, nodes, range(3))
    held = [placement.experts_of(node, 2) for node in range(nodes)]
    assert sorted(expert for node in held for expert in node) == list(range(experts))
    sizes = [len(node) for node in held]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    for expert, ((node, slot),) in enumerate(placement.homes(2)):
        assert placement.slots_of(node)[2][slot] == expert


@st.composite
def owners(draw: st.DrawFn, experts: int, nodes: int) -> Owners:
    one = st.lists(st.integers(0, nodes - 1), min_size=1, max_size=nodes, unique=True).map(tuple)
    return tuple(draw(st.lists(one, min_size=experts, max_size=experts)))


@given(
    experts=st.integers(1, 12), nodes=st.integers(1, 4), layers=st.integers(1, 4), data=st.data()
)
def test_homes_are_where_experts_are_held_layer_by_layer(experts, nodes, layers, data):
    given_owners = {layer: data.draw(owners(experts, nodes)) for layer in range(layers)}
    placement = placement_of(nodes, given_owners)
    for layer, table in given_owners.items():
        assert [nodes[0] for nodes in placement.owners(layer)] == [nodes[0] for nodes in table]
        assert [*map(set, placement.owners(layer))] == [*map(set, table)]
        for expert, ((node, slot),) in enumerate(placement.homes(layer)):
            assert node == table[expert][0]
            assert placement.slots_of(node)[layer][slot] == expert


@given(experts=st.integers(1, 12), nodes=st.integers(2, 4), data=st.data())
def test_a_node_leaves_to_replicas_or_orphans_are_named(experts, nodes, data):
    placement = placement_of(nodes, {n: data.draw(owners(experts, nodes)) for n in range(2)})
    gone = data.draw(st.integers(0, nodes - 1))
    alone = {
        layer: tuple(e for e, held in enumerate(placement.owners(layer)) if held == (gone,))
        for layer in range(2)
    }
    assert placement.orphans(gone) == {layer: es for layer, es in alone.items() if es}
    if any(alone.values()):
        with pytest.raises(
            ConfigError, match=rf"only expert node {gone} holds these experts: layer"
        ):
            placement.without(gone)
        return
    left = placement.without(gone)
    for layer in range(2):
        before = {node: placement.slots_of(node)[layer] for node in range(nodes)}
        after = {node: left.slots_of(node)[layer] for node in range(nodes)}
        empty = (EMPTY,) * len(before[gone])
        assert after == {**before, gone: empty}, "whoever stays keeps its local ids"
        for (was,), (now,) in zip(placement.homes(layer), left.homes(layer), strict=True):
            assert now == was or was[0] == gone


@pytest.mark.parametrize(
    ("experts", "ways", "message"),
    [
        (
            ((0, 1), (EMPTY,)),
            ((16, 0), (0,)),
            r"ways of expert 1 of layer 0 are \[0\] on nodes \[0\]",
        ),
        (((0, 1), (1,)), ((16, 9), (8,)), r"expert 1 of layer 0 are \[9, 8\] .* must be 16"),
        (((0, 1), (1,)), ((16, 18), (-2,)), r"expert 1 of layer 0 are \[18, -2\]"),
        (((0, 1), (2,)), ((16, 16), (16,)), r"layer 0 has the experts \[2\], there are 2"),
        (((0, 1), (1,)), ((16, 16), (0, 0)), r"nodes have \[2, 1\] slots of layer 0"),
        (((0, 1, 1), ()), ((16, 8, 8), ()), r"expert 1 of layer 0 is on nodes \[0, 0\]"),
    ],
)
def test_a_table_that_cannot_be_is_refused(experts, ways, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Placement(2, (Table(experts, ways),), {0: 0})


def test_layers_have_as_many_slots_of_a_node() -> None:
    one, other = Table(((0,),), ((WAYS,),)), Table(((0, EMPTY),), ((WAYS, 0),))
    with pytest.raises(ConfigError, match=r"nodes have \[2\] slots of layer 4, of the first \[1\]"):
        Placement(1, (one, other), {1: 0, 4: 1})


SHARED = Placement(2, (Table(((0, 1), (1, EMPTY), (0, 1)), ((4, 2), (6, 0), (12, 8))),), {0: 0})


def test_tokens_go_the_ways_of_their_experts() -> None:
    first, second = SHARED.homes(0)
    assert first == ((0, 0),) * 4 + ((2, 0),) * 12
    assert second == ((0, 1),) * 2 + ((1, 0),) * 6 + ((2, 1),) * 8
    assert SHARED.owners(0) == ((2, 0), (2, 1, 0))
    assert SHARED.survives_any_node


def test_ways_of_who_left_are_dealt_again_in_the_parts_that_are_left() -> None:
    left = SHARED.without(2)
    assert left.tables[0] == Table(((0, 1), (1, EMPTY), (EMPTY, EMPTY)), ((16, 4), (12, 0), (0, 0)))
    assert not left.survives_any_node
    assert Membership(1, (0,), (0, 1, 2), left), "a member may hold nothing yet"


@given(experts=st.integers(2, 12), nodes=st.integers(2, 5), data=st.data())
def test_spares_cover_as_much_as_there_are(experts, nodes, data) -> None:
    nodes = min(nodes, experts)
    most = experts - -(-experts // nodes)
    replicas = data.draw(st.integers(0, most))
    placement = contiguous_placement(experts, nodes, [0], replicas)
    plain = contiguous_placement(experts, nodes, [0])
    assert placement.homes(0) == plain.homes(0), "a spare is sent nothing"
    sizes = [placement.num_slots(node) - plain.num_slots(node) for node in range(nodes)]
    assert sizes == [replicas] * nodes
    covered = [len(owners) > 1 for owners in placement.owners(0)]
    assert sum(covered) >= min(experts, nodes * replicas)
    assert placement.survives_any_node == all(covered)
    if placement.survives_any_node:
        assert all(placement.without(node).owners(0) for node in range(nodes))


def test_more_spares_than_experts_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--expert-replicas 5 are more than the 4 .* of 2 expert"
    ):
        contiguous_placement(8, 2, [0], 5)


def test_equal_layers_are_kept_once() -> None:
    placement = contiguous_placement(256, 8, range(3, 61))
    assert len(placement.tables) == 1
    assert len(encode(Enter(first_membership(8, placement)))) < 2000


def test_a_membership_arrives_as_it_was_sent() -> None:
    sent = Enter(Membership(7, (0, 2), (0, 1, 2), REPLICATED))
    assert to_child_decoder.decode(encode(sent)) == sent
    in_json = msgspec.json.encode(sent.membership)
    assert msgspec.json.decode(in_json, type=Membership) == sent.membership


@pytest.mark.parametrize("nodes", [0, 9])
def test_a_node_without_an_expert_is_refused(nodes):
    with pytest.raises(
        ConfigError, match=f"{nodes} expert nodes .* 8 experts .* --ffn-gpus 1 to 8"
    ):
        contiguous_placement(8, nodes, [0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({0: ((0,), ())}, "expert 1 of layer 0 has no owner"),
        ({0: ((0,), (1,)), 5: ((0,), (2,))}, r"expert 1 of layer 5 is on nodes \[2\], .* of 2"),
        ({0: ((0,), (1, 1))}, r"expert 1 of layer 0 is on nodes \[1, 1\]"),
        ({0: ((0,), (1,)), 1: ((0,),)}, "layer 1 has 1 experts, layer 0 2"),
        ({}, "a placement needs a layer with experts"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(wrong: dict[int, Owners], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        placement_of(2, wrong)


def test_a_layer_that_is_not_placed_is_named() -> None:
    with pytest.raises(ConfigError, match=r"layer 2 has no experts, .* \[1, 4\]"):
        REPLICATED.homes(2)
    with pytest.raises(ConfigError, match="layer 3 has table 1, there are 1"):
        Placement(1, (Table(((0,),), ((16,),)),), {0: 0, 3: 1})


@pytest.mark.parametrize(
    ("attention", "experts", "message"),
    [
        ((), (0, 1, 2), r"\[\] are no attention nodes in ascending order"),
        ((1, 0), (0, 1, 2), r"\[1, 0\] are no attention nodes"),
        ((0,), (0, 0, 1), r"\[0, 0, 1\] are no expert nodes"),
        ((0,), (0, 1), r"experts of layer 1 are on nodes \[0, 1, 2\], members are \[0, 1\]"),
    ],
)
def test_a_membership_that_contradicts_itself_is_refused(attention, experts, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Membership(1, attention, experts, REPLICATED)


def test_who_leaves_raises_the_epoch() -> None:
    everywhere = placement_of(2, {0: ((0, 1), (1, 0))})
    first = first_membership(2, everywhere)
    assert (first.epoch, first.attention, first.experts) == (1, (0, 1), (0, 1))
    second = first.without_attention(0)
    assert (second.epoch, second.attention, second.experts) == (2, (1,), (0, 1))
    third = second.without_expert(1)
    assert (third.epoch, third.attention, third.experts) == (3, (1,), (0,))
    assert third.placement.homes(0) == (((0, 0),), ((0, 1),))
    with pytest.raises(ConfigError, match=r"only expert node 1 holds .* layer 4: \[0\]"):
        Membership(1, (0,), (0, 1, 2), REPLICATED).without_expert(1)


@given(processes=st.integers(1, 20), cores=st.integers(1, 20))
def test_cores_are_shared_evenly_and_none_is_left_over(processes, cores):
    ids = tuple(range(100, 100 + cores))
    assigned = assign_cores(processes, ids)
    assert len(assigned) == processes
    used = [core for one in assigned for core in one.cores]
    threads = [one.threads for one in assigned]
    assert max(threads) - min(threads) <= 1
    if processes <= cores:
        assert sorted(used) == list(ids)
    else:
        assert threads == [1] * processes
        counts = [used.count(core) for core in ids]
        assert max(counts) - min(counts) <= 1


def test_cores_are_ones_own_where_they_suffice() -> None:
    assert have_own_cores(assign_cores(2, (0, 1)))
    assert have_own_cores(assign_cores(2, (0, 1, 2)))
    assert not have_own_cores(assign_cores(3, (0, 1)))
