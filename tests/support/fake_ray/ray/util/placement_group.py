"""Groups of bundles, a node each."""

from concurrent.futures import Future
from typing import Any


class PlacementGroup:
    def __init__(self, bundles: int) -> None:
        self.id = bytes([bundles])
        self._bundles = bundles

    def ready(self) -> Any:
        from ray import IMPOSSIBLE, nodes

        if self._bundles > len(nodes()):
            return IMPOSSIBLE
        there: Future[None] = Future()
        there.set_result(None)
        return there


def placement_group(bundles: list[dict[str, float]], strategy: str) -> PlacementGroup:
    assert strategy == "STRICT_SPREAD"
    return PlacementGroup(len(bundles))
