"""The process that stands in for a rank of another host, beside the first rank of its node.

To who watches the node it is that rank: it dies when that does, and of the same. What rank 0 says
on the rank's link it passes on, and what the rank says there; orders and rows go directly.
"""

from megainfer.errors import MegaInferError, NodeDied
from megainfer.hosts.stand_in import There, dialled, end, print_lines, tell_ended
from megainfer.hosts.wire import poll
from megainfer.launch.control import ParentLink
from megainfer.launch.station import Station
from megainfer.messages.from_child import Prepared
from megainfer.messages.hosts import FromAttendant, LogLines, NodeEnded, Refused, StartRank
from megainfer.messages.supervision import ToChild

_LOOK_SECONDS = 0.5


def run_rank_stand_in(station: Station, there: There, start: StartRank, link: ParentLink) -> None:
    """Everything that it does after the fork. link: to rank 0."""
    try:
        _RankStandIn(station, there, start, link).run()
    except MegaInferError as error:  # the rank may well be alive, but nobody hears it
        end(station, str(error), befell=True)


class _RankStandIn:
    def __init__(self, station: Station, there: There, start: StartRank, link: ParentLink) -> None:
        self._station, self._there, self._start = station, there, start
        # None once rank 0 is gone: whoever watches the node ends this process, too, and tells why.
        self._link: ParentLink | None = link
        self._wire = dialled(there, start.lease)

    def run(self) -> None:
        self._wire.send(self._start)
        while True:
            for message in self._wire.pump():
                if isinstance(message, NodeEnded | Refused):
                    tell_ended(self._station, self._there.host, message)
                    return
                self._pass_on(message)
            self._hear_leader()
            links = [] if self._link is None else [self._link.fileno()]
            poll([self._wire], _LOOK_SECONDS, *links)

    def _pass_on(self, message: FromAttendant) -> None:
        """What the rank, or its host, says; of last words NodeEnded tells."""
        start = self._start
        match message:
            case LogLines(lines=lines):
                print_lines(f"{self._there.host} {start.role}-{start.node}.{start.rank}", lines)
            case Prepared():
                self._tell_leader(message)

    def _tell_leader(self, message: Prepared) -> None:
        if self._link is not None:
            try:
                self._link.send(message)
            except NodeDied:
                self._link = None

    def _hear_leader(self) -> None:
        while (message := self._said_by_leader()) is not None:
            self._wire.send(message)

    def _said_by_leader(self) -> ToChild | None:
        if self._link is None:
            return None
        try:
            return self._link.receive(timeout=0)
        except NodeDied:
            self._link = None
            return None
