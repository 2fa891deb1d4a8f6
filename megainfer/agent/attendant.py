"""The process that attends to one node: it forks it, and is to it what a supervisor is.

Its connection leads to the node's stand-in (`hosts/stand_in.py`). A rank of a node whose first is
on another host has one of its own, whose connection leads to the rank's stand-in there. It passes
on what either says, looks after the heartbeat, and ends the process when the connection ends or is
silent for too long.
"""

import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic

from msgspec import structs

from megainfer.agent.conversations import Conversation, NodeConversation, RankConversation
from megainfer.agent.fetching import Fetching
from megainfer.agent.front_doors import FrontDoors
from megainfer.agent.giving import serve_weights
from megainfer.agent.log_pipe import LogPipe
from megainfer.agent.probing import serve_probing
from megainfer.checkpoint.lacking import lacking
from megainfer.errors import MegaInferError, ModelError, NodeDied, ProtocolError
from megainfer.hosts.rank_stand_in import run_rank_stand_in
from megainfer.hosts.stand_in import There
from megainfer.hosts.token import m2n_key
from megainfer.hosts.wire import Wire, poll
from megainfer.launch.control import ParentLink
from megainfer.launch.plan import Plan
from megainfer.launch.plan_codec import decode_plan
from megainfer.launch.station import NodeTask
from megainfer.messages.hosts import (
    ListWeights,
    LogLines,
    NodeEnded,
    RankThere,
    Refused,
    StartNode,
    StartRank,
    ToAttendant,
)
from megainfer.models.registry import load_spec
from megainfer.supervise.child import Child, ChildMain
from megainfer.supervise.forking.node import KILL_SECONDS, fork_node, fork_rank
from megainfer.supervise.vigil import LOOK_SECONDS, Vigil
from megainfer.tls.peers import PeerTls
from megainfer.topology import CoreAssignment

log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 2.0
_SNAPSHOTS = "snapshots"


@dataclass(frozen=True, slots=True)
class Ground:
    """What nodes find on this host. address: at which they listen for each other. model: the
    model's folder, None: where it is on the supervisor's host. tls: of connections to other hosts.
    """

    token: bytes
    address: str
    model: Path | None
    tls: PeerTls | None = None


Start = StartNode | StartRank


def run_attendant(wire: Wire[ToAttendant], said: Sequence[ToAttendant], ground: Ground) -> None:
    """To the end of the process that a connection asks for. said: what it began with."""
    start = said[0]
    if not isinstance(start, Start):
        _serve_another_host(wire, said, ground)
        return
    wire.keep(start.lease)
    try:
        plan = localised(start.plan, ground)
        if isinstance(start, StartNode):
            if start.givers and lacking(plan.folder) == set():
                start = structs.replace(start, givers=())
            # Who can ask for experts needs no files; it is started without, where that was in vain.
            meanwhile = [] if start.givers else _with_weights(wire, start, plan, ground)
            attendant = _node_attendant(wire, plan, start, ground)
        else:
            meanwhile = _with_weights(wire, start, plan, ground)
            attendant = _rank_attendant(wire, plan, start)
        attendant.run([*said[1:], *meanwhile])
    except MegaInferError as error:
        log.warning("%s node %d: %s", start.role, start.node, error)
        _say_last(wire, Refused(str(error)))


def _serve_another_host(
    wire: Wire[ToAttendant], said: Sequence[ToAttendant], ground: Ground
) -> None:
    try:
        if isinstance(said[0], ListWeights):
            serve_weights(wire, said, localised(said[0].plan, ground).folder)
        else:
            serve_probing(wire, said, ground.token, ground.address, ground.tls)
    except MegaInferError as error:
        log.warning("%s", error)
        _say_last(wire, Refused(str(error)))


def _with_weights(
    wire: Wire[ToAttendant], start: Start, plan: Plan, ground: Ground
) -> list[ToAttendant]:
    """Have the model's folder filled by other hosts, where that is wanted and it lacks weights.
    What the stand-in says meanwhile. Raises NodeDied where it goes."""
    said: list[ToAttendant] = []

    def told(text: str) -> None:
        log.info("%s", text)
        wire.send(LogLines([text]))

    if start.peers:
        fetching = Fetching(
            start.peers, ground.token, ground.tls, lambda: said.extend(wire.pump()), told
        )
        fetching.bring(plan.folder, start.plan)
    return said


def localised(encoded: bytes, ground: Ground) -> Plan:
    """The plan as it is on this host. Raises ProtocolError for one of another version, ModelError
    where the model isn't here or is another."""
    plan = decode_plan(encoded)
    folder = ground.model or plan.folder
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder {folder} on this host; put it there, or name another with "
            "`megainfer agent --model`"
        )
    if load_spec(folder, plan.config.hf_overrides) != plan.spec:
        raise ModelError(f"{folder} on this host is another model than the one that is served")
    _check_commit(folder, plan.folder)
    return replace(
        plan,
        folder=folder,
        config=replace(plan.config, m2n_host=ground.address),
        m2n_key=m2n_key(ground.token, plan.token),
        m2n_tls=None if ground.tls is None else ground.tls.files,
        front_token=secrets.token_hex(16),
    )


def _check_commit(folder: Path, served: Path) -> None:
    """Of what was fetched from the hub: `snapshots/COMMIT`, as its library keeps it. A branch may
    have moved on between two hosts. Raises ModelError."""
    fetched = folder.parent.name == served.parent.name == _SNAPSHOTS
    if fetched and folder.name != served.name:
        raise ModelError(
            f"{folder} on this host is commit {folder.name} of the model, and {served.name} is "
            "served; fetch that by --revision"
        )


