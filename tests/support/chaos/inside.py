"""Inside a process of an instance: places where a fault can be done, and how each is done.

Whatever is patched here is patched in a process that was forked for a test; the product knows
nothing of it.
"""

import os
import signal
from collections.abc import Callable
from functools import wraps
from time import monotonic, sleep
from typing import Any

from megainfer.errors import CheckpointError
from megainfer.launch.station import Station
from megainfer.messages.message import Role
from tests.support.chaos.draw import Fault, Target
from tests.support.chaos.gpus import PretendedEvent, PretendedGpu, illegal_access
from tests.support.chaos.orders import Board, Order

SLOW = 10
SLOW_TIMES = 60
"""So many pieces of work take that many times as long."""
Doing = Callable[[Order], None]


class Saboteur:
    """One process's. `at` is asked wherever a fault can be done."""

    def __init__(self, board: Board, target: Target, node: int) -> None:
        self._board = board
        self._target = target
        self._node = node
        self._born = monotonic()
        self._seen = 0
        self._orders: list[tuple[int, Order]] = []
        self._times: dict[int, int] = {}
        self._slow: tuple[str, int] = ("", 0)  # where, how often still

    def at(self, *places: str) -> Order | None:
        """The order to be carried out here and now, if there is one."""
        if (count := self._board.count) != self._seen:
            self._seen = count
            orders = enumerate(self._board.orders(count))
            self._orders = [(i, order) for i, order in orders if self._is_ours(order)]
            self._times, self._slow = {}, ("", 0)
        if self._slow[0] in places:
            where, left = self._slow
            self._slow = (where, left - 1) if left > 1 else ("", 0)
            return Order(Fault.SLOW, self._target, where)
        for number, order in self._orders:
            if order.place in places and self._is_due(number, order):
                return order
        return None

    def _is_ours(self, order: Order) -> bool:
        mine = order.target is self._target and order.node in (None, self._node)
        return mine and (not order.new or self._born > order.given_at)

    def _is_due(self, number: int, order: Order) -> bool:
        self._times[number] = times = self._times.get(number, 0) + 1
        if times != order.nth or not self._board.claim(self._seen, number):
            return False
        self._board.tell(self._seen, number, f"{self._target} {self._node}", order.fault)
        if order.fault is Fault.SLOW:
            self._slow = (order.place, SLOW_TIMES)
        return True

    def place(self, owner: Any, name: str, *places: str, **ways: Doing) -> None:
        """Make a function of a class or module such a place. ways: how faults are done there that
        aren't done alike everywhere; the function is called after that."""
        original = getattr(owner, name)

        @wraps(original)
        def call(*args: Any, **options: Any) -> Any:
            order = self.at(*places)
            if order is None:
                return original(*args, **options)
            if order.fault is Fault.SLOW:
                return slowly(original, *args, **options)
            if (way := ways.get(order.fault.name)) is not None:
                way(order, *args)  # type: ignore[call-arg]
            else:
                do(order)
            return original(*args, **options)

        setattr(owner, name, call)


