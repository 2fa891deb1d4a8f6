"""Who can serve together, from who is there and who has met whom."""

from megainfer.messages.message import Role
from megainfer.supervise.roster import Node, Roster, Stage, placement_among
from megainfer.topology import Membership, contiguous_placement

A0, A1 = (Role.ATTENTION, 0), (Role.ATTENTION, 1)
E0, E1 = (Role.EXPERT, 0), (Role.EXPERT, 1)
ALL = (A0, A1, E0, E1)
PLACEMENT = contiguous_placement(4, 2, [0])
MEMBERS = Membership(1, (0, 1), (0, 1), PLACEMENT)


def roster_of(*nodes: Node, stage: Stage = Stage.READY) -> Roster:
    roster = Roster()
    for node in nodes:
        roster.forked(node, 0)
        roster.reached(node, stage)
    return roster


def meet_all(roster: Roster) -> None:
    for pair in roster.to_meet():
        roster.met(pair, roster.incarnation((Role.EXPERT, pair[1])))


def test_who_can_be_met_is_asked_once() -> None:
    roster = roster_of(A0, E0, stage=Stage.LOADED)
    assert roster.to_meet() == []
    roster.reached(A0, Stage.OPEN)
    assert roster.to_meet() == []
    roster.reached(E0, Stage.OPEN)
    assert roster.to_meet() == [(0, 0)]
    assert roster.to_meet() == []
    assert roster.not_met() == [(0, 0)]
    roster.met((0, 0), 0)
    assert roster.not_met() == []


def test_all_together_when_all_have_met() -> None:
    roster = roster_of(*ALL)
    pairs = roster.to_meet()
    assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for pair in pairs[:3]:
        roster.met(pair, 0)
    assert roster.together(None, ALL) == ((0,), (0, 1))
    roster.met(pairs[3], 0)
    assert roster.together(None, ALL) == ((0, 1), (0, 1))


def test_who_is_no_candidate_is_left_out() -> None:
    roster = roster_of(*ALL)
    meet_all(roster)
    assert roster.together(MEMBERS, (A1, E0, E1)) == ((1,), (0, 1))


def test_an_expert_node_that_comes_back_is_met_again_by_all_members_first() -> None:
    roster = roster_of(*ALL)
    meet_all(roster)
    roster.died(E1)
    assert roster.together(MEMBERS, ALL) == ((0, 1), (0,))
    roster.forked(E1, 1)
    roster.reached(E1, Stage.READY)
    assert roster.to_meet() == [(0, 1), (1, 1)]
    roster.met((0, 1), 1)
    assert roster.together(MEMBERS, ALL) == ((0, 1), (0,))
    roster.met((1, 1), 1)
    assert roster.together(MEMBERS, ALL) == ((0, 1), (0, 1))


def test_having_met_a_predecessor_counts_for_nothing() -> None:
    roster = roster_of(A0, E0)
    (pair,) = roster.to_meet()
    roster.died(E0)
    roster.forked(E0, 1)
    roster.reached(E0, Stage.READY)
    assert roster.to_meet() == [pair]
    roster.met(pair, 0)  # it was said just before it died
    assert roster.together(None, ALL) == ((), (0,))
    roster.met(pair, 1)
    assert roster.together(None, ALL) == ((0,), (0,))


def test_a_new_attention_node_waits_until_it_has_met_all_expert_nodes() -> None:
    roster = roster_of(A0, E0, E1)
    meet_all(roster)
    members = Membership(1, (0,), (0, 1), PLACEMENT)
    roster.forked(A1, 0)
    roster.reached(A1, Stage.READY)
    assert roster.to_meet() == [(1, 0), (1, 1)]
    roster.met((1, 0), 0)
    assert roster.together(members, ALL) == ((0,), (0, 1))
    roster.met((1, 1), 0)
    assert roster.together(members, ALL) == ((0, 1), (0, 1))


def test_a_pair_that_has_parted_meets_again() -> None:
    roster = roster_of(A0, A1, E0)
    meet_all(roster)
    members = Membership(1, (0, 1), (0,), contiguous_placement(4, 1, [0]))
    roster.parted((1, 0))
    assert roster.together(members, ALL) == ((0, 1), ())
    assert roster.to_meet() == [(1, 0)]
    roster.met((1, 0), 0)
    assert roster.together(members, ALL) == ((0, 1), (0,))


def test_one_that_has_all_roles_meets_nobody() -> None:
    roster = Roster(alone=True)
    roster.forked(A0, 0)
    roster.reached(A0, Stage.OPEN)
    assert roster.to_meet() == []
    assert roster.together(None, (A0,)) == ((), ())
    roster.reached(A0, Stage.READY)
    assert roster.together(None, (A0,)) == ((0,), (0,))


def test_what_is_left_of_a_placement() -> None:
    assert placement_among(PLACEMENT, (0, 1)) == PLACEMENT
    assert placement_among(PLACEMENT, (0,)) is None
    replicated = contiguous_placement(4, 2, [0], replicas=2)
    left = placement_among(replicated, (0,))
    assert left is not None
    assert left.holders == {0}
