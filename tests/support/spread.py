"""An order in which things of two kinds come evenly mixed."""

from collections.abc import Callable, Hashable, Iterable
from itertools import groupby
from typing import TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def spread(
    items: Iterable[Item], group_of: Callable[[Item], Key], first_kind: Callable[[Key], bool]
) -> list[Item]:
    """The same items, neighbours of one group still together and both kinds of groups in their own
    order, but so that after any part of the whole about that part of each kind has come."""
    groups = [(key, list(members)) for key, members in groupby(items, group_of)]
    placed: list[tuple[float, list[Item]]] = []
    for kind in (True, False):
        own = [members for key, members in groups if first_kind(key) is kind]
        placed += [((index + 0.5) / len(own), members) for index, members in enumerate(own)]
    return [item for _, members in sorted(placed, key=lambda each: each[0]) for item in members]
