"""How requests come into an attention node: checked, their grammars compiled, then queued."""

from collections.abc import Callable, Collection, Iterator
from time import monotonic

from megainfer.attention_node.compiling import Compiled, GrammarQueue
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.errors import MegaInferError, RequestError
from megainfer.messages.requests import RequestFailed, Submit, each_of

EXPIRY_SECONDS = 0.05
"""How often those who wait are looked through for requests that have waited for too long."""
EXPIRED = "the request has waited for its turn for as long as it may; try again later"

Emit = Callable[[RequestFailed], None]


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

    def submit(self, submit: Submit) -> None:
        """Queue its sequences; those with a grammar later, and their waiting counts from now."""
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
        self._compiling.forget(request_id)
        self._scheduler.abort(request_id)

    def turn(self) -> None:
        """Queue those whose grammars are compiled, and end those that have waited for too long."""
        for compiled in self._compiling.finished():
            self._queue(compiled)
        if (now := self._clock()) < self._next_expiry:
            return
        self._next_expiry = now + EXPIRY_SECONDS
        for request_id in self._expired(now):
            self._emit(RequestFailed(self._node, request_id, EXPIRED, overloaded=True))

    @property
    def num_compiling(self) -> int:
        """Requests whose grammar isn't compiled yet."""
        return len(self._compiling)

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
