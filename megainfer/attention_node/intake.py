"""How requests come into an attention node: checked, their grammars compiled, then queued; or kept
outside, while generation pauses."""

from collections.abc import Callable, Collection, Iterator
from time import monotonic

from megainfer.attention_node.compiling import Compiled, GrammarQueue
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.attention_node.scheduling.sequence import Status
from megainfer.errors import MegaInferError, RequestError
from megainfer.messages.pausing import PauseMode
from megainfer.messages.requests import (
    FinishReason,
    RequestFailed,
    Submit,
    TokenEvent,
    Tokens,
    each_of,
)

EXPIRY_SECONDS = 0.05
"""How often those who wait are looked through for requests that have waited for too long."""
EXPIRED = "the request has waited for its turn for as long as it may; try again later"

Emit = Callable[[RequestFailed | Tokens], None]


class Intake:
    """Before the scheduler of one node. A bad request is answered through `emit`, never raised.

    compiling: where grammars become matchers.
    """

    def __init__(
        self,
        node: int,
        vocab_size: int,
        scheduler: Scheduler,
        compiling: GrammarQueue,
        emit: Emit,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._node = node
        self._vocab_size = vocab_size
        self._scheduler = scheduler
        self._compiling = compiling
        self._emit = emit
        self._clock = clock
        self._next_expiry = 0.0
        self._pause: PauseMode | None = None
        self._outside: dict[str, Submit] = {}  # that came during the pause

    def pause(self, mode: PauseMode | None) -> None:
        """From now on new requests stay outside, and those inside do as the mode says; None: all go
        on."""
        self._pause = mode
        if mode is None:
            outside, self._outside = self._outside, {}
            for submit in outside.values():
                self.submit(submit)

    @property
    def is_frozen(self) -> bool:
        """Whether no step is to be begun."""
        return self._pause is PauseMode.KEEP

    @property
    def is_at_rest(self) -> bool:
        """Whether the pause has come about."""
        if self._scheduler.steps_in_flight:
            return False
        return self.is_frozen or not (self.num_compiling or list(self._scheduler.live))

    def submit(self, submit: Submit) -> None:
        """Queue its sequences; those with a grammar later, and their waiting counts from now. In a
        pause they wait for its end first."""
        if self._pause is not None:
            self._outside.update((own.request_id, own) for own in each_of(submit))
            return
        try:
            self._check_vocabulary(submit)
        except RequestError as error:
            for sequence in each_of(submit):
                self._refuse(sequence.request_id, error)
            return
        for sequence in each_of(submit):
            self._begin(sequence)

    def _begin(self, submit: Submit) -> None:
        try:
            if submit.grammar is None:
                self._scheduler.add(submit)
            else:
                self._compiling.start(submit, self._clock())
        except RequestError as error:
            self._refuse(submit.request_id, error)

    def abort(self, request_id: str) -> None:
        """See `Scheduler.abort`."""
        self._outside.pop(request_id, None)
        self._compiling.forget(request_id)
        self._scheduler.abort(request_id)

    def turn(self) -> None:
        """Queue those whose grammars are compiled, and end those that have waited for too long."""
        for compiled in self._compiling.finished():
            self._queue(compiled)
        if self._pause is PauseMode.ABORT:
            self._end_all()
        if (now := self._clock()) < self._next_expiry:
            return
        self._next_expiry = now + EXPIRY_SECONDS
        for request_id in self._expired(now):
            self._emit(RequestFailed(self._node, request_id, EXPIRED, overloaded=True))

    @property
    def num_compiling(self) -> int:
        """Requests whose grammar isn't compiled yet."""
        return len(self._compiling)

    @property
    def num_outside(self) -> int:
        """Requests that wait for the end of a pause."""
        return len(self._outside)

    def _end_all(self) -> None:
        """Those in steps end with these, of which the scheduler tells."""
        ids = [s.request_id for s in self._scheduler.live if s.status is not Status.ABORTING]
        ended = [request_id for request_id in ids if self._scheduler.abort(request_id)]
        events = [TokenEvent(request_id, [], FinishReason.ABORT) for request_id in ended]
        if events:
            self._emit(Tokens(self._node, events))

    def _queue(self, compiled: Compiled) -> None:
        try:
            if isinstance(compiled.outcome, MegaInferError):
                raise compiled.outcome
            self._scheduler.add(compiled.submit, compiled.outcome, compiled.arrived_at)
        except MegaInferError as error:
            self._refuse(compiled.submit.request_id, error)

    def _expired(self, now: float) -> Iterator[str]:
        yield from self._compiling.expire(now)
        yield from self._scheduler.expire()

    def _refuse(self, request_id: str, error: MegaInferError) -> None:
        of_client = isinstance(error, RequestError)
        self._emit(RequestFailed(self._node, request_id, str(error), of_client))

    def _check_vocabulary(self, submit: Submit) -> None:
        """Every token id is used as a place in memory. End tokens aren't, unless they are met."""
        self._check_known("prompt", submit.prompt)
        self._check_known("output", submit.output)
        self._check_known("logit_bias", submit.logit_bias)
        self._check_known("allowed_token_ids", submit.allowed_token_ids)
        for word in submit.bad_words:
            self._check_known("bad_words", word)

    def _check_known(self, name: str, token_ids: Collection[int]) -> None:
        size = self._vocab_size
        if not token_ids or (min(token_ids) >= 0 and max(token_ids) < size):
            return
        wrong = next(token for token in token_ids if not 0 <= token < size)
        message = f"{name}: token id {wrong} is not in the vocabulary of {size}"
        raise RequestError(message, name)
