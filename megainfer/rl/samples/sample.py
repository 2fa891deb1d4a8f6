"""An answer that grows by a window a step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

from megainfer.errors import ProtocolError
from megainfer.messages.routed_experts import RoutedExperts

Finish = Literal["stop", "length"]
"""An end token, or as many tokens as an answer may have."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one step added to an answer; its tokens train the policy in that step and in no other.

    logprobs: of each token by the policy that drew it. version: of the weights it was drawn with.
    values: V(s_t) by the value model of that step, s_t being all before token t; empty where there
    is no value model. stale: tokens before it whose keys and values were left as earlier weights
    had computed them.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: int
    values: tuple[float, ...] = ()
    stale: int = 0

    def check(self, most: int, vocab_size: int, end_tokens: Sequence[int]) -> None:
        """Raises ProtocolError where a rollout engine gave what can't be trained on, and up to
        `most` tokens were asked for."""
        tokens, logprobs = self.token_ids, self.logprobs
        if not 1 <= len(tokens) <= most:
            raise ProtocolError(f"a rollout of 1 to {most} tokens was asked for, not {len(tokens)}")
        if len(logprobs) != len(tokens):
            raise ProtocolError(
                f"a rollout has {len(logprobs)} log-probabilities for {len(tokens)} tokens"
            )
        if len(tokens) < most and tokens[-1] not in end_tokens:
            raise ProtocolError(
                f"a rollout stopped after {len(tokens)} of {most} tokens without an end token; has "
                "the model's generation_config.json max_new_tokens?"
            )
        for token, logprob in zip(tokens, logprobs, strict=True):
            if not 0 <= token < vocab_size:
                raise ProtocolError(f"a rollout has token {token}; there are {vocab_size}")
            if not math.isfinite(logprob):
                raise ProtocolError(f"a rollout has log-probability {logprob} for token {token}")


@dataclass(slots=True)
class Sample:
    """One answer to a problem.

    number: of all answers of a run, from 0. group: the same for all answers that were begun to one
    problem together. problem: its place in the data. finish: why it ended; None while it goes on.
    routing: what each token but the last chose in the latest step, for that step's update alone.
    """

    number: int
    group: int
    problem: int
    prompt_ids: tuple[int, ...]
    windows: list[Window] = field(default_factory=list)
    finish: Finish | None = None
    routing: RoutedExperts | None = None

    @property
    def finished(self) -> bool:
        return self.finish is not None

    @property
    def response_ids(self) -> list[int]:
        """All tokens of the answer so far."""
        return list(chain.from_iterable(window.token_ids for window in self.windows))

    @property
    def response_values(self) -> list[float]:
        """Of all tokens of the answer, each by the value model of its own step."""
        return list(chain.from_iterable(window.values for window in self.windows))

    @property
    def token_ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt_ids, *self.response_ids]

    @property
    def length(self) -> int:
        """Tokens of the answer so far."""
        return sum(len(window.token_ids) for window in self.windows)

    @property
    def latest(self) -> Window:
        """The window of the last step that worked on it; there must have been one."""
        return self.windows[-1]

    def room(self, window: int, most: int) -> int:
        """Tokens that the next step may add; most: tokens of a whole answer."""
        return min(window, most - self.length)

    def add(self, window: Window, most: int, end_tokens: Sequence[int]) -> None:
        """Its next window, which ends it where its last token is an end token or nothing fits."""
        assert not self.finished, "nothing follows an end"
        self.windows.append(window)
        if window.token_ids[-1] in end_tokens:
            self.finish = "stop"
        elif self.length >= most:
            self.finish = "length"

    def value(self, values: Sequence[float]) -> None:
        """What the value model says of the latest window's tokens."""
        latest = self.latest
        assert len(values) == len(latest.token_ids)
        self.windows[-1] = replace(latest, values=tuple(values))
