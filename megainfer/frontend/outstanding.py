"""A sequence in flight: what is needed to have another node go on with it."""

import asyncio
from dataclasses import dataclass, field

import msgspec

from megainfer.frontend.node_socket import At
from megainfer.frontend.token_stream import TokenStream
from megainfer.messages.requests import Submit, TokenEvent, TokenLogprobs
from megainfer.messages.routed_experts import RoutedExperts, joined

MAX_LOSSES = 3
"""A request that was at so many attention nodes when they died may be why they did."""


@dataclass(slots=True)
class Outstanding:
    """size: bytes that count for its client until its end. at: where it is; None while it waits
    here for a node. output: what was told of it. scores: of its prompt, as far as they have come.
    routed: parts of what comes with its next token.
    leavings: how often it left a node. losses: those that died while they had it. observed: the
    observer knows of it. timers: of its limits."""

    submit: Submit
    stream: TokenStream
    size: int = 0
    at: At | None = None
    output: list[int] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    routed: list[RoutedExperts] = field(default_factory=list)
    leavings: int = 0
    losses: int = 0
    observed: bool = False
    total_timer: asyncio.TimerHandle | None = None
    queue_timer: asyncio.TimerHandle | None = None

    @property
    def request_id(self) -> str:
        return self.submit.request_id

    @property
    def tokens(self) -> list[int]:
        """The prompt, and what was made of it."""
        return [*self.submit.prompt, *self.output] if self.output else self.submit.prompt

    @property
    def tokens_left(self) -> int:
        return self.submit.max_tokens - len(self.output)

    def message(self) -> Submit:
        """What its next node is told. One that has had tokens has waited for its first step."""
        if not self.output:
            return self.submit
        return msgspec.structs.replace(self.submit, output=self.output, max_queue_seconds=None)

    def heard(self, event: TokenEvent) -> TokenEvent | None:
        """What is told of it then: nothing while there is only some of what comes with a token."""
        if event.prompt_logprobs is None and event.routed is None:
            return event
        self.scores += event.prompt_logprobs or ()
        if event.routed is not None:
            self.routed.append(event.routed)
        if not event.token_ids and event.finish_reason is None:
            return None
        scores = self.scores if event.prompt_logprobs is not None else None
        whole = msgspec.structs.replace(event, prompt_logprobs=scores, routed=joined(self.routed))
        self.scores, self.routed = [], []
        return whole

    def leave(self) -> None:
        """Its node has it no more; another begins with its prompt's scores and experts anew."""
        self.at, self.scores, self.routed = None, [], []
        self.leavings += 1

    def cancel_timers(self) -> None:
        for timer in (self.total_timer, self.queue_timer):
            if timer is not None:
                timer.cancel()
