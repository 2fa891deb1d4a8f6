"""Nodes that die while the engine client serves, over real ZeroMQ sockets: what goes on where."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import zmq.asyncio

from megainfer.errors import MegaInferError, NodeDied, Overloaded, RequestTimeout
from megainfer.frontend.assignments import PIECE
from megainfer.frontend.condition import Phase
from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.node_socket import At
from megainfer.frontend.queue_limits import QueueLimits
from megainfer.frontend.sequence_request import SequenceRequest
from megainfer.frontend.token_stream import TokenStream
from megainfer.messages.message import Role, encode
from megainfer.messages.requests import (
    Abort,
    FinishReason,
    NodeReady,
    RequestFailed,
    Reset,
    Submit,
    TokenEvent,
    Tokens,
)
from megainfer.messages.to_child import NodeDown
from megainfer.sampling import SamplingParams
from megainfer.topology import Membership, placement_of
from tests.support.engine_talk import collect, dealer, hear, run
from tests.support.scripted_server import (
    CONTEXT,
    WAIT_SECONDS,
    MockNode,
    counting,
    engine_with,
    silent,
)

PARAMS = SamplingParams(max_tokens=8)
ALL = list(range(8))


def membership(epoch: int, attention: Sequence[int], experts: Sequence[int] = (0,)) -> Membership:
    placement = placement_of(max(experts) + 1, {0: (tuple(experts),)})
    return Membership(epoch, tuple(attention), tuple(experts), placement)


def down(node: int, incarnation: int = 0, role: Role = Role.ATTENTION) -> NodeDown:
    return NodeDown(role, node, "killed by SIGKILL", incarnation)


def spoken(events: Sequence[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


async def first(stream: TokenStream, tokens: int) -> list[int]:
    """The next so many, one an event."""
    return spoken([await anext(stream) for _ in range(tokens)])


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


class Watcher:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def submitted(self, submits: Sequence[Submit], nodes: Sequence[int | None]) -> None:
        self.told += [("submitted", s.request_id, n) for s, n in zip(submits, nodes, strict=True)]

    def moved(self, request_id: str, node: int) -> None:
        self.told.append(("moved", request_id, node))

    def produced(self, node: int, events: Sequence[TokenEvent]) -> None:
        self.told += [("token", event.request_id, node) for event in events]

    def ended(self, request_id: str, reason: FinishReason | None) -> None:
        self.told.append(("ended", request_id, reason))


# --- attention nodes ------------------------------------------------------------------------------


def test_a_request_goes_on_at_another_node_from_its_tokens() -> None:
    async def work() -> None:
        async with engine_with(counting(3), counting(8)) as (engine, nodes):
            engine.observer = watcher = Watcher()
            with engine.generate("r", [7] * 20, PARAMS) as stream:
                assert await first(stream, 3) == [0, 1, 2]
                asked = await hear(nodes[0], Submit)
                await nodes[0].stop()
                engine.lose(down(0))
                rest = [event async for event in stream]
            assert spoken(rest) == [3, 4, 5, 6, 7]
            assert rest[-1].finish_reason is FinishReason.LENGTH
            again = await hear(nodes[1], Submit)
            assert again.output == [0, 1, 2]
            assert (again.prompt, again.seed, again.max_tokens) == (asked.prompt, asked.seed, 8)
            kinds = Counter(told[0] for told in watcher.told)
            assert kinds == {"submitted": 1, "token": 8, "moved": 1}
            assert ("moved", "r", 1) in watcher.told
            assert (engine.recovery.replayed, engine.recovery.recomputed) == ({1: 1}, {1: 23})
            assert engine.outstanding == 0
            engine._assignments._router.check_integrity()
            assert set(engine._assignments._router.loads) == {0}

    run(work())


def test_what_a_lost_incarnation_still_says_counts_for_nothing() -> None:
    async def work() -> None:
        async with engine_with(counting(2), silent) as (engine, nodes):
            stream = engine.generate("r", [1], PARAMS)
            assert await first(stream, 2) == [0, 1]
            engine.lose(down(0))
            end = TokenEvent("r", [99], FinishReason.STOP)
            await nodes[0].say(Tokens(node=0, events=[end]))
            await nodes[0].say(RequestFailed(node=0, request_id="r", message="late"))
            await nodes[0]._socket.send(b"\x80")
            await nodes[0].say(NodeReady(node=0, max_model_len=1, max_num_seqs=1))
            assert (await hear(nodes[1], Submit)).output == [0, 1]
            await nodes[1].say(Tokens(node=1, events=[TokenEvent("r", [2], FinishReason.STOP)]))
            assert spoken(await collect(stream)) == [2]
            nodes.append(MockNode(engine.endpoint, 0, silent, incarnation=1).start())
            await until(lambda: engine.attendance.is_gone(0, 0) and engine.attendance.knows(0))
            assert engine.limits.max_model_len > 1
            assert engine.attendance.takers == [1], "it isn't a member again yet"

    run(work())


def test_without_any_node_requests_wait_for_the_one_that_comes_back() -> None:
    async def work() -> None:
        async with engine_with(counting(3)) as (engine, nodes):
            begun = engine.generate("begun", [7] * 4, PARAMS)
            assert await first(begun, 3) == [0, 1, 2]
            await nodes[0].stop()
            engine.lose(down(0))
            assert engine.condition.phase is Phase.RECOVERING
            assert engine.condition.text == "attention node 0 died"
            assert engine.condition.detail == "attention node 0 died: killed by SIGKILL"
            assert engine.condition.seconds is not None
            fresh = engine.generate("fresh", [5], PARAMS)
            dropped = engine.generate("dropped", [5], PARAMS)
            back = MockNode(engine.endpoint, 0, counting(8), incarnation=1)
            nodes.append(back.start())
            await until(lambda: engine.attendance._ready)
            assert engine.attendance.takers == [], "it says that it is ready, but is no member"
            dropped.close()
            engine.enter(membership(2, [0]))
            assert spoken(await collect(begun)) == [3, 4, 5, 6, 7]
            assert spoken(await collect(fresh)) == ALL
            assert engine.condition.phase is Phase.HEALTHY
            asked = [back.heard.get_nowait() for _ in range(back.heard.qsize())]
            assert [(m.request_id, len(m.output)) for m in asked] == [("begun", 3), ("fresh", 0)]
            assert engine.recovery.seconds[Role.ATTENTION].counts[-1] == 0
            assert sum(engine.recovery.seconds[Role.ATTENTION].counts) == 1
            assert dict(engine.attendance.restarts()) == {(Role.ATTENTION, 0): 1}

    run(work())


def test_a_membership_may_come_before_its_node_says_that_it_is_ready() -> None:
    async def work() -> None:
        async with engine_with(counting(3)) as (engine, nodes):
            stream = engine.generate("r", [7], PARAMS)
            assert await first(stream, 3) == [0, 1, 2]
            engine.lose(down(0))
            engine.enter(membership(2, [0]))
            assert engine.condition.phase is Phase.RECOVERING
            nodes.append(MockNode(engine.endpoint, 0, counting(8), incarnation=1).start())
            assert spoken(await collect(stream)) == [3, 4, 5, 6, 7]

    run(work())


def test_a_node_that_was_replaced_unnoticed_shows_by_its_incarnation() -> None:
    async def work() -> None:
        async with engine_with(counting(3)) as (engine, nodes):
            stream = engine.generate("r", [7], PARAMS)
            assert await first(stream, 3) == [0, 1, 2]
            nodes.append(MockNode(engine.endpoint, 0, counting(8), incarnation=1).start())
            assert spoken(await collect(stream)) == [3, 4, 5, 6, 7]

    run(work())


def test_a_request_that_dies_with_node_after_node_is_not_tried_for_ever() -> None:
    async def work() -> None:
        async with engine_with(silent, silent, silent, counting(8)) as (engine, nodes):
            poison = engine.generate("poison", [1] * 4, PARAMS)
            for lost in range(3):
                (holder,) = {r.at.node for r in engine._requests.values() if r.at is not None}
                await hear(nodes[holder], Submit)
                engine.lose(down(holder))
                assert engine.outstanding == (lost < 2)
            with pytest.raises(MegaInferError, match="3 attention nodes died while they had") as e:
                await anext(poison)
            assert type(e.value) is MegaInferError
            (left,) = engine.attendance.takers
            nodes[left].script = counting(8)
            assert spoken(await collect(engine.generate("good", [1], PARAMS))) == ALL

    run(work())


def test_sequences_of_a_request_go_on_each_from_its_own_tokens() -> None:
    async def work() -> None:
        def until_number(submit: Submit) -> AsyncIterator[TokenEvent]:
            return counting(int(submit.request_id))(submit)

        async with engine_with(until_number, counting(8)) as (engine, nodes):  # type: ignore[arg-type]
            engine.enter(membership(2, [0]))
            streams = [engine.generate(f"{i}", [i] * 4, PARAMS) for i in range(6)]
            begun = [await first(stream, i) for i, stream in enumerate(streams)]
            engine.lose(down(0))
            engine.enter(membership(3, [1]))
            whole = [b + spoken(await collect(s)) for b, s in zip(begun, streams, strict=True)]
            assert whole == [ALL] * 6
            asked = [await hear(nodes[1], Submit) for _ in range(6)]
            assert [len(submit.output) for submit in asked] == list(range(6))

    run(work())


def numbered(count: int) -> list[SequenceRequest]:
    return [SequenceRequest(f"{i}", [1, i], PARAMS) for i in range(count)]


def test_what_was_never_sent_to_a_node_has_lost_none_and_goes_on_nowhere() -> None:
    async def work() -> None:
        async with engine_with(silent, silent, counting(8)) as (engine, nodes):
            for node in nodes[:2]:  # of which nobody has told the front end
                await node.stop()
            await until(lambda: all(not reaches(engine, node) for node in (0, 1)))
            stream = engine.submit(numbered(9))
            assert {(r.at and r.at.node, r.losses) for r in engine._requests.values()} == {(2, 0)}
            assert spoken(await collect(stream)).count(7) == 9
            assert engine.recovery.replayed == {}
            engine._assignments._router.check_integrity()

    run(work())


def reaches(engine: EngineClient, node: int) -> bool:
    try:
        engine._socket.send(At(node, 0), Reset())
    except NodeDied:
        return False
    return True


def test_all_that_were_replayed_are_told_though_they_are_sent_off_a_piece_at_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    count = 2 * PIECE + 1

    async def work() -> None:
        async with engine_with(silent, max_outstanding=count) as (engine, nodes):
            with engine.submit(numbered(count)):
                await until(lambda: nodes[0].heard.qsize() == count)
                engine.lose(down(0))
                nodes.append(MockNode(engine.endpoint, 0, silent, incarnation=1).start())
                engine.enter(membership(2, [0]))
                await until(lambda: nodes[1].heard.qsize() == count)
                assert f"{count} were replayed" in caplog.text

    with caplog.at_level("INFO"):
        run(work())


def test_one_that_cannot_be_sent_takes_none_with_it_of_those_that_waited_too() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, nodes):
            engine.lose(down(0))
            good = [engine.generate(f"{i}", [7], PARAMS) for i in range(2)]
            bad = engine.submit([SequenceRequest("bad", [7], PARAMS, cache_salt="\ud800")])
            good.append(engine.generate("2", [7], PARAMS))
            nodes.append(MockNode(engine.endpoint, 0, counting(8), incarnation=1).start())
            engine.enter(membership(2, [0]))
            with pytest.raises(MegaInferError, match="can't be sent"):
                await anext(bad)
            assert [spoken(await collect(stream)) for stream in good] == [ALL] * 3
            engine._assignments._router.check_integrity()

    run(work())


# --- expert nodes ---------------------------------------------------------------------------------


def test_without_experts_requests_wait_where_they_are() -> None:
    async def work() -> None:
        async with engine_with(counting(3)) as (engine, nodes):
            begun = engine.generate("begun", [7], PARAMS)
            assert await first(begun, 3) == [0, 1, 2]
            engine.lose(down(0, role=Role.EXPERT))
            assert engine.condition.phase is Phase.RECOVERING
            fresh = engine.generate("fresh", [7], PARAMS)
            assert [(await hear(nodes[0], Submit)).request_id for _ in range(2)] == [
                *("begun", "fresh")
            ]
            engine.enter(membership(2, [0]))
            assert engine.condition.phase is Phase.HEALTHY
            assert engine.recovery.replayed == {}
            assert sum(engine.recovery.seconds[Role.EXPERT].counts) == 1
            for stream in (begun, fresh):
                stream.close()

    run(work())


def test_replicas_make_it_a_degraded_service() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, _):
            engine.enter(membership(2, [0], [0, 1]))
            engine.lose(down(1, role=Role.EXPERT))
            assert engine.condition.phase is Phase.RECOVERING
            engine.enter(membership(3, [0], [0]))
            assert engine.condition.phase is Phase.DEGRADED
            assert engine.condition.text == "expert node 1 died"
            assert engine.state() is None
            engine.enter(membership(4, [0], [0, 1]))
            assert engine.condition.phase is Phase.HEALTHY
            assert engine.attendance.epoch == 4
            assert sum(engine.recovery.seconds[Role.EXPERT].counts) == 1

    run(work())


def test_double_faults_are_over_with_the_first_membership_that_can_serve() -> None:
    async def work() -> None:
        async with engine_with(counting(3), counting(8)) as (engine, nodes):
            engine.enter(membership(2, [0, 1], [0, 1]))
            stream = engine.generate("r", [7], PARAMS)
            assert await first(stream, 3) == [0, 1, 2]
            engine.lose(down(1))
            engine.lose(down(0, role=Role.EXPERT))
            engine.lose(down(1, role=Role.EXPERT))
            engine.lose(down(0))
            engine.lose(down(0))  # twice told is once
            engine.lose(down(1, 1))  # once more while it loads
            assert engine.condition.phase is Phase.RECOVERING
            engine.enter(membership(3, [0], [0, 1]))
            assert engine.condition.phase is Phase.RECOVERING, "its attention node isn't there yet"
            nodes.append(MockNode(engine.endpoint, 0, counting(8), incarnation=1).start())
            assert spoken(await collect(stream)) == [3, 4, 5, 6, 7]
            assert engine.condition.phase is Phase.DEGRADED
            nodes.append(MockNode(engine.endpoint, 1, counting(8), incarnation=1).start())
            engine.enter(membership(4, [0, 1], [0, 1]))
            assert engine.condition.text == "attention node 1 is not ready yet"
            nodes.append(MockNode(engine.endpoint, 1, counting(8), incarnation=2).start())
            await until(lambda: engine.condition.phase is Phase.HEALTHY)
            assert dict(engine.attendance.restarts()) == {
                (Role.ATTENTION, 0): 1,
                (Role.ATTENTION, 1): 2,
                (Role.EXPERT, 0): 1,
                (Role.EXPERT, 1): 1,
            }

    run(work())


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.ATTENTION, Role.EXPERT])
def test_waiting_ends_after_the_timeout_naming_the_node(role: Role) -> None:
    async def work() -> None:
        async with engine_with(counting(2), recovery_seconds=0.05) as (engine, nodes):
            begun = engine.generate("begun", [7], PARAMS)
            assert await first(begun, 2) == [0, 1]
            engine.lose(down(0, role=role))
            fresh = engine.generate("fresh", [7], PARAMS)
            text = rf"{role} node 0 died: killed by SIGKILL and was not back within 0\.05 s"
            for stream in (begun, fresh):
                with pytest.raises(NodeDied, match=text):
                    await collect(stream)
            assert engine.outstanding == 0
            assert engine.condition.phase is Phase.FAILED
            with pytest.raises(NodeDied, match=text):
                engine.generate("refused", [7], PARAMS)
            if role is Role.EXPERT:
                aborted = {(await hear(nodes[0], Abort)).request_id for _ in range(2)}
                assert aborted == {"begun", "fresh"}
            else:
                nodes.append(MockNode(engine.endpoint, 0, counting(8), incarnation=1).start())
            engine.enter(membership(2, [0]))
            await until(lambda: engine.condition.phase is Phase.HEALTHY)
            nodes[-1].script = counting(8)
            assert spoken(await collect(engine.generate("again", [7], PARAMS))) == ALL

    run(work())


def test_a_recovery_in_time_stops_the_clock() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, (node,)):
            stream = engine.generate("r", [7], PARAMS)
            engine.lose(down(0, role=Role.EXPERT))
            assert engine.recovery._timer is not None
            engine.enter(membership(2, [0]))
            assert engine.recovery._timer is None
            await hear(node, Submit)
            await node.say(Tokens(0, [TokenEvent("r", [1], FinishReason.STOP)]))
            assert spoken(await collect(stream)) == [1]

    run(work())


def test_the_usual_limits_hold_while_requests_wait() -> None:
    async def work() -> None:
        limits = QueueLimits(queued=1, queue_seconds=0.05, total_seconds=0.1)
        async with engine_with(counting(1), queue_limits=limits) as (engine, nodes):
            begun = engine.generate("begun", [7], PARAMS)
            assert await first(begun, 1) == [0]
            engine.lose(down(0))
            waiting = [engine.generate(f"{i}", [7], PARAMS) for i in range(8)]
            with pytest.raises(Overloaded, match="8 can run at once and 1 may wait"):
                engine.generate("refused", [7], PARAMS)
            with pytest.raises(Overloaded, match="has waited for a node"):
                await anext(waiting[0])
            with pytest.raises(RequestTimeout, match=r"0\.1 s"):
                await anext(begun)
            assert engine.outstanding == 0
            await nodes[0].stop()

    run(work())


def test_its_end_names_what_requests_waited_for() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, _):
            stream = engine.generate("r", [7], PARAMS)
            engine.lose(down(3, role=Role.EXPERT))
            engine.fail("the server is shutting down")
            text = "expert node 3 died: killed by SIGKILL; the server is shutting down"
            with pytest.raises(NodeDied, match=text):
                await anext(stream)

    run(work())


# --- what the front end notices by itself ---------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x80", "can't be read"),
        (encode(Abort("r")), "can't be read"),
        (encode(Tokens(node=7, events=[])), "identity is 0, but it calls itself 7"),
        (encode(NodeReady(0, 1, 1, incarnation=4)), "is incarnation 0, but it calls itself 4"),
    ],
)
def test_a_node_that_talks_nonsense_is_given_up_and_reported(payload: bytes, message: str) -> None:
    async def work() -> None:
        told: list[NodeDown] = []
        async with engine_with(counting(3), counting(8), report=told.append) as (engine, nodes):
            stream = engine.generate("r", [7], PARAMS)
            assert await first(stream, 3) == [0, 1, 2]
            await nodes[0]._socket.send(payload)
            assert spoken(await collect(stream)) == [3, 4, 5, 6, 7]
            (report,) = told
            assert (report.role, report.node, report.incarnation) == (Role.ATTENTION, 0, 0)
            assert message in report.message
            assert engine.condition.phase is Phase.DEGRADED
            assert engine.condition.text == "attention node 0 can't be used"
            engine.lose(down(0))
            assert told == [report]
            assert dict(engine.attendance.restarts()) == {(Role.ATTENTION, 0): 1}

    run(work())


def test_a_node_that_is_gone_is_noticed_by_whoever_sends_to_it() -> None:
    async def work() -> None:
        told: list[NodeDown] = []
        async with engine_with(counting(3), counting(8), report=told.append) as (engine, nodes):
            stream = engine.generate("r", [7], PARAMS)
            assert await first(stream, 3) == [0, 1, 2]
            await nodes[0].stop()
            while not told:
                engine.reset_prefix_cache()
                await asyncio.sleep(0)
            assert "it can't be reached" in told[0].message
            assert spoken(await collect(stream)) == [3, 4, 5, 6, 7]

    run(work())


@pytest.mark.parametrize("count", [1, 2])
def test_what_finds_its_node_gone_is_sent_to_another_once(count: int) -> None:
    """Nobody has said yet that it died, and giving it up sends off all who wait."""

    async def work() -> None:
        told: list[NodeDown] = []
        async with engine_with(counting(8), counting(8), report=told.append) as (engine, nodes):
            await nodes[0].stop()
            with suppress(NodeDied):  # once the socket has noticed
                while True:
                    engine._socket.send(At(0, 0), Reset())
                    await asyncio.sleep(0)
            alone = [SequenceRequest(f"r{i}", [7 + i], PARAMS) for i in range(count)]
            stream = engine.submit(alone)
            assert [down.node for down in told] == [0]
            assert len(spoken(await collect(stream))) == 8 * count
            heard = [m.request_id for m in list(nodes[1].heard.queue) if isinstance(m, Submit)]
            assert sorted(heard) == [f"r{i}" for i in range(count)]

    run(work())


def test_a_node_that_reads_nothing_is_given_up() -> None:
    async def work() -> None:
        told: list[NodeDown] = []
        options: dict[str, Any] = {"max_outstanding": 1, "report": told.append}
        async with engine_with(silent, **options) as (engine, _):
            context = zmq.asyncio.Context()
            deaf = dealer(context, engine.endpoint, node=1)
            await deaf.send(encode(NodeReady(1, CONTEXT, max_num_seqs=1)))
            engine.enter(membership(2, [1]))
            await until(lambda: engine.attendance.takers == [1])
            while not told:
                engine.reset_prefix_cache()
            assert (told[0].node, told[0].message) == (1, "it takes no messages; its queue is full")
            assert engine.attendance.takers == []
            context.destroy(linger=0)

    run(work())


def test_a_server_that_starts_in_the_middle_waits_for_those_that_are_up() -> None:
    async def work() -> None:
        engine = EngineClient("ipc://@megainfer-test-middle", 3, 1000)
        engine.bind()
        starting = asyncio.create_task(engine.start(WAIT_SECONDS))
        engine.enter(membership(7, [0, 1]))
        engine.lose(down(1, 4))
        node = MockNode(engine.endpoint, 0, counting(8), incarnation=2).start()
        await starting
        assert engine.condition.phase is Phase.DEGRADED
        assert spoken(await collect(engine.generate("r", [1], PARAMS))) == ALL
        await node.stop()
        await engine.close()

    run(work())
