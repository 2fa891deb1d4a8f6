"""Whom an expert node may ask for experts that its host has no files of."""

from megainfer.messages.message import Role
from megainfer.messages.weights import GivingNode

Node = tuple[Role, int]


class Givers:
    """Of one instance: those of its expert nodes that give others experts."""

    def __init__(self) -> None:
        self._giving: dict[Node, GivingNode] = {}
        self._in_vain: set[Node] = set()  # whose latest process ended before it had loaded all

    def opened(self, node: Node, gives_at: tuple[str, int] | None) -> None:
        """A node can be asked, where it says so."""
        if gives_at is not None:
            self._giving[node] = GivingNode(node[1], *gives_at)

    def loaded(self, node: Node) -> None:
        """A node has all that it is to have."""
        self._in_vain.discard(node)

    def died(self, node: Node, had_loaded: bool) -> None:
        """A process of a node has ended."""
        self._giving.pop(node, None)
        if not had_loaded:
            self._in_vain.add(node)

    def for_start(self, node: Node) -> tuple[GivingNode, ...]:
        """Whom it may ask as it starts: nobody where that was in vain, since files are to be there
        then."""
        return () if node in self._in_vain else self.for_move(node)

    def for_move(self, node: Node) -> tuple[GivingNode, ...]:
        """Whom it may ask for experts that move to it."""
        if node[0] is not Role.EXPERT:
            return ()
        return tuple(giving for other, giving in self._giving.items() if other != node)
