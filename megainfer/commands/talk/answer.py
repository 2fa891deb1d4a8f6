"""What an answer consists of while it comes, and what is told of it at its end."""

from dataclasses import dataclass, field
from time import monotonic


@dataclass(frozen=True, slots=True)
class Piece:
    """reasoning: whether the model thinks yet, and hasn't begun to answer."""

    text: str
    reasoning: bool = False


@dataclass
class Figures:
    """Of one answer. tokens: as the server counts, 0 while it hasn't said. Times are monotonic
    seconds."""

    began: float = field(default_factory=monotonic)
    first: float | None = None
    last: float = 0.0
    pieces: int = 0
    tokens: int = 0
    finish: str | None = None

    def add_piece(self) -> None:
        """Something has come just now."""
        self.last = monotonic()
        self.first = self.last if self.first is None else self.first
        self.pieces += 1

    def describe(self, stopped: bool = False) -> str:
        """Empty where nothing came."""
        parts = ["stopped"] if stopped else []
        if self.finish == "length":
            parts.append("cut off at the token limit")
        if self.first is not None:
            tokens = self.tokens or self.pieces
            parts.append(f"{tokens} token{'s' * (tokens != 1)}")
            parts.append(f"first after {self.first - self.began:.2f} s")
            if tokens > 1 and self.last > self.first:
                parts.append(f"{(tokens - 1) / (self.last - self.first):.1f} tokens/s")
        return " · ".join(parts)
