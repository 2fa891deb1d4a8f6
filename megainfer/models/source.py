"""Where one weight, or a piece of one, lies on disk."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor on disk."""

    name: str
    shape: tuple[int, ...]


Pieces = tuple[Source, ...]
