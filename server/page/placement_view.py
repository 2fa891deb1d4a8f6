"""Where experts are, as the page draws it: told once an epoch, not once a second."""

from typing import Any

import msgspec

from megainfer.topology import Membership


class PlacementView:
    """The present placement in JSON, made when somebody asks for the first time."""

    def __init__(self) -> None:
        self._membership: Membership | None = None
        self._body = b"null"
        self.etag = '"0"'

    def show(self, membership: Membership | None) -> bytes:
        """`placement_document`, or null before anything serves; `etag` is then this one's. All API
        servers name the same placement the same."""
        if membership is not self._membership:
            self._membership = membership
            document = None if membership is None else placement_document(membership)
            self._body = msgspec.json.encode(document)
            self.etag = f'"{0 if membership is None else membership.epoch}"'
        return self._body


def placement_document(membership: Membership) -> dict[str, Any]:
    """nodes: expert nodes that take part. experts: of each layer. layers: [number, table]. tables:
    of each of `nodes`, its slots with an expert as [expert, ways]: how many of its 16 ways lead
    there, 0 for a spare.

    >>> from megainfer.topology import first_membership, placement_of
    >>> placement_document(first_membership(1, placement_of(2, {3: ((0,), (1, 0))})))
    {'epoch': 1, 'nodes': [0, 1], 'experts': 2, 'layers': [[3, 0]], \
'tables': [[[[0, 16], [1, 0]], [[1, 16]]]]}
    """
    placement, nodes = membership.placement, membership.experts
    tables = [
        [
            [
                [expert, ways]
                for expert, ways in zip(table.experts[node], table.ways[node], strict=True)
                if expert >= 0
            ]
            for node in nodes
        ]
        for table in placement.tables
    ]
    return {
        "epoch": membership.epoch,
        "nodes": list(nodes),
        "experts": placement.num_experts,
        "layers": [list(pair) for pair in placement.layers.items()],
        "tables": tables,
    }
