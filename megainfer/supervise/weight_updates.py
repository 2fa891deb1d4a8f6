"""Other weights, as a front end asks for them: brought in by all nodes or by none."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from megainfer.checkpoint.vault import WeightVault
from megainfer.errors import ConfigError, RequestError
from megainfer.launch.new_weights import check_replaceable
from megainfer.launch.plan import Plan
from megainfer.messages.from_child import UpdateWeights
from megainfer.messages.to_child import WeightsUpdated
from megainfer.messages.weights import WeightFiles
from megainfer.supervise.assembly import Assembly
from megainfer.topology import WeightVersion

logger = logging.getLogger("megainfer")

Answer = Callable[[WeightsUpdated], None]
UPDATE_SECONDS = 600.0
"""How long an update may take, waiting for lost nodes and other changes included."""


@dataclass(slots=True)
class _Update:
    """begun: nodes load them."""

    ticket: int
    weights: WeightFiles
    answer: Answer
    began: float
    begun: bool = False


class WeightUpdates:
    """One at a time. First every node that is to serve does so; then all load their own of the new
    weights, while they serve with the old ones; then the next membership has the new ones. Until
    that is decided a node's death ends the update; from then on who comes back loads the new ones.

    is_free: whether no other change of nodes is under way. The supervisor asks for progress after
    every turn.
    """

    def __init__(
        self,
        plan: Plan,
        assembly: Assembly,
        vault: WeightVault,
        is_free: Callable[[], bool],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._plan = plan
        self._assembly = assembly
        self._vault = vault
        self._is_free = is_free
        self._clock = clock
        self._updates = 0
        self._current: _Update | None = None

    def begin(self, wish: UpdateWeights, answer: Answer) -> None:
        """Do it; `answer` is told when it is done, or at once why it can't be."""
        began = self._clock()
        try:
            if self._current is not None:
                raise RequestError("other weights are on their way; try again after them")
            if not self._assembly.started:
                raise RequestError("the instance is still starting; try again when it serves")
            check_replaceable(self._plan)
            weights = self._take(wish)
        except (RequestError, ConfigError) as error:
            answer(self._told(wish.ticket, began, str(error)))
        else:
            self._current = _Update(wish.ticket, weights, answer, began)

    def advance(self) -> None:
        """See how far it is."""
        update = self._current
        if update is None:
            return
        if not update.begun:
            self._try_to_begin(update)
        elif self._assembly.weights.version == update.weights.version:
            if self._assembly.in_force:
                self._end(update, None)
        elif not self._assembly.renewing:
            self._end(update, self._assembly.refusal or "another change took their place")
        elif self._is_late(update):
            self._assembly.keep_weights(f"they were not loaded within {UPDATE_SECONDS:g} s")

    def _take(self, wish: UpdateWeights) -> WeightFiles:
        number = self._updates + 1
        name = str(number) if wish.version is None else wish.version
        weights = self._vault.take(WeightVersion(number, name), wish.files, wish.quantization)
        self._updates = number
        return weights

    def _try_to_begin(self, update: _Update) -> None:
        if self._assembly.complete and self._is_free():
            update.begun = True
            self._assembly.renew(update.weights)
        elif self._is_late(update):
            self._end(update, f"not all nodes served within {UPDATE_SECONDS:g} s")

    def _is_late(self, update: _Update) -> bool:
        return self._clock() - update.began > UPDATE_SECONDS

    def _end(self, update: _Update, error: str | None) -> None:
        self._current = None
        self._vault.keep({self._assembly.weights.version.number})
        told = self._told(update.ticket, update.began, error)
        if error is None:
            logger.info("weights %r are in force, after %.2f s", told.version, told.seconds)
        update.answer(told)

    def _told(self, ticket: int, began: float, error: str | None) -> WeightsUpdated:
        name = self._assembly.weights.version.name
        return WeightsUpdated(ticket, name, self._clock() - began, error)
