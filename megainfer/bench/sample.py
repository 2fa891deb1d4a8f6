"""One request of a load, and what became of it."""

from dataclasses import dataclass, field

Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Sample:
    """prompt_tokens: as far as is known before the server says it, else 0."""

    prompt: Prompt
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True)
class Outcome:
    """Times in seconds: `start` on the clock of `time.perf_counter`, all others from there on.

    ttft: to the first token, None if none came. itl: between chunks of tokens. latency: to the last
    one. queued: waited before the start for --max-concurrency. prompt_tokens, output_tokens: by the
    server's usage; output_tokens None where it gave none. error: why it failed; None: it didn't.
    """

    start: float = 0.0
    queued: float = 0.0
    ttft: float | None = None
    itl: list[float] = field(default_factory=list)
    latency: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int | None = None
    text: str = ""
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it was answered to its end."""
        return self.error is None and self.ttft is not None

    @property
    def chunks(self) -> int:
        """How many pieces with tokens came."""
        return 0 if self.ttft is None else 1 + len(self.itl)

    @property
    def tokens(self) -> int:
        """Tokens of the answer: the server's count, else the number of pieces."""
        return self.chunks if self.output_tokens is None else self.output_tokens

    @property
    def tpot(self) -> float:
        """Mean seconds a token after the first; 0 for an answer of one token."""
        if self.ttft is None or self.tokens < 2:
            return 0.0
        return (self.latency - self.ttft) / (self.tokens - 1)

    def token_at(self, now: float) -> None:
        """Note that a piece with tokens came, at this time of the clock."""
        since = now - self.start
        if self.ttft is None:
            self.ttft = since
        else:
            self.itl.append(since - self.latency)
        self.latency = since
