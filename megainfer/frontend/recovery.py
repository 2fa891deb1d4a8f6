"""How long the front end waits for what lacks, and what recoveries cost."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic

from megainfer.frontend.attendance import Lack
from megainfer.instruments.distribution import Distribution
from megainfer.messages.message import Role

log = logging.getLogger(__name__)

RECOVERY_SECONDS = 60.0
"""How long requests wait for lost nodes, unless told."""
SECONDS_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0),
    *(20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 240.0),
)


class Recovery:
    """`update` after whatever may have changed who serves.

    timeout: seconds for which requests wait. give_up: called when that is over.
    seconds: from a node's loss until requests were served without it or by it again, by role.
    replayed, recomputed: requests that went on at another node, by its number, and tokens (of
    prompts and answers) that it was given to compute of those that had been computed before.
    """

    def __init__(
        self,
        timeout: float,
        give_up: Callable[[], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.timeout = timeout
        self.clock = clock
        self.seconds = {
            role: Distribution(SECONDS_BOUNDS) for role in (Role.ATTENTION, Role.EXPERT)
        }
        self.replayed: Counter[int] = Counter()
        self.recomputed: Counter[int] = Counter()
        self.gave_up = False
        self._begun = False
        self._give_up = give_up
        self._timer: asyncio.TimerHandle | None = None
        self._replaced: list[Lack] = []
        self._before = (0, 0)

    def begin(self) -> None:
        """All nodes have been there: from now on it counts when they aren't."""
        self._begun = True

    def count_replay(self, node: int, tokens: int) -> None:
        """A request goes on at this node, to compute so many tokens again."""
        self.replayed[node] += 1
        self.recomputed[node] += tokens

    def lost(self, lack: Lack) -> None:
        """Of a death the supervisor tells."""
        if not lack.died:
            log.warning("%s", lack)

    def entered(self, ended: Sequence[Lack]) -> None:
        """A membership can do without these, or has them again."""
        self._replaced += ended

    def update(self, serves: bool, all_sent: bool = True) -> None:
        """serves: whether what is sent to nodes is computed now. all_sent: nobody waits who could
        be sent to one; what a recovery cost is known only then."""
        if serves:
            self._stop_timer()
            self.gave_up = False
            if all_sent:
                self._tell()
        elif self._begun and self._timer is None and not self.gave_up:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.timeout, self._time_out)

    def close(self) -> None:
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer, self.gave_up = None, True
        self._give_up()

    def _tell(self) -> None:
        if not self._replaced:
            return
        now, ended = self.clock(), self._replaced
        self._replaced = []
        for lack in ended:
            self.seconds[lack.role].observe(now - lack.since)
        replayed, recomputed = self.replayed.total(), self.recomputed.total()
        log.info(
            "requests are served again %.2f s after the first of this: %s; %d were replayed, with "
            "%d tokens to compute again",
            now - min(lack.since for lack in ended),
            "; ".join(map(str, ended)),
            replayed - self._before[0],
            recomputed - self._before[1],
        )
        self._before = (replayed, recomputed)
