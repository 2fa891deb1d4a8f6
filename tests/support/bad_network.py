"""A TCP relay that delays, cuts bytes into pieces, stalls and truncates, by seed.

Whoever connects to a route's address reaches its target, through a thread of the relay. Bytes of
one direction stay in order, as TCP has it; those of different connections overtake each other.
"""

import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from time import monotonic

MOST_AFTER_BYTES = 20_000
_READ_BYTES = 1 << 16
_MOST_HELD = 64
"""Pieces; then no more is read, and the sender's kernel notices."""
_IDLE_SECONDS = 0.5
_RESET = struct.pack("ii", 1, 0)  # struct linger: closing drops the connection


class Kind(Enum):
    STALL = "stall"  # nothing for a while, or for ever
    CLOSE = "close"  # both ends hear the end of file
    HALF = "half"  # who reads hears it, and the other direction goes on
    RESET = "reset"


class Way(Enum):
    """Of a connection's bytes, by who has connected."""

    OUT = "out"
    BACK = "back"


@dataclass(frozen=True)
class Fault:
    """after: bytes of one direction that pass before it. seconds: of a stall."""

    kind: Kind
    after: int
    seconds: float = float("inf")

    @property
    def is_final(self) -> bool:
        """Whether nothing ever passes again."""
        return self.kind is not Kind.STALL or self.seconds == float("inf")


@dataclass(frozen=True)
class Manners:
    """Of one direction. delay: seconds, the most for one piece. piece: bytes, the most of one."""

    seed: int = 0
    delay: float = 0.0
    piece: int = _READ_BYTES
    fault: Fault | None = None


GOOD = Manners()


def drawn(lots: Random, fault: Fault | None = None) -> Manners:
    """A direction that is slow in a way of its own."""
    delay = lots.choice((0.0, 0.0, 1e-4, 3e-3))
    piece = lots.choice((1, 7, 64, 1460, _READ_BYTES, _READ_BYTES))
    return Manners(lots.getrandbits(32), delay, piece, fault)


def drawn_fault(lots: Random, short: float) -> Fault:
    """short: seconds of a stall that nobody must die of."""
    after = int(MOST_AFTER_BYTES ** lots.random()) - 1
    kind = lots.choice((Kind.STALL, Kind.STALL, *Kind))
    brief = kind is Kind.STALL and lots.random() < 0.4
    return Fault(kind, after, short * lots.random() if brief else float("inf"))


@dataclass(eq=False)
class _Stream:
    """One direction of a connection."""

    source: socket.socket
    sink: socket.socket
    manners: Manners
    lots: Random = field(init=False)
    held: deque[tuple[float, bytes]] = field(default_factory=deque)  # when each is due
    passed: int = 0
    free_at: float = 0.0  # of a stall
    stalled: bool = False
    watched: bool = False  # whether the source is polled
    ended: bool = False  # nothing more comes of the source
    shut: bool = False  # and the sink has heard of it

    def __post_init__(self) -> None:
        self.lots = Random(self.manners.seed)

    @property
    def fault(self) -> Fault | None:
        return self.manners.fault


class Route:
    """Where one can connect in place of `target`. manners: of each way, which count for whoever
    connects from then on, and for faults at once."""

    def __init__(self, network: "BadNetwork", host: str, target: Callable[[], tuple[str, int]]):
        self._network = network
        self.target = target
        self.listening = socket.create_server((host, 0))
        self.listening.setblocking(False)
        self.manners = dict.fromkeys(Way, GOOD)
        self.streams: dict[Way, list[_Stream]] = {way: [] for way in Way}

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listening.getsockname()[:2]
        return host, port


