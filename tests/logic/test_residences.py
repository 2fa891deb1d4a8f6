"""To which host a node goes whose own stays away."""

import logging
from pathlib import Path

import pytest

from megainfer.config import EngineConfig
from megainfer.hosts.residences import Removals, Residences
from megainfer.launch.hosts.places import Host
from megainfer.launch.hosts.spread import Site, make_spread_plan, needs_of
from megainfer.launch.machine import Machine
from megainfer.launch.plan import Plan
from megainfer.messages.message import Role
from tests.support.checkpoints import write_config

ATTENTION, FIRST, SECOND = (Role.ATTENTION, 0), (Role.EXPERT, 0), (Role.EXPERT, 1)
NODES = [ATTENTION, FIRST, SECOND]
WISH = {ATTENTION: "left", FIRST: "middle", SECOND: "right"}
GIB = 2**30


def host(name: str, cores: int = 4, memory: int = 8 * GIB) -> Host:
    return Host(name, "10.0.0.2", Machine(tuple(range(cores)), memory, memory, False))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    site = Site((host("left"), host("middle"), host("right")), WISH)
    folder = write_config("mixtral", "gqa", tmp_path)
    return make_spread_plan(EngineConfig(ffn_gpus=2), folder, site)


@pytest.fixture
def residences(plan: Plan) -> Residences:
    assert plan.places is not None
    return Residences(plan.places)


def test_it_goes_where_it_has_the_most_cores(plan: Plan, residences: Residences) -> None:
    hosts = [host("left", cores=7), host("middle", cores=8)]
    assert list(Removals(plan, residences).moved([SECOND], NODES, hosts)) == [(SECOND, "middle")]
    assert [residences.of(*node) for node in NODES] == ["left", "middle", "middle"]


def test_several_share_what_there_is(plan: Plan, residences: Residences) -> None:
    """The host of two others is gone: each of both that are left takes one."""
    residences.move(FIRST, host("right"))
    hosts = [host("left", cores=8), host("middle", cores=5)]
    moved = dict(Removals(plan, residences).moved([FIRST, SECOND], NODES, hosts))
    assert moved == {FIRST: "middle", SECOND: "left"}


def test_a_host_without_room_takes_none(
    plan: Plan, residences: Residences, caplog: pytest.LogCaptureFixture
) -> None:
    """And that is said once."""
    both = needs_of(plan, [FIRST, SECOND])
    alone = needs_of(plan, [SECOND])
    assert alone < both < 2 * GIB
    removals = Removals(plan, residences)
    small = [host("middle", memory=both - 1)]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert list(removals.moved([SECOND], NODES, small)) == []
    (said,) = caplog.messages
    assert "expert node 1 needs; it waits for right" in said
    assert residences.of(*SECOND) == "right"
    fits = [host("middle", memory=both)]
    assert list(removals.moved([SECOND], NODES, fits)) == [(SECOND, "middle")]


def test_one_that_joined_later_needs_as_much_as_the_largest(plan: Plan) -> None:
    assert needs_of(plan, [(Role.EXPERT, 7)]) == max(needs_of(plan, [n]) for n in (FIRST, SECOND))


def test_a_node_whose_ranks_are_on_two_hosts_goes_as_a_whole(tmp_path: Path) -> None:
    wish = {ATTENTION: "left", FIRST: "left", (*FIRST, 1): "right"}
    site = Site((host("left"), host("right"), host("idle")), wish)
    folder = write_config("mixtral", "gqa", tmp_path)
    plan = make_spread_plan(EngineConfig(ffn_tp=2), folder, site)
    assert plan.places is not None
    residences = Residences(plan.places)
    assert residences.of_ranks(*FIRST, 2) == ("left", "right")
    hosts = [host("left"), host("idle", cores=8)]
    moved = list(Removals(plan, residences).moved([FIRST], [ATTENTION, FIRST], hosts))
    assert moved == [(FIRST, "idle")]
    assert residences.of_ranks(*FIRST, 2) == ("idle", "idle")
