"""What one micro-batch's step computes on one attention node."""

from dataclasses import dataclass

from megainfer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Contexts:
    """How many positions tokens see, their own included: spread evenly from `first` to `last`.

    Means over tokens are exact for whole numbers, and may be asked of a server's measured means.
    """

    first: float
    last: float

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ConfigError(
                f"contexts of {self.first:g} to {self.last:g} positions; a token sees at least 1, "
                "itself, and the last can't be fewer than the first"
            )

    @classmethod
    def at(cls, positions: float) -> "Contexts":
        """All tokens see as many."""
        return cls(positions, positions)

    @property
    def mean(self) -> float:
        return (self.first + self.last) / 2

    def mean_within(self, window: int) -> float:
        """The mean of min(positions, window).

        >>> Contexts(1, 4).mean_within(2), Contexts(5, 9).mean_within(4)
        (1.75, 4.0)
        """
        if self.last <= window:
            return self.mean
        if self.first >= window:
            return float(window)
        below, count = window - self.first + 1, self.last - self.first + 1
        return (below * (self.first + window) / 2 + (count - below) * window) / count

    def mean_in_chunk(self, chunk: int) -> float:
        """The mean of the positions of one's own chunk of so many that one sees.

        >>> Contexts(1, 8).mean_in_chunk(4), Contexts.at(5).mean_in_chunk(4)
        (2.5, 1.0)
        """
        return (_chunked(self.last, chunk) - _chunked(self.first - 1, chunk)) / (
            self.last - self.first + 1
        )


def _chunked(positions: float, chunk: int) -> float:
    """The sum over the first so many positions of what each sees of its own chunk."""
    full, rest = divmod(positions, chunk)
    return full * chunk * (chunk + 1) / 2 + rest * (rest + 1) / 2


ALONE = Contexts.at(1)


@dataclass(frozen=True, slots=True)
class Step:
    """One micro-batch's step on one attention node. Rows are tokens, and may be means.

    decode_rows: sequences that each add a token, which sees `contexts`. prefill_rows: tokens of
    prompts, in chunks of `chunk`, each of which sees `prefill_contexts`. prompts: that end in this
    step, whose last tokens are sampled from too.
    """

    decode_rows: float
    contexts: Contexts
    prefill_rows: float = 0.0
    prefill_contexts: Contexts = ALONE
    chunk: float = 512.0
    prompts: float = 0.0

    def __post_init__(self) -> None:
        if min(self.decode_rows, self.prefill_rows, self.prompts) < 0 or self.chunk < 1:
            raise ConfigError(
                f"a step of {self.decode_rows:g} decoded rows, {self.prefill_rows:g} of prompts in "
                f"chunks of {self.chunk:g}, {self.prompts:g} prompts: none can be negative, and a "
                "chunk has at least 1 row"
            )

    @classmethod
    def steady(
        cls, decode_rows: float, input_tokens: int, output_tokens: int, prefill: bool = False
    ) -> "Step":
        """The mean step of requests that come and go at one rate, at all places of their answers.

        prefill: prompts are computed on the same nodes. The first token of an answer comes of its
        prompt, so that an answer of n tokens takes n - 1 decoded rows; each of them sees its own
        position, input_tokens + 1 and on.
        """
        decoded = max(1, output_tokens - 1)
        contexts = Contexts(input_tokens + 1, input_tokens + decoded)
        if not prefill:
            return cls(decode_rows, contexts)
        prompts = decode_rows / decoded
        return cls(
            decode_rows,
            contexts,
            prompts * input_tokens,
            Contexts(1, input_tokens),
            min(512.0, float(input_tokens)),
            prompts,
        )

    @property
    def rows(self) -> float:
        """Tokens in all."""
        return self.decode_rows + self.prefill_rows

    @property
    def sampled(self) -> float:
        """Rows that go through the head."""
        return self.decode_rows + self.prompts
