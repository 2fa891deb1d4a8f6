"""What an attention node's micro-batches are to compute: always the same, or requests that come."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from megainfer.errors import ConfigError
from megainfer.simulator.request import Request, Stopwatch
from megainfer.simulator.work import Work


@dataclass(frozen=True)
class Load:
    """Requests that come, and what an attention node takes of them.

    places: requests that run on a node at a time, over all its micro-batches. step_tokens: rows of
    one micro-batch's step; whoever decodes comes first. cache_tokens: a node's KV cache; a request
    is admitted when its prompt fits beside what is there. Nobody is preempted here: what grows
    beyond the cache from then on is as if there were room. computes_prompts: False where they come
    computed, as from a pool of its own for prompts.
    """

    requests: tuple[Request, ...]
    places: int = 64
    step_tokens: int = 512
    cache_tokens: int | None = None
    computes_prompts: bool = True

    def __post_init__(self) -> None:
        if self.places < 1 or self.step_tokens < 1:
            raise ConfigError(
                f"places and step_tokens must be at least 1, not {self.places}, {self.step_tokens}"
            )
        largest = max((r.input_tokens + r.output_tokens for r in self.requests), default=0)
        if self.cache_tokens is not None and largest > self.cache_tokens:
            raise ConfigError(
                f"a request of {largest} tokens never fits into a cache of {self.cache_tokens}"
            )


class Feed(Protocol):
    """An attention node's steps."""

    def begin(self, micro_batch: int) -> Work | None:
        """The next step; None: there is nothing to do."""

    def ended(self, micro_batch: int, now: float) -> None:
        """It has its tokens."""


class Steady:
    """Every step has the same rows."""

    def __init__(self, rows: int) -> None:
        self._work = Work(rows, tokens=rows)

    def begin(self, micro_batch: int) -> Work:
        return self._work

    def ended(self, micro_batch: int, now: float) -> None:
        pass


@dataclass
class _Sequence:
    """A running request. cached: its tokens in the cache. part: those that this step adds."""

    request: Request
    micro_batch: int
    cached: int = 0
    made: int = 0
    part: int = 0
    first: float | None = None
    latest: float | None = None

    @property
    def prompt(self) -> int:
        """What has to be computed before it decodes: tokens that it came with too."""
        return self.request.input_tokens + self.request.made

    @property
    def decodes(self) -> bool:
        return self.cached >= self.prompt


@dataclass
class Serving:
    """Requests of one attention node: who waits, who runs in which micro-batch."""

    load: Load
    micro_batches: int
    watch: Stopwatch
    waiting: deque[Request] = field(default_factory=deque)
    running: list[_Sequence] = field(default_factory=list)
    outstanding: int = 0  # tokens of all of them
    held: int = 0  # tokens of the cache, of those that run

    def offer(self, request: Request) -> None:
        self.waiting.append(request)
        self.outstanding += _size(request)

    def begin(self, micro_batch: int) -> Work | None:
        self._admit()
        own = [s for s in self.running if s.micro_batch == micro_batch]
        decoding = [s for s in own if s.decodes]
        for s in decoding:
            s.part = 1
        room, pairs, ending = self.load.step_tokens - len(decoding), 0, 0
        for s in own:
            if not s.decodes and room > 0:
                s.part = min(room, s.prompt - s.cached)
                room -= s.part
                pairs += s.part * s.cached + s.part * (s.part + 1) // 2
                ending += s.cached + s.part == s.prompt
        rows = sum(s.part for s in own)
        context = sum(s.cached + 1 for s in decoding)
        if not rows:
            return None
        return Work(rows, rows - len(decoding), context, pairs, len(decoding) + ending)

    def ended(self, micro_batch: int, now: float) -> None:
        # Whoever came in since the step began has no part in it.
        for s in [s for s in self.running if s.micro_batch == micro_batch and s.part]:
            s.cached += s.part
            s.part = 0
            if s.decodes:
                self._token(s, now)

    def evicted(self, now: float) -> Iterator[Request]:
        """All requests, for another node, with the tokens that they have."""
        for s in self.running:
            own, made = s.request, s.request.made + s.made
            yield Request(now if made else own.at, own.input_tokens, own.output_tokens, made)
        yield from self.waiting
        self.running, self.outstanding, self.held = [], 0, 0
        self.waiting.clear()

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.load.places:
            request, limit = self.waiting[0], self.load.cache_tokens
            s = _Sequence(request, self._emptiest())
            if limit is not None and self.held + s.prompt > limit:
                return
            self.waiting.popleft()
            self.held += s.prompt
            if request.began_before or not self.load.computes_prompts:
                s.cached = s.prompt
            self.running.append(s)

    def _emptiest(self) -> int:
        counts = [0] * self.micro_batches
        for s in self.running:
            counts[s.micro_batch] += 1
        return counts.index(min(counts))

    def _token(self, s: _Sequence, now: float) -> None:
        s.made += 1
        self.held += 1
        self.watch.token(now, s.request.at, s.latest, s.request.made + s.made == 1)
        s.latest = now
        s.first = now if s.first is None else s.first
        if s.request.made + s.made >= s.request.output_tokens:
            self.watch.ended(now, s.first, s.made)
            self.running.remove(s)
            self.outstanding -= _size(s.request)
            self.held -= s.prompt + s.made


def _size(request: Request) -> int:
    return request.input_tokens + request.output_tokens
