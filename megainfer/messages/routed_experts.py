"""Which experts the gates chose for a sequence's tokens."""

from collections.abc import Iterator, Sequence

import msgspec

ID_BYTES = 2


class RoutedExperts(msgspec.Struct, frozen=True, array_like=True):
    """Those of the tokens from position `start` on.

    ids: int16, little-endian, [tokens, layers with experts, top_k], in the order of the gate's
    choice; -1: none.
    """

    start: int
    layers: int
    top_k: int
    ids: bytes

    @property
    def token_bytes(self) -> int:
        return ID_BYTES * self.layers * self.top_k

    @property
    def stop(self) -> int:
        """The position after its last token's."""
        return self.start + len(self.ids) // self.token_bytes


def split(routed: RoutedExperts, most_bytes: int) -> Iterator[RoutedExperts]:
    """In parts of at most so many bytes, of a token at least; one where there is none.

    >>> [part.stop for part in split(RoutedExperts(5, 1, 1, bytes(6)), 4)]
    [7, 8]
    """
    tokens = max(1, most_bytes // routed.token_bytes)
    for start in range(routed.start, max(routed.stop, routed.start + 1), tokens):
        first = (start - routed.start) * routed.token_bytes
        ids = routed.ids[first : first + tokens * routed.token_bytes]
        yield RoutedExperts(start, routed.layers, routed.top_k, ids)


def joined(parts: Sequence[RoutedExperts]) -> RoutedExperts | None:
    """One of several that follow each other; of those that begin earlier again the later count.

    Raises ValueError where there is a gap, or they are of two models.
    """
    if not parts:
        return None
    first = parts[0]
    ids = bytearray()
    for part in parts:
        at = (part.start - first.start) * first.token_bytes
        if not 0 <= at <= len(ids) or part.token_bytes != first.token_bytes:
            raise ValueError(
                f"experts of tokens from {part.start} on, [{part.layers}, {part.top_k}] each, "
                f"can't follow those of {first.start} to "
                f"{first.start + len(ids) // first.token_bytes}, "
                f"[{first.layers}, {first.top_k}]"
            )
        del ids[at:]
        ids += part.ids
    return RoutedExperts(first.start, first.layers, first.top_k, bytes(ids))
