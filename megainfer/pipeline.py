"""The ping-pong pipeline: whose turn it is on an attention node.

`PingPong` is the order of work as a pure function of events: no clock, no tensor, no process. What
that order costs is in `planner.formulas`; docs/pipeline.md has the reasons.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from megainfer.errors import ProtocolError

SAMPLER = -1
"""Whom a step awaits after its last layer: what finds its tokens, which takes time on a device."""


@dataclass
class _Passage:
    """A step on its way through the layers in one micro-batch."""

    step: int
    depends_on: frozenset[int]
    turn: int  # of its start or its latest dispatch; lower is older
    next_layer: int = 0  # the attention halves of all layers below have run
    awaiting: set[int] = field(default_factory=set)  # expert nodes, or SAMPLER, yet to reply
    is_draining: bool = False  # abandoned, but what it sent is still to be answered

    def __str__(self) -> str:
        if SAMPLER in self.awaiting:
            return "awaiting its tokens"
        if self.awaiting:
            nodes = ", ".join(map(str, sorted(self.awaiting)))
            return f"awaiting layer {self.next_layer - 1} from expert nodes {nodes}"
        return f"about to run layer {self.next_layer}"


class PingPong:
    """The micro-batches of one attention node, and which of them runs next.

    The node's loop is: ask `next()`; combine the replies of that micro-batch, run its attention
    half up to the next layer with experts, dispatch; report `dispatched()`, or `sampling()` after
    the last layer, and once it is ready again `finished()`.

    ```
    idle ──start──▶ ready ──dispatched, sampling──▶ awaiting ──abandoned──▶ draining
      ▲              │ ▲                               │                       │
      ├───finished───┘ └──────all replied, sampled─────┘                       │
      └────────────────────────────all replied, sampled────────────────────────┘
    ```

    A step may depend on steps with lower numbers, as the chunks of one prompt do: it runs the
    attention half of a layer only after they have run theirs, and it finishes after them.
    """

    def __init__(self, num_micro_batches: int, num_layers: int) -> None:
        self.num_micro_batches = num_micro_batches
        self.num_layers = num_layers
        self._passages: dict[int, _Passage] = {}
        self._turns = count(1)
        self.awaiting_sampler: set[int] = set()  # micro-batches, draining ones too

    def start(self, micro_batch: int, step: int, depends_on: Iterable[int] = ()) -> None:
        """An idle micro-batch begins a step; `depends_on` are step numbers. Those no longer in
        flight have finished; one that was abandoned took its dependents along."""
        dependencies = frozenset(depends_on)
        assert 0 <= micro_batch < self.num_micro_batches, f"no micro-batch {micro_batch}"
        assert micro_batch not in self._passages, f"micro-batch {micro_batch} is not idle"
        assert all(f.step != step for f in self._passages.values()), f"step {step} is in flight"
        assert all(d < step for d in dependencies), f"step {step} depends on {sorted(dependencies)}"
        self._passages[micro_batch] = _Passage(step, dependencies, next(self._turns))

    def next(self) -> int | None:
        """The micro-batch to run: has all its replies, may go before its dependents, oldest."""
        oldest, turn = None, 0
        for micro_batch, passage in self._passages.items():
            if (oldest is None or passage.turn < turn) and self._may_run(passage):
                oldest, turn = micro_batch, passage.turn
        return oldest

    def dispatched(self, micro_batch: int, layer: int, awaiting: Iterable[int]) -> None:
        """The attention half up to `layer` has run; these expert nodes will reply. With none of
        them (no token chose an expert, or all experts are here) it is ready again."""
        passage = self._running(micro_batch)
        assert passage.next_layer <= layer < self.num_layers, (
            f"micro-batch {micro_batch} dispatched layer {layer}, "
            f"not one of {passage.next_layer}..{self.num_layers - 1}"
        )
        self._await(passage, layer, awaiting)

    def replied(self, micro_batch: int, layer: int, expert_node: int) -> bool:
        """A reply came in; whether its step was abandoned. ProtocolError if nobody waits for it."""
        passage = self._passages.get(micro_batch)
        expected = passage and passage.next_layer - 1 == layer and expert_node in passage.awaiting
        if not passage or not expected:
            raise ProtocolError(
                f"unexpected reply of expert node {expert_node} for layer {layer} of micro-batch "
                f"{micro_batch}, which is {passage or 'idle'}"
            )
        passage.awaiting.remove(expert_node)
        if passage.is_draining:
            self._leave_if_drained(micro_batch)
        return passage.is_draining

    def sampling(self, micro_batch: int) -> None:
        """All layers have run, and the tokens are being found."""
        passage = self._running(micro_batch)
        assert passage.next_layer <= self.num_layers, f"micro-batch {micro_batch} has its tokens"
        # As if the head were one more layer, so that those that depend on it may run theirs.
        self._await(passage, self.num_layers, (SAMPLER,))
        self.awaiting_sampler.add(micro_batch)

    def sampled(self, micro_batch: int) -> bool:
        """The tokens have been found; whether the step may finish at once."""
        passage = self._passages[micro_batch]
        assert SAMPLER in passage.awaiting, f"no tokens are awaited in micro-batch {micro_batch}"
        self.awaiting_sampler.remove(micro_batch)
        passage.awaiting.remove(SAMPLER)
        self._leave_if_drained(micro_batch)
        return not passage.is_draining and self._may_run(passage)

    def finished(self, micro_batch: int) -> None:
        """The step has its tokens; the micro-batch is idle."""
        self._running(micro_batch)
        del self._passages[micro_batch]

    def abandoned(self, micro_batch: int) -> tuple[int, ...]:
        """End the step of `micro_batch` unfinished, and with it all that depend on it.
        Returns the micro-batches that this took a step from, by step number: `micro_batch` first.
        Those that await nobody are idle, the others drain. No dependent has finished before it.
        """
        assert not self.is_draining(micro_batch), f"micro-batch {micro_batch} was abandoned before"
        ended = [micro_batch]
        steps = {self._passages[micro_batch].step}
        # Dependencies have lower numbers, so one pass in that order finds the indirect ones too.
        for other, passage in sorted(self._passages.items(), key=lambda item: item[1].step):
            if passage.depends_on & steps and not passage.is_draining:
                steps.add(passage.step)
                ended.append(other)
        for other in ended:
            self._passages[other].is_draining = True
            self._leave_if_drained(other)
        return tuple(ended)

    def all_abandoned(self) -> tuple[int, ...]:
        """End every step unfinished; expert nodes owe no replies any more, even abandoned ones'.
        Returns the micro-batches that this took a step from, by step number."""
        by_step = sorted(self._passages.items(), key=lambda item: item[1].step)
        ended = tuple(mb for mb, passage in by_step if not passage.is_draining)
        for micro_batch, passage in by_step:
            passage.is_draining = True
            passage.awaiting &= {SAMPLER}
            self._leave_if_drained(micro_batch)
        return ended

    def idle(self) -> tuple[int, ...]:
        """The micro-batches that may start a step."""
        if len(self._passages) == self.num_micro_batches:
            return ()
        return tuple([mb for mb in range(self.num_micro_batches) if mb not in self._passages])

    def is_draining(self, micro_batch: int) -> bool:
        """Its step was abandoned, but somebody is still to reply: only then it is idle."""
        passage = self._passages.get(micro_batch)
        return passage is not None and passage.is_draining

    def awaiting(self, micro_batch: int) -> frozenset[int]:
        """The expert nodes whose replies this micro-batch still needs, or SAMPLER."""
        passage = self._passages.get(micro_batch)
        return frozenset(passage.awaiting) if passage else frozenset()

    def next_layer(self, micro_batch: int) -> int:
        """The first layer whose attention half the step of this micro-batch has not run."""
        return self._passages[micro_batch].next_layer

    def _may_run(self, passage: _Passage) -> bool:
        if passage.awaiting or not passage.depends_on:
            return not passage.awaiting
        # All steps visit the same layers, so a dependency that is further on has run the next one.
        return not any(
            other.next_layer <= passage.next_layer
            for other in self._passages.values()
            if other.step in passage.depends_on
        )

    def _await(self, passage: _Passage, layer: int, peers: Iterable[int]) -> None:
        passage.next_layer = layer + 1
        passage.awaiting = set(peers)
        passage.turn = next(self._turns)

    def _leave_if_drained(self, micro_batch: int) -> None:
        passage = self._passages[micro_batch]
        if passage.is_draining and not passage.awaiting:
            del self._passages[micro_batch]

    def _running(self, micro_batch: int) -> _Passage:
        passage = self._passages.get(micro_batch)
        assert passage is not None, f"micro-batch {micro_batch} is idle"
        assert self._may_run(passage), f"micro-batch {micro_batch} had no turn, it is {passage}"
        return passage
