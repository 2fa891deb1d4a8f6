"""What became of a node that died, with times: a line in the log for whoever operates it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from megainfer.supervise.child import name_of
from megainfer.supervise.roster import Node

logger = logging.getLogger("megainfer")


@dataclass(slots=True)
class _Story:
    cause: str
    began: float
    steps: list[tuple[str, float]] = field(default_factory=list)


class Recoveries:
    """Those that go on. restarts: of each node since the start."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._stories: dict[Node, _Story] = {}
        self.restarts: dict[Node, int] = {}

    def died(self, node: Node, cause: str) -> None:
        """One that dies once more before it is back goes on with its story."""
        now = self._clock()
        story = self._stories.setdefault(node, _Story(cause, now))
        if story.steps or story.began != now:
            story.steps.append((f"died again ({cause})", now - story.began))
        self.restarts[node] = self.restarts.get(node, 0) + 1

    def step(self, node: Node, what: str) -> None:
        """Something that was reached on the way back."""
        if (story := self._stories.get(node)) is not None:
            story.steps.append((what, self._clock() - story.began))

    def everybody(self, what: str) -> None:
        """Something that happened to all."""
        for node in self._stories:
            self.step(node, what)

    def back(self, node: Node) -> float | None:
        """It serves again: tell the story; seconds since it died, None if it hadn't."""
        story = self._stories.pop(node, None)
        if story is None:
            return None
        seconds = self._clock() - story.began
        steps = "; ".join(f"{what} after {at:.3f} s" for what, at in story.steps)
        logger.info("%s is back after %.3f s. %s; %s", name_of(*node), seconds, story.cause, steps)
        return seconds
