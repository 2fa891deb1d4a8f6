"""What an attention node's micro-batches are to compute: always the same, or requests that come."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(slots=True)
class _Sequence:
    """A running request. prompt: what has to be computed before it decodes, tokens that it came
    with too. cached: its tokens in the cache. part: those that this step adds. first: its first
    token's time since times count, `made_before` of its tokens being older."""

    request: Request
    prompt: int
    cached: int = 0
    made: int = 0
    part: int = 0
    made_before: int = 0
    first: float | None = None
    latest: float | None = None


class Serving:
    """Requests of one attention node: who waits, who runs in which micro-batch."""

    def __init__(self, load: Load, micro_batches: int, watch: Stopwatch) -> None:
        self.load = load
        self.watch = watch
        self.waiting: deque[Request] = deque()
        self.running: list[list[_Sequence]] = [[] for _ in range(micro_batches)]
        self.outstanding = 0  # tokens of all of them
        self.held = 0  # tokens of the cache, of those that run

    def offer(self, request: Request) -> None:
        self.waiting.append(request)
        self.outstanding += _size(request)

    def begin(self, micro_batch: int) -> Work | None:
        self._admit()
        decoding = context = 0
        computing: list[_Sequence] = []
        for s in self.running[micro_batch]:
            if s.cached >= s.prompt:
                s.part = 1
                decoding += 1
                context += s.cached + 1
            else:
                computing.append(s)
        room, pairs, ending, prompt_rows = self.load.step_tokens - decoding, 0, 0, 0
        for s in computing:
            s.part = max(0, min(room, s.prompt - s.cached))
            room -= s.part
            prompt_rows += s.part
            pairs += s.part * s.cached + s.part * (s.part + 1) // 2
            ending += s.cached + s.part == s.prompt
        if not decoding + prompt_rows:
            return None
        return Work(decoding + prompt_rows, prompt_rows, context, pairs, decoding + ending)

    def ended(self, micro_batch: int, now: float) -> None:
        done = False
        for s in self.running[micro_batch]:
            if not s.part:  # It came in since the step began, or found no room in it.
                continue
            s.cached += s.part
            s.part = 0
            if s.cached >= s.prompt:
                done |= self._token(s, now)
        if done:
            kept = [s for s in self.running[micro_batch] if not _has_all(s)]
            self.running[micro_batch] = kept

    def evicted(self, now: float) -> Iterator[Request]:
        """All requests, for another node, with the tokens that they have."""
        for own in self.running:
            for s in own:
                request, made = s.request, s.request.made + s.made
                at = now if made else request.at
                yield Request(at, request.input_tokens, request.output_tokens, made)
            own.clear()
        yield from self.waiting
        self.waiting.clear()
        self.outstanding = self.held = 0

    def _admit(self) -> None:
        running = sum(map(len, self.running))
        while self.waiting and running < self.load.places:
            request, limit = self.waiting[0], self.load.cache_tokens
            prompt = request.input_tokens + request.made
            if limit is not None and self.held + prompt > limit:
                return
            self.waiting.popleft()
            running += 1
            self.held += prompt
            computed = request.began_before or not self.load.computes_prompts
            s = _Sequence(request, prompt, cached=prompt if computed else 0)
            min(self.running, key=len).append(s)

    def _token(self, s: _Sequence, now: float) -> bool:
        """Whether it was the last one."""
        s.made += 1
        self.held += 1
        self.watch.token(now, s.request.at, s.latest, s.request.made + s.made == 1)
        s.latest = now
        if s.first is None and now >= self.watch.since:
            s.first, s.made_before = now, s.made - 1
        if not _has_all(s):
            return False
        self.watch.ended(now, s.first, s.made - s.made_before)
        self.outstanding -= _size(s.request)
        self.held -= s.prompt + s.made
        return True


def _has_all(s: _Sequence) -> bool:
    return s.request.made + s.made >= s.request.output_tokens


def _size(request: Request) -> int:
    return request.input_tokens + request.output_tokens