def _node_attendant(
    wire: Wire[ToAttendant], plan: Plan, start: StartNode, ground: Ground
) -> "_Attendant":
    logs, doors = LogPipe(), FrontDoors(plan, start.node, start.incarnation)
    task = NodeTask(
        *(start.role, start.node, start.measures, start.placement, start.weights, start.givers),
        lease=start.lease,
    )
    elsewhere = {there.rank: partial(_stand_in, start, there, ground) for there in start.elsewhere}
    cores = partial(_cores, plan, start)
    with logs:
        child = fork_node(plan, task, cores, (wire, logs), start.incarnation, elsewhere)
    return _Attendant(wire, child, logs, NodeConversation(wire, child, doors))


def _rank_attendant(wire: Wire[ToAttendant], plan: Plan, start: StartRank) -> "_Attendant":
    logs = LogPipe()
    own = start.role, start.node, False, start.placement, start.weights
    task = NodeTask(*own, lease=start.lease)
    leader, cores = (start.address, start.port), _cores(plan, start, start.rank)
    with logs:
        child, link = fork_rank(
            *(plan, task, start.rank, leader, cores, (wire, logs), start.incarnation)
        )
    return _Attendant(wire, child, logs, RankConversation(wire, child, link))


def _stand_in(
    start: StartNode, there: RankThere, ground: Ground, leader: tuple[str, int], link: ParentLink
) -> ChildMain:
    """For a rank of another host."""
    host = There(there.at.host, (there.at.address, there.at.port), ground.token, ground.tls)
    address, port = leader
    rank = StartRank(
        role=start.role,
        node=start.node,
        rank=there.rank,
        incarnation=start.incarnation,
        plan=start.plan,
        placement=start.placement,
        weights=start.weights,
        lease=start.lease,
        address=address,
        port=port,
        peers=there.peers,
    )
    return partial(run_rank_stand_in, there=host, start=rank, link=link)


class _Attendant:
    """child: of a node all ranks, or one whose first is on another host."""

    def __init__(
        self, wire: Wire[ToAttendant], child: Child, logs: LogPipe, talk: Conversation
    ) -> None:
        self._wire, self._child, self._logs, self._talk = wire, child, logs, talk
        self._vigil = Vigil()
        self._ready: set[int] = set()  # descriptors that can be read
        self._next_look = 0.0

    def run(self, said: Sequence[ToAttendant]) -> None:
        """Until the node has ended. Its end is told; that of the connection is its end. said: what
        came together with the wish for it."""
        try:
            for message in said:
                self._talk.hear(message)
            while not self._child.collect(self._ready):
                self._turn()
            self._mourn()
        except (NodeDied, ProtocolError) as error:
            log.warning("%s is ended: %s", self._child.name, error)
        finally:
            self._child.kill()
            for rank in self._child.ranks:
                rank.reap(KILL_SECONDS)

    def _turn(self) -> None:
        for message in self._wire.pump():
            self._talk.hear(message)
        self._talk.tell()
        self._tell_logs()
        self._look_after()
        living = [rank for rank in self._child.ranks if rank.alive]
        fds = [fd for rank in living for fd in (rank.link.fileno(), rank.pidfd)]
        fds += [self._logs.fileno(), *self._talk.filenos()]
        seconds = 0.0 if self._talk.is_pending else LOOK_SECONDS
        self._ready = poll([self._wire], seconds, *fds)

    def _tell_logs(self) -> None:
        if lines := self._logs.lines():
            self._wire.send(LogLines(lines))

    def _look_after(self) -> None:
        if (now := monotonic()) < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        for rank, reason in self._vigil.look(self._child.ranks):
            rank.given_up = rank.given_up or f"hung: {reason}"
            rank.kill()

    def _mourn(self) -> None:
        """Tell how it ended, and what it said last."""
        child = self._child
        self._talk.tell()
        for _ in range(2):  # the second time what has no end of line
            self._tell_logs()
        first = child.fell or child  # who stands in for a rank ends in order, and says how that did
        in_order = first.exit_code == 0 and first.fatal is None
        befell = not child.failed_by_itself
        ended = NodeEnded(None) if in_order else NodeEnded(child.death(), befell)
        log.info("%s has ended%s", child.name, "" if in_order else f": {child.death()}")
        _say_last(self._wire, ended)


def _say_last(wire: Wire[ToAttendant], message: NodeEnded | Refused) -> None:
    """For a moment: whoever doesn't hear it notices the connection's end."""
    deadline = monotonic() + _LAST_WORDS_SECONDS
    with suppress(NodeDied, ProtocolError):
        wire.send(message)
        while wire.pending and monotonic() < deadline:
            poll([wire], 0.1)
            wire.pump()


def _cores(plan: Plan, start: Start, rank: int) -> CoreAssignment | None:
    """A rank's own, where this process may use them: one that joined later may have been planned on
    another host's. None, as it likes, of who stands in for a rank of another host."""
    if isinstance(start, StartNode) and any(there.rank == rank for there in start.elsewhere):
        return None
    own = plan.cores_of(start.role, start.node, rank)
    cores = tuple(sorted(set(own.cores) & os.sched_getaffinity(0)))
    return replace(own, cores=cores) if cores else None
