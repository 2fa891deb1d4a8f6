"""Requests as the front end sees them: how many, how long, how fast.

Counting costs a dictionary look-up and a bisection a token; Prometheus's text is made of it only
when somebody asks.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Self

from megainfer.instruments.distribution import Distribution
from megainfer.messages.requests import FinishReason, Submit, TokenEvent

FINISH_REASONS = (*(str(reason) for reason in FinishReason), "error")

# The bounds are vLLM's, so that its dashboards show the same quantiles.
FIRST_TOKEN_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_BOUNDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
N_BOUNDS = (1, 2, 5, 10, 20)


def token_count_bounds(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … up to `most`.

    >>> token_count_bounds(30)
    [1, 2, 5, 10, 20]
    """
    decades = (10**exponent for exponent in range(len(str(most))))
    return [digit * decade for decade in decades for digit in (1, 2, 5) if digit * decade <= most]


class EngineTotals:
    """Of one attention node, which vLLM calls an engine. Times are in seconds."""

    def __init__(self, max_model_len: int) -> None:
        counts = token_count_bounds(max_model_len)
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.finished: Counter[str] = Counter(dict.fromkeys(FINISH_REASONS, 0))
        self.first_token = Distribution(FIRST_TOKEN_BOUNDS)
        self.between_tokens = Distribution(TOKEN_BOUNDS)
        self.per_output_token = Distribution(TOKEN_BOUNDS)
        self.end_to_end = Distribution(REQUEST_BOUNDS)
        self.queued = Distribution(REQUEST_BOUNDS)
        self.inference = Distribution(REQUEST_BOUNDS)
        self.prefill = Distribution(REQUEST_BOUNDS)
        self.decode = Distribution(REQUEST_BOUNDS)
        self.prompt_lengths = Distribution(counts)
        self.computed_prompt_lengths = Distribution(counts)
        self.output_lengths = Distribution(counts)
        self.longest_outputs = Distribution(counts)
        self.max_tokens = Distribution(counts)
        self.n = Distribution(N_BOUNDS)


@dataclass(slots=True)
class _Siblings:
    """The n sequences of one prompt."""

    unfinished: int
    longest: int = 0


@dataclass(slots=True)
class _Life:
    """One sequence. first_at and last_at: when its first and its latest token came."""

    totals: EngineTotals
    siblings: _Siblings
    prompt_tokens: int
    submitted_at: float
    first_at: float = 0.0
    last_at: float = 0.0
    queued_seconds: float = 0.0
    cached_tokens: int = 0
    generated: int = 0


@dataclass
class RequestMetrics:
    """`EngineObserver` over `engines`, by the attention node's number; there may come more of them,
    for contexts of so many tokens."""

    max_model_len: int
    engines: dict[int, EngineTotals]
    clock: Callable[[], float] = monotonic
    _lives: dict[str, _Life] = field(default_factory=dict)

    @classmethod
    def over(cls, num_nodes: int, max_model_len: int) -> Self:
        """Of so many attention nodes at first."""
        engines = {node: EngineTotals(max_model_len) for node in range(num_nodes)}
        return cls(max_model_len, engines)

    def submitted(self, submits: Sequence[Submit], nodes: Sequence[int | None]) -> None:
        """See `EngineObserver.submitted`. Who waits for a node counts for the first until then."""
        now = self.clock()
        sizes = Counter(_prompt_of(submit) for submit in submits)
        families = {prompt: _Siblings(size) for prompt, size in sizes.items()}
        for submit, node in zip(submits, nodes, strict=True):
            totals, siblings = self._engine(node or 0), families[_prompt_of(submit)]
            life = _Life(totals, siblings, len(submit.prompt), now)
            self._lives[submit.request_id] = life
            totals.max_tokens.observe(submit.max_tokens)
        for prompt, node in {_prompt_of(s): n for s, n in zip(submits, nodes, strict=True)}.items():
            self._engine(node or 0).n.observe(sizes[prompt])

    def moved(self, request_id: str, node: int) -> None:
        """See `EngineObserver.moved`; it counts for the node at which it ends."""
        life = self._lives.get(request_id)
        if life is not None:
            life.totals = self._engine(node)

    def produced(self, node: int, events: Sequence[TokenEvent]) -> None:
        """See `EngineObserver.produced`."""
        now, tokens = self.clock(), 0
        engine = self._engine(node)
        for event in events:
            life = self._lives.get(event.request_id)
            if life is None:
                continue
            if event.token_ids:
                if life.generated:
                    engine.between_tokens.observe(now - life.last_at)
                else:
                    _begin(life, event, now)
                life.last_at = now
                life.generated += len(event.token_ids)
                tokens += len(event.token_ids)
            if event.finish_reason is not None:
                self.ended(event.request_id, event.finish_reason)
        engine.generation_tokens += tokens

    def ended(self, request_id: str, reason: FinishReason | None) -> None:
        """See `EngineObserver.ended`."""
        life = self._lives.pop(request_id, None)
        if life is None:
            return
        life.totals.finished["error" if reason is None else str(reason)] += 1
        if life.generated:
            _finish(life)

    def _engine(self, node: int) -> EngineTotals:
        if node not in self.engines:
            self.engines[node] = EngineTotals(self.max_model_len)
        return self.engines[node]

    @property
    def prompt_tokens(self) -> int:
        return sum(totals.prompt_tokens for totals in self.engines.values())

    @property
    def generation_tokens(self) -> int:
        return sum(totals.generation_tokens for totals in self.engines.values())


def _prompt_of(submit: Submit) -> str:
    """What the n sequences of a prompt have in common of their ids (`text_stream.unfold`)."""
    return submit.request_id.rpartition("-")[0]


def _begin(life: _Life, event: TokenEvent, now: float) -> None:
    """Its first token is here, so its prompt has been computed."""
    totals = life.totals
    life.first_at = now
    life.queued_seconds, life.cached_tokens = event.queued_seconds, event.cached_tokens
    totals.first_token.observe(now - life.submitted_at)
    totals.prompt_tokens += life.prompt_tokens
    totals.cached_tokens += life.cached_tokens


def _finish(life: _Life) -> None:
    """Of a sequence that had a token at least."""
    totals, siblings = life.totals, life.siblings
    whole, decode = life.last_at - life.submitted_at, life.last_at - life.first_at
    inference = max(0.0, whole - life.queued_seconds)
    totals.end_to_end.observe(whole)
    totals.queued.observe(life.queued_seconds)
    totals.inference.observe(inference)
    totals.prefill.observe(max(0.0, inference - decode))
    totals.decode.observe(decode)
    if life.generated > 1:
        totals.per_output_token.observe(decode / (life.generated - 1))
    totals.prompt_lengths.observe(life.prompt_tokens)
    totals.computed_prompt_lengths.observe(life.prompt_tokens - life.cached_tokens)
    totals.output_lengths.observe(life.generated)
    siblings.unfinished -= 1
    siblings.longest = max(siblings.longest, life.generated)
    if not siblings.unfinished:
        totals.longest_outputs.observe(siblings.longest)
