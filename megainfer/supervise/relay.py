"""Counters and spans: asked for by front ends, given by nodes, passed on by the supervisor."""

from collections.abc import Callable

from megainfer.launch.control import ParentLink
from megainfer.messages.from_child import Spans, Stats
from megainfer.messages.message import Role
from megainfer.messages.to_child import GetSpans, GetStats, KeepSpans
from megainfer.supervise.child import Child
from megainfer.supervise.family import Family

FORWARD_SECONDS = 1.0
"""How long the supervisor waits for the API server to read what a node was asked for."""

Question = GetStats | KeepSpans | GetSpans


class Relay:
    """owner: whom an instance without API servers works for. is_ready: whether a node answers: one
    that still starts expects other words, and would end of these."""

    def __init__(
        self, family: Family, owner: ParentLink | None, is_ready: Callable[[Child], bool]
    ) -> None:
        self._family = family
        self._owner = owner
        self._is_ready = is_ready
        self._tickets: dict[int, tuple[int, list[Stats]]] = {}  # of the owner: asked, answers

    def ask(self, question: Question) -> None:
        """Pass it on to every node that is ready; one that hangs may not hear it, the others do."""
        ready = [child for child in self._family.nodes if self._is_ready(child)]
        if self._owner is not None and isinstance(question, GetStats):
            self._tickets[question.ticket] = (len(ready), [])
        for child in ready:
            child.offer(question)

    def tell(self, answer: Stats | Spans) -> None:
        """To whoever asked, unless that doesn't listen. What a node says unasked is for servers."""
        if self._owner is None:
            patience = 0.0 if isinstance(answer, Stats) else FORWARD_SECONDS
            for server in self._family.of(Role.SERVER):
                server.offer(answer, patience)
        elif isinstance(answer, Spans):
            self._owner.send(answer)
        elif answer.ticket is not None:
            self._collect(self._owner, answer.ticket, answer)

    def _collect(self, owner: ParentLink, ticket: int, stats: Stats) -> None:
        """Pass the nodes' counters on to the owner once all have answered."""
        if ticket not in self._tickets:
            return
        asked, answers = self._tickets[ticket]
        answers.append(stats)
        if len(answers) >= asked:
            del self._tickets[ticket]
            counters = {name: own for answer in answers for name, own in answer.counters.items()}
            owner.send(Stats(ticket, counters))
