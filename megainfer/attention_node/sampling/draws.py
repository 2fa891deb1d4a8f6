"""What has been drawn for a batch, while it is being found and once it is there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megainfer.attention_node.sampling.logprobs import PendingLogprobs
from megainfer.attention_node.sampling.row_errors import NoSuchToken, RowError
from megainfer.device import Readback
from megainfer.messages.requests import TokenLogprobs


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """One token and (where asked for) log-probabilities a row, in the order of the rows; those of
    rows that an error names mean nothing."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    errors: tuple[RowError, ...]


class Check(NamedTuple):
    """Whether rows, counted in the batch, can be sampled from: bool [R]; the error where not."""

    rows: Sequence[int]
    passed: Readback
    error: Callable[[tuple[int, ...]], RowError]

    def failure(self) -> RowError | None:
        passed = self.passed.take()
        if bool(passed.all()):
            return None
        return self.error(tuple(self.rows[i] for i in (~passed).nonzero().flatten().tolist()))


class Draws:
    """A batch's tokens, int64 [S], which are being found; vocabulary: those that there are."""

    def __init__(
        self,
        tokens: Readback,
        checks: Sequence[Check],
        logprobs: PendingLogprobs | None,
        vocabulary: int,
    ) -> None:
        self._tokens = tokens
        self._checks = checks
        self._logprobs = logprobs
        self._vocabulary = vocabulary

    def done(self) -> bool:
        """Whether `take` would return at once; never blocks."""
        return (
            self._tokens.done()
            and all(check.passed.done() for check in self._checks)
            and (self._logprobs is None or self._logprobs.done())
        )

    def take(self) -> SampleOutput:
        """The tokens; blocks until they are there."""
        ids: list[int] = self._tokens.take().tolist()
        logprobs: list[TokenLogprobs | None] = [None] * len(ids)
        if self._logprobs is not None:
            for row, given in self._logprobs.take(ids).items():
                logprobs[row] = given
        failures = (*(check.failure() for check in self._checks), self._no_such(ids))
        return SampleOutput(ids, logprobs, tuple(f for f in failures if f is not None))

    def _no_such(self, ids: list[int]) -> RowError | None:
        """Whatever drew them isn't believed: what isn't a token would end others' requests too."""
        if not ids or (min(ids) >= 0 and max(ids) < self._vocabulary):
            return None
        rows = tuple(row for row, token in enumerate(ids) if not 0 <= token < self._vocabulary)
        return NoSuchToken([ids[row] for row in rows], rows, self._vocabulary)
