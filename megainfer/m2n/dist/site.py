"""What a node has of this road, whichever its role: slots, a bell, groups, and links to peers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from mmap import mmap
from threading import Event, Lock, Thread
from time import monotonic

from megainfer.device import Device
from megainfer.m2n.dist.buffers import Buffer, ReceivedBuffers, SentBuffers
from megainfer.m2n.dist.groups import groups_for
from megainfer.m2n.dist.handshake import Pair, Terms
from megainfer.m2n.dist.inbox import Arrivals, ArrivedInbox
from megainfer.m2n.dist.link import PULSE_SECONDS, Link, LinkBuffers, LinkNewcomer
from megainfer.m2n.dist.proof import checked_key
from megainfer.m2n.dist.slots import STRIDE, OwnSlots
from megainfer.m2n.host.handshake import Side
from megainfer.m2n.host.region import Bell
from megainfer.m2n.roads import Road, Seat
from megainfer.m2n.slotted.mail import Newcomer
from megainfer.m2n.slotted.slots import Slots
from megainfer.tls.peers import PeerTls

SPARES = 4
"""Payloads of ended epochs that may be on their way to one peer while others are sent."""
_END_SECONDS = 1.0


class Site:
    """Of one node. seat: its geometry has payloads apart from slots.

    Raises ConfigError where the road's key is none, or its groups join no such devices.
    """

    def __init__(self, road: Road, seat: Seat, side: Side, device: Device | None) -> None:
        geometry = seat.geometry
        key, groups = checked_key(road.key), groups_for(road.groups, road.host, device)
        self.device = groups.device
        tls = None if road.tls is None else PeerTls(road.tls)
        self.terms = Terms(seat, key, groups, tls)
        self._side, self._geometry = side, geometry
        self.bell = Bell.create()
        peers = geometry.num_expert if side is Side.ATTENTION else geometry.num_attention
        count = peers * geometry.micro_batches
        region = mmap(-1, count * STRIDE)
        self._received = ReceivedBuffers(geometry.micro_batches, self.device)
        own = OwnSlots(region, count, self._received, self.device)
        self._arrivals = Arrivals(own, geometry.micro_batches, self.bell)
        self.inbox = ArrivedInbox(own, self._arrivals, count, seat.epoch)
        self.strangers: list[Slots | None] = [None] * peers
        self._links: list[Link] = []
        self._beginning = Lock()  # several are met at once, each in a thread
        self._closed = Event()
        self._pulse: Thread | None = None

    def link(self, pair: Pair) -> Link:
        """One that is heard once it is `begun`; whoever it is given to closes it."""
        geometry = self._geometry
        sizes = geometry.dispatch_bytes, geometry.reply_bytes
        to_peer, from_peer = sizes if self._side is Side.ATTENTION else sizes[::-1]
        buffers = LinkBuffers(
            SentBuffers(self._buffer(to_peer), geometry.micro_batches, SPARES),
            [self._buffer(from_peer)() for _ in range(geometry.micro_batches)],
        )
        link = Link(pair, self._side, geometry, self.device, buffers, self._arrivals)
        self._arrivals.hear(link)
        return link

    def begin(self, link: Link) -> None:
        """The handshake is over: listen to it, and show it that this node lives."""
        link.start()
        with self._beginning:
            if self._closed.is_set():
                link.close()
            self._links = [*(each for each in self._links if each.pulse()), link]
            if self._pulse is None:
                self._pulse = Thread(target=self._live, name="m2n-pulse", daemon=True)
                self._pulse.start()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within it is sent to several peers; see `PackedAttentionMail`."""
        yield
        for link in self._links:
            link.expect_answer()

    def slots_in(self, newcomer: Newcomer) -> Slots:
        """See `plain_mail.SlotsIn`."""
        assert isinstance(newcomer, LinkNewcomer)
        assert newcomer.link is not None
        self._received.adopt(newcomer.index, newcomer.link.received)
        return newcomer.link.slots

    def shut(self) -> None:
        """Nothing is put into slots any more, and nobody is rung for."""
        with self._beginning:
            self._closed.set()
        self._arrivals.close()

    def end(self) -> None:
        """Wait, for a moment, for the threads of links that were closed."""
        deadline = monotonic() + _END_SECONDS
        for link in self._links:
            link.join(max(0.0, deadline - monotonic()))
        self._links = []
        self.terms.groups.close()

    def _buffer(self, bytes_of: Callable[[int], int]) -> Callable[[], Buffer]:
        return partial(Buffer, self._geometry, bytes_of, self.device)

    def _live(self) -> None:
        """Show all peers that this node lives."""
        while not self._closed.wait(PULSE_SECONDS):
            for link in self._links:
                link.pulse()
