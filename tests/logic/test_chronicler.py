"""What is told of an instance's nodes: deaths, returns, those who join and leave, balancing."""

from dataclasses import replace

from megainfer.messages.message import Role
from megainfer.messages.to_child import Away
from megainfer.supervise.chronicler import KEPT, Chronicler
from megainfer.topology import Membership, Placement, first_membership, placement_of

A0, A1, E0, E1, E2 = (
    *((Role.ATTENTION, 0), (Role.ATTENTION, 1)),
    *((Role.EXPERT, 0), (Role.EXPERT, 1), (Role.EXPERT, 2)),
)
TWICE = placement_of(2, {3: ((0, 1), (1, 0))})
APART = placement_of(3, {3: ((0,), (1,))})


class Told:
    """A chronicler whose clock stands at `now`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.chronicler = Chronicler(lambda: self.now)

    def texts(self) -> list[str]:
        return [event.text for event in self.chronicler.told().events]

    def enter(self, before: Membership, **changes: object) -> Membership:
        after = replace(before, epoch=before.epoch + 1, **changes)  # type: ignore[arg-type]
        self.chronicler.entered(after)
        return after


def begun(placement: Placement, attention: int = 2) -> tuple[Told, Membership]:
    told = Told()
    first = first_membership(attention, placement)
    told.chronicler.entered(first)
    return told, first


def test_a_death_is_told_with_what_the_others_do_and_the_return() -> None:
    told, first = begun(TWICE)
    told.now = 200.0
    told.chronicler.lost(E1, "killed by SIGKILL")
    told.now = 200.25
    second = told.enter(first, experts=(0,), placement=TWICE.without(1))
    assert told.chronicler.told().away == {"expert node 1": Away(200.0)}
    told.chronicler.forked(E1)
    assert told.chronicler.told().away == {"expert node 1": Away(200.0, returning=True)}
    told.now = 203.5
    told.enter(second, experts=(0, 1), placement=TWICE)
    chronicle = told.chronicler.told()
    assert [(event.at, event.text) for event in chronicle.events] == [
        (100.0, "2 attention and 2 expert nodes serve"),
        (200.0, "expert node 1 died: killed by SIGKILL"),
        (200.25, "the others go on without expert node 1, 0.2 s after its loss"),
        (203.5, "expert node 1 is back after 3.5 s"),
    ]
    assert chronicle.away == {}
    assert chronicle.restarts == {"expert node 1": 1}


def test_one_that_dies_again_on_its_way_back_was_lost_when_it_first_was() -> None:
    told, first = begun(TWICE)
    told.chronicler.lost(A0, "hung: it has not shown any life for 0.9 s")
    told.now = 101.0
    told.chronicler.forked(A0)
    told.chronicler.lost(A0, "exited with status 3")
    assert told.chronicler.told().away == {"attention node 0": Away(100.0)}
    told.now = 104.0
    told.enter(first)
    assert told.texts()[1:] == [
        "attention node 0 hung and was killed",
        "attention node 0 died again: exited with status 3",
        "attention node 0 is back after 4.0 s",
    ]
    assert told.chronicler.told().restarts == {"attention node 0": 2}


def test_what_a_node_said_of_its_death_is_for_the_log() -> None:
    told, _ = begun(TWICE)
    told.chronicler.lost(E0, "/secret/model.safetensors can't be read")
    assert told.texts()[-1] == "expert node 0 died"


def test_who_joins_and_leaves_is_named_with_what_moved() -> None:
    told, first = begun(APART, attention=1)
    told.now = 101.0
    wider = placement_of(3, {3: ((0,), (2,))})
    second = told.enter(first, attention=(0, 1), experts=(0, 1, 2), placement=wider)
    assert told.texts()[1:] == [
        "attention node 1 joined: 2 attention and 3 expert nodes serve",
        "1 expert moved, over all layers",
    ]
    told.enter(second, experts=(0, 2))
    told.chronicler.left(E1)
    assert told.texts()[3:] == ["expert node 1 has left"]


def test_balancing_is_told_apart_from_nothing_new() -> None:
    told, first = begun(TWICE)
    second = told.enter(first)
    assert len(told.texts()) == 1
    swapped = placement_of(2, {3: ((1, 0), (1, 0))})
    third = told.enter(second, placement=swapped)
    assert told.texts()[1:] == ["balanced: tokens are dealt anew among replicas"]
    fourth = told.enter(third, placement=placement_of(2, {3: ((1,), (0,))}))
    told.enter(fourth, placement=placement_of(2, {3: ((1, 0), (0, 1))}))
    assert told.texts()[3:] == ["balanced: 2 experts moved, over all layers"]


def test_an_api_server_that_died_is_back_when_it_answers() -> None:
    told, _ = begun(TWICE)
    told.chronicler.lost((Role.SERVER, 1), "killed by SIGKILL")
    told.now += 2.0
    told.chronicler.back((Role.SERVER, 1))
    told.chronicler.back((Role.SERVER, 0))
    assert told.texts()[1:] == [
        "API server 1 died: killed by SIGKILL",
        "API server 1 is back after 2.0 s",
    ]


def test_it_says_when_there_is_news_and_keeps_the_latest() -> None:
    told, _ = begun(TWICE)
    assert told.chronicler.changed
    told.chronicler.told()
    assert told.chronicler.changed  # it was told to one alone
    told.chronicler.changed = False
    told.chronicler.forked(E0)  # its first process
    told.chronicler.back(E0)
    assert not told.chronicler.changed
    for _ in range(KEPT):
        told.chronicler.lost(E0, "killed by SIGKILL")
    assert told.chronicler.changed
    assert len(told.texts()) == KEPT
    assert told.texts()[0] == "expert node 0 died: killed by SIGKILL"