class BadNetwork:
    """All routes, and the thread that serves them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._streams: list[_Stream] = []
        self._routes: list[Route] = []
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="bad-network", daemon=True)
        self._thread.start()

    def route(
        self,
        target: tuple[str, int] | Callable[[], tuple[str, int]],
        manners: dict[Way, Manners] | None = None,
        host: str = "127.0.0.1",
    ) -> Route:
        """target: where it leads, or who knows that when somebody connects."""
        find = target if callable(target) else lambda: target
        route = Route(self, host, find)
        route.manners.update(manners or {})
        with self._lock:
            self._routes.append(route)
            self._selector.register(route.listening, selectors.EVENT_READ, route)
        self._wake()
        return route

    def disturb(self, route: Route, way: Way, fault: Fault | None) -> None:
        """From here on, also of connections that there are; `after` counts from now on."""
        with self._lock:
            route.manners[way] = Manners(fault=fault)
            for stream in route.streams[way]:
                stream.manners = Manners(fault=fault)
                stream.passed, stream.stalled, stream.free_at = 0, False, 0.0
        self._wake()

    def close(self) -> None:
        """All connections end."""
        self._closed = True
        self._wake()
        self._thread.join(10)
        assert not self._thread.is_alive()
        for route in self._routes:
            route.listening.close()
        for stream in self._streams:
            stream.source.close()
        self._selector.close()
        self._waker.close()
        self._woken.close()

    # --- its thread ---------------------------------------------------------------------------

    def _wake(self) -> None:
        self._waker.send(b"\0")

    def _run(self) -> None:
        while not self._closed:
            bound = self._bound()
            for key, _ in self._selector.select(bound):
                if key.fileobj is self._woken:
                    self._woken.recv(4096)
                elif isinstance(key.data, Route):
                    self._connect(key.data)
            with self._lock:
                for stream in list(self._streams):
                    if stream.source.fileno() >= 0:  # else another has just reset it
                        self._serve(stream)

    def _bound(self) -> float:
        """Seconds until something is due."""
        now, bound = monotonic(), _IDLE_SECONDS
        for stream in self._streams:
            if stream.stalled and stream.free_at > now:
                bound = min(bound, stream.free_at - now)
            elif stream.held and not stream.stalled:
                bound = min(bound, stream.held[0][0] - now)
        return max(bound, 0.0)

    def _connect(self, route: Route) -> None:
        try:
            near, _ = route.listening.accept()
            far = socket.create_connection(route.target(), timeout=2)
        except OSError:
            return  # nobody is there: whoever came hears the end
        with self._lock:
            for end in (near, far):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pairs = {Way.OUT: (near, far), Way.BACK: (far, near)}
            for way, (source, sink) in pairs.items():
                stream = _Stream(source, sink, route.manners[way])
                route.streams[way].append(stream)
                self._streams.append(stream)

    def _serve(self, stream: _Stream) -> None:
        now = monotonic()
        if stream.stalled and now >= stream.free_at:
            stream.stalled = False
            stream.manners = Manners(stream.manners.seed)  # it was this once
        self._read(stream, now)
        while stream.held and not stream.stalled and stream.held[0][0] <= now:
            if not self._write(stream, now):
                break
        if stream.ended and not stream.held and not stream.shut and not stream.stalled:
            stream.shut = True
            with suppress(OSError):
                stream.sink.shutdown(socket.SHUT_WR)
        if stream.source.fileno() >= 0:
            self._watch(stream, not stream.ended and len(stream.held) < _MOST_HELD)

    def _watch(self, stream: _Stream, wanted: bool) -> None:
        if wanted and not stream.watched:
            self._selector.register(stream.source, selectors.EVENT_READ)
        elif stream.watched and not wanted:
            self._selector.unregister(stream.source)
        stream.watched = wanted

    def _read(self, stream: _Stream, now: float) -> None:
        while not stream.ended and len(stream.held) < _MOST_HELD:
            try:
                data = stream.source.recv(stream.lots.randint(1, stream.manners.piece))
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                stream.ended = True
                return
            due = now + stream.lots.random() * stream.manners.delay
            last = stream.held[-1][0] if stream.held else 0.0
            stream.held.append((max(due, last), data))

    def _write(self, stream: _Stream, now: float) -> bool:
        """The next piece, or what of it passes before a fault; whether to go on."""
        due, data = stream.held.popleft()
        room = len(data)
        if (fault := stream.fault) is not None:
            room = min(room, fault.after - stream.passed)
        if room > 0:
            try:
                sent = stream.sink.send(data[:room])
            except BlockingIOError:
                stream.held.appendleft((now + 1e-3, data))
                return False
            except OSError:
                stream.held.clear()
                stream.ended = True
                return False
            stream.passed += sent
            data = data[sent:]
        if data:
            stream.held.appendleft((due, data))
        if fault is not None and stream.passed >= fault.after:
            self._befall(stream, fault, now)
            return False
        return True

    def _befall(self, stream: _Stream, fault: Fault, now: float) -> None:
        if fault.kind is Kind.STALL:
            stream.stalled, stream.free_at = True, now + fault.seconds
            return
        stream.held.clear()
        stream.ended = stream.shut = True
        if fault.kind is Kind.RESET:
            self._reset(stream)
            return
        with suppress(OSError):
            if fault.kind is Kind.HALF:
                stream.sink.shutdown(socket.SHUT_WR)
                return
            for end in (stream.source, stream.sink):
                end.shutdown(socket.SHUT_RDWR)

    def _reset(self, stream: _Stream) -> None:
        """Both directions: what is on its way is lost, too."""
        for end in (stream.source, stream.sink):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        for each in [s for s in self._streams if s.source in (stream.source, stream.sink)]:
            self._watch(each, False)
            each.held.clear()
            each.ended = each.shut = True
            self._streams.remove(each)
        stream.source.close()
        stream.sink.close()
