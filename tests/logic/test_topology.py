"""Placement of experts and sharing of cores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.topology import assign_cores, contiguous_placement, have_own_cores


@given(experts=st.integers(1, 70), data=st.data())
def test_every_expert_has_one_home_and_nodes_differ_by_one(experts, data):
    nodes = data.draw(st.integers(1, experts))
    placement = contiguous_placement(experts, nodes)
    held = [placement.experts_of(node) for node in range(nodes)]
    assert sorted(expert for node in held for expert in node) == list(range(experts))
    sizes = [len(node) for node in held]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    for expert in range(experts):
        node, local = placement.home(expert)
        assert held[node][local] == expert


@pytest.mark.parametrize("nodes", [0, 9])
def test_a_node_without_an_expert_is_refused(nodes):
    with pytest.raises(
        ConfigError, match=f"{nodes} expert nodes .* 8 experts .* --ffn-gpus 1 to 8"
    ):
        contiguous_placement(8, nodes)


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
