"""What the supervisor says to a node, on its way to the node's other ranks."""

from collections.abc import Callable, Iterator, Sequence

from megainfer.errors import ProtocolError
from megainfer.launch.control import ChildLink
from megainfer.messages.from_child import Prepared
from megainfer.messages.to_child import Enter, Prepare
from megainfer.topology import Membership

LOOK_SECONDS = 0.02
"""How often one that has nothing to do looks for what the others have prepared."""


class RankLinks:
    """Rank 0's ends. announce: has all ranks read what is new there, before they do anything else.
    The node says `Prepared` when all of them have."""

    def __init__(self, links: Sequence[ChildLink], announce: Callable[[], None]) -> None:
        self._links = links
        self._announce = announce
        self._ticket: int | None = None  # of what is being prepared
        self._said: dict[int, str | None] = {}  # by rank, why it can't enter that

    def enter(self, membership: Membership) -> None:
        """They do, before they compute anything else."""
        self._tell(Enter(membership))

    def prepare(self, wish: Prepare, answered: bool = True) -> None:
        """They do, beside what they compute. answered: whether there will be anything to say."""
        self._ticket, self._said = wish.ticket if answered else None, {}
        self._tell(wish)

    def agreed(self, own: Sequence[Prepared]) -> Iterator[Prepared]:
        """Of what is prepared what there is to say: once, when all ranks have spoken. own: what
        rank 0 would say for itself."""
        for prepared in own:
            self._hear(0, prepared)
        if self._ticket is None:
            return
        for rank, link in enumerate(self._links, 1):
            while (message := link.receive(timeout=0)) is not None:
                if not isinstance(message, Prepared):
                    raise ProtocolError(f"rank {rank} of a node said {message}")
                self._hear(rank, message)
        if len(self._said) > len(self._links):
            errors = [f"rank {rank}: {error}" for rank, error in self._said.items() if error]
            yield Prepared(self._ticket, "; ".join(errors) or None)
            self._ticket = None

    def sleep_bound(self, timeout: float) -> float:
        """Seconds after which there may be something to say, at most `timeout`."""
        return timeout if self._ticket is None else min(timeout, LOOK_SECONDS)

    def close(self) -> None:
        for link in self._links:
            link.close()

    def _hear(self, rank: int, prepared: Prepared) -> None:
        if prepared.ticket == self._ticket:  # else it is of a wish that another has replaced
            self._said[rank] = prepared.error

    def _tell(self, message: Enter | Prepare) -> None:
        for link in self._links:
            link.send(message)
        self._announce()