def slowly(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    began = monotonic()
    result = work(*args, **options)
    sleep((SLOW - 1) * (monotonic() - began))
    return result


def do(order: Order) -> None:
    """What can be done anywhere."""
    match order.fault:
        case Fault.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Fault.STOP | Fault.STOP_AND_GO:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Fault.STUCK:
            while True:
                sleep(0.01)
        case Fault.RAISE:
            raise RuntimeError("chaos: this was asked for")
        case Fault.MEMORY:
            raise MemoryError("chaos: this was asked for")
        case Fault.CUDA:
            raise illegal_access()
        case Fault.UNREADABLE:
            raise CheckpointError("model.safetensors can't be read: chaos: this was asked for")
        case _:
            raise AssertionError(f"{order.fault} can't be done at {order.place}")


def close_link(station: Station) -> None:
    """The supervisor's."""
    import socket

    station.link._socket.shutdown(socket.SHUT_RDWR)


# --- by role ----------------------------------------------------------------------------------


def sabotage(board: Board, role: Role, node: int, station: Station) -> None:
    """In a child, before its work begins."""
    match role:
        case Role.ATTENTION:
            _attention(Saboteur(board, Target.ATTENTION, node), station)
        case Role.EXPERT:
            _expert(Saboteur(board, Target.EXPERT, node), station)
        case Role.SERVER:
            _server(Saboteur(board, Target.SERVER, node), station)


def sabotage_supervisor(board: Board) -> None:
    from megainfer.supervise.supervisor import Supervisor

    Saboteur(board, Target.SUPERVISOR, 0).place(Supervisor, "_turn", "turn")


def _gpu(saboteur: Saboteur) -> None:
    """Where a GPU may tell that it has failed."""
    saboteur.place(PretendedGpu, "upload", "copy")
    saboteur.place(PretendedGpu, "capture", "capture")
    saboteur.place(PretendedEvent, "done", "event")


def _attention(saboteur: Saboteur, station: Station) -> None:
    from megainfer.attention_node import process
    from megainfer.attention_node.node import AttentionNode
    from megainfer.checkpoint.reader import WeightReader

    def link(order: Order, *_: Any) -> None:
        close_link(station)

    def some_link(order: Order, node: AttentionNode, *_: Any) -> None:
        close_a_link(station, node.port, order.variant)

    def not_a_number(order: Order, node: AttentionNode, flight: Any, *_: Any) -> None:
        flight.x[order.variant % len(flight.x)] = float("nan")

    def header(order: Order, node: AttentionNode, *_: Any) -> None:
        _garble_next(node.port, "dispatch", order.variant)

    saboteur.place(WeightReader, "_read", "load", LINK=link)
    _gpu(saboteur)
    saboteur.place(process, "join_attention", "warm-up", LINK=link)
    saboteur.place(process, "await_serve", "warm-up", LINK=link)
    saboteur.place(process.AttentionUnit, "enter", "enter", LINK=link)
    ways = {"LINK": some_link, "NAN": not_a_number, "HEADER": header}
    original = AttentionNode._advance

    def advance(node: AttentionNode, flight: Any) -> None:
        prefills = any(len(chunk.token_ids) > 1 for chunk in flight.step.chunks)
        places = ["prefill" if prefills else "decode", "step"]
        if flight.handle is not None:
            places.append("combine")
        order = saboteur.at(*places)
        if order is not None and order.fault is Fault.SLOW:
            slowly(original, node, flight)
            return
        if order is not None:
            way = ways.get(order.fault.name)
            if way is None:
                do(order)
            else:
                way(order, node, flight)
        original(node, flight)

    AttentionNode._advance = advance  # type: ignore[method-assign]


def _expert(saboteur: Saboteur, station: Station) -> None:
    from megainfer.checkpoint.reader import WeightReader
    from megainfer.expert_node import process
    from megainfer.expert_node.node import ExpertNode

    def link(order: Order, *_: Any) -> None:
        close_link(station)

    def some_link(order: Order, node: ExpertNode, *_: Any) -> None:
        close_a_link(station, node.port, order.variant)

    def header(order: Order, node: ExpertNode, *_: Any) -> None:
        _garble_next(node.port, "reply", order.variant)

    def not_a_number(order: Order, node: ExpertNode, *_: Any) -> None:
        _poison_next(node._model, order.variant)

    saboteur.place(WeightReader, "_read", "load", LINK=link)
    _gpu(saboteur)
    saboteur.place(process, "join_expert", "warm-up", LINK=link)
    saboteur.place(process, "await_serve", "warm-up", LINK=link)
    saboteur.place(process.ExpertUnit, "enter", "enter", LINK=link)
    ways = {"LINK": some_link, "NAN": not_a_number, "HEADER": header}
    saboteur.place(ExpertNode, "_compute", "prefill", "decode", "step", **ways)
    saboteur.place(ExpertNode, "_reply", "combine", **ways)


def _server(saboteur: Saboteur, station: Station) -> None:
    from server import process

    def link(order: Order, *_: Any) -> None:
        close_link(station)

    client = process.EngineClient
    saboteur.place(client, "bind", "load", LINK=link)
    saboteur.place(process._Server, "_tell_when_ready", "warm-up", LINK=link)
    saboteur.place(client, "submit", "prefill", LINK=link)
    saboteur.place(client, "_on_message", "decode", "combine", "step", LINK=link)
    saboteur.place(client, "enter", "enter", LINK=link)


def close_a_link(station: Station, port: Any, variant: int) -> None:
    """The supervisor's, or one to a peer."""
    import socket

    peers = [port._wire._peers[index] for index in sorted(port._wire._peers)]
    if variant % 3 == 0 or not peers:
        close_link(station)
    else:
        peers[variant % len(peers)].connection.shutdown(socket.SHUT_RDWR)


def _garble_next(port: Any, name: str, variant: int) -> None:
    """The next message that goes out bears another layer, or number."""
    original = port._mail
    port._mail = _GarblingMail(original, port, name, variant)


class _GarblingMail:
    """Another's mail, but for its next message."""

    def __init__(self, mail: Any, port: Any, name: str, variant: int) -> None:
        self._own = mail
        self._port = port
        self._name = name
        self._variant = variant

    def __getattr__(self, name: str) -> Any:
        if name != self._name:
            return getattr(self._own, name)
        self._port._mail = self._own
        return self._dispatch if name == "dispatch" else self._reply

    def _dispatch(self, micro_batch: int, layer: int, sequence: int, *rest: Any) -> None:
        layer, sequence = _garbled(layer, sequence, self._variant)
        self._own.dispatch(micro_batch, layer, sequence, *rest)

    def _reply(self, dispatch: Any) -> None:
        layer, sequence = _garbled(dispatch.layer, dispatch.sequence, self._variant)
        self._own.reply(dispatch._replace(layer=layer, sequence=sequence))


def _garbled(layer: int, sequence: int, variant: int) -> tuple[int, int]:
    """One bit of either."""
    if variant % 2:
        return layer ^ 1 << (variant // 2 % 16), sequence
    return layer, sequence ^ 1 << (variant // 2 % 32)


def _poison_next(model: Any, variant: int) -> None:
    """What the next forward gives is no number in one row."""
    original = model.forward

    def forward(layer: int, dispatches: Any, outs: Any) -> None:
        del model.forward
        original(layer, dispatches, outs)
        out = outs[variant % len(outs)]
        out[variant % len(out)] = float("nan")

    model.forward = forward
