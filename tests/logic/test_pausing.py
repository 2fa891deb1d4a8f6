"""What the supervisor tells attention nodes when generation is to stand still."""

from megainfer.messages.message import Message, Role
from megainfer.messages.pausing import PauseMode, PauseSet, SetPause
from megainfer.supervise.pausing import PAUSE_SECONDS, Pausing
from megainfer.supervise.roster import Node

A0, A1 = (Role.ATTENTION, 0), (Role.ATTENTION, 1)
KEEP = SetPause(7, PauseMode.KEEP)


class Nodes:
    """Attention nodes, and a front end that asks."""

    def __init__(self) -> None:
        self.there: list[Node] = [A0, A1]
        self.sent: list[tuple[Node, Message]] = []
        self.announced: list[PauseSet] = []
        self.answers: list[PauseSet] = []
        self.now = 0.0
        self.pausing = Pausing(
            lambda: self.there,
            lambda node, message: self.sent.append((node, message)),
            self.announced.append,
            lambda: self.now,
        )

    def ask(self, wish: SetPause) -> None:
        self.pausing.begin(wish, self.answers.append)
        self.pausing.advance()

    def say(self, node: Node, ticket: int, paused: bool = True) -> None:
        self.pausing.hear(node, PauseSet(ticket, paused))
        self.pausing.advance()


def test_it_is_so_when_all_are_so() -> None:
    nodes = Nodes()
    nodes.ask(KEEP)
    assert nodes.sent == [(A0, KEEP), (A1, KEEP)]
    nodes.say(A1, 7)
    nodes.say(A0, 6)  # of something earlier
    assert nodes.answers == []
    nodes.say(A0, 7)
    assert nodes.answers == [PauseSet(7, True)]
    assert nodes.announced == [PauseSet(None, True)]
    nodes.ask(SetPause(8, None))
    nodes.say(A0, 8, False)
    nodes.say(A1, 8, False)
    assert nodes.answers[1:] == [PauseSet(8, False)]
    assert not nodes.pausing.paused


def test_who_dies_is_not_waited_for_and_who_comes_is_told() -> None:
    nodes = Nodes()
    nodes.ask(KEEP)
    nodes.say(A0, 7)
    nodes.there = [A0]
    nodes.pausing.advance()
    assert nodes.answers == [PauseSet(7, True)]
    nodes.sent.clear()
    nodes.pausing.ready(A1)
    assert nodes.sent == [(A1, KEEP)]
    nodes.ask(SetPause(8, None))
    nodes.say(A0, 8)
    nodes.sent.clear()
    nodes.pausing.ready(A1)
    assert nodes.sent == []


def test_an_end_takes_the_place_of_a_pause_that_is_coming() -> None:
    nodes = Nodes()
    nodes.ask(SetPause(1, PauseMode.WAIT))
    nodes.ask(SetPause(2, PauseMode.ABORT))
    assert nodes.answers == [
        PauseSet(2, True, "another pause is coming about; end it or wait for it")
    ]
    nodes.ask(SetPause(3, None))
    assert nodes.answers[1] == PauseSet(1, True, "the pause was ended before it came about")
    nodes.say(A0, 1)
    nodes.say(A1, 1)
    assert len(nodes.answers) == 2
    nodes.say(A0, 3)
    nodes.say(A1, 3)
    assert nodes.answers[2] == PauseSet(3, False)
    assert nodes.announced[-1] == PauseSet(None, False)


def test_waiting_has_an_end() -> None:
    nodes = Nodes()
    nodes.ask(SetPause(1, PauseMode.WAIT))
    nodes.now = PAUSE_SECONDS + 1
    nodes.pausing.advance()
    assert nodes.answers == [PauseSet(1, True, "it has not come about within 3600 s")]
