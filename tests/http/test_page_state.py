"""What the live view is told of nodes that die, come and go, of placements, by any API server."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from megainfer.frontend.serving_options import ServingOptions
from megainfer.messages.from_child import Stats
from megainfer.messages.message import Role
from megainfer.messages.to_child import Away, Chronicle, Event, KeepSpans, NodeDown, NodeGone
from megainfer.planner.live.terms import Load, Terms
from megainfer.sampling import SamplingParams
from megainfer.topology import Membership, first_membership, placement_of
from server.openai.served_model import ServedModel
from server.operate import siblings as siblings_module
from server.operate.instance import Instance, Surroundings, assemble
from server.operate.metrics.terms import Expectation
from server.operate.nodes import NodeBoard, NodeState
from server.operate.siblings import Address, alone
from server.operate.traces import Tracer
from server.page import node_view, routes
from server.page.routes import Page
from server.page.timeline import Timeline
from tests.support.engine_talk import collect, run
from tests.support.scripted_server import RunningServer, engine_with, silent, speaking

MODEL = ServedModel(("tiny",), max_model_len=256, vocab_size=1000, created=0)
PARAMS = SamplingParams(max_tokens=8)
TWICE = placement_of(2, {3: ((0, 1), (1, 0)), 4: ((1, 0), (0,))})
FIRST = first_membership(1, TWICE)


class Watched:
    """An instance with one attention and two expert nodes, told things as by its supervisor."""

    def __init__(self, instance: Instance, now: list[float]) -> None:
        self.instance, self.now = instance, now
        self.page = Page(instance)
        self.enter(FIRST)

    def enter(self, membership: Membership) -> None:
        self.instance.board.enter(membership)
        self.instance.counted.engine.enter(membership)

    def lose(self, role: Role, node: int) -> None:
        self.instance.board.lose(role, node)
        self.instance.counted.engine.lose(NodeDown(role, node, "killed by SIGKILL"))

    async def state(self) -> dict[str, Any]:
        return json.loads((await self.page.state()).body)

    async def states(self) -> dict[str, str]:
        return {node["name"]: node["state"] for node in (await self.state())["nodes"]}


@asynccontextmanager
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(routes, "FRESH_SECONDS", 0.0)
    now = [100.0]
    attention = NodeState(Role.ATTENTION, 0)
    experts = [NodeState(Role.EXPERT, index) for index in range(2)]
    board = NodeBoard([attention, *experts], clock=lambda: now[0])
    async with engine_with(silent) as (engine, _):
        yield Watched(assemble(engine, MODEL, ServingOptions(), Surroundings(board)), now)


# --- nodes ----------------------------------------------------------------------------------------


def test_a_node_is_lost_comes_back_and_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr(node_view.time, "time", lambda: 1007.5)
        async with watched(monkeypatch) as seen:
            board = seen.instance.board
            for name in ("attention node 0", "expert node 0", "expert node 1"):
                board.hear(Stats(None, {name: {"clock_seconds": 1.0}}))
            assert set((await seen.states()).values()) == {"serving"}
            seen.lose(Role.EXPERT, 1)
            died = Event(1000.0, "expert node 1 died: killed by SIGKILL")
            lost = Chronicle([died], {"expert node 1": Away(1000.0)}, {"expert node 1": 3})
            board.chronicle = lost
            state = await seen.state()
            (node,) = [node for node in state["nodes"] if node["name"] == "expert node 1"]
            assert (node["state"], node["away_seconds"], node["restarts"]) == ("lost", 7.5, 3)
            assert state["events"] == [[1000.0, "expert node 1 died: killed by SIGKILL"]]
            assert (state["health"], state["problem"]) == ("recovering", "expert node 1 died")
            board.chronicle = Chronicle([died], {"expert node 1": Away(1000.0, returning=True)})
            assert (await seen.states())["expert node 1"] == "returning"
            seen.now[0] = 110.0
            board.chronicle = Chronicle([died], {}, {"expert node 1": 3})
            seen.enter(Membership(2, (0,), (0, 1), TWICE))
            seen.now[0] = 112.0
            (node,) = [n for n in (await seen.state())["nodes"] if n["name"] == "expert node 1"]
            assert (node["state"], node["back_seconds"], node["restarts"]) == ("serving", 2.0, 3)
            assert (await seen.state())["epoch"] == 2

    run(work())


def test_nodes_join_take_no_part_hang_and_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with watched(monkeypatch) as seen:
            board = seen.instance.board
            board.hear(Stats(None, {"expert node 2": {"clock_seconds": 1.0}}))
            assert (await seen.states())["expert node 2"] == "joining"
            wide = placement_of(3, {3: ((0,), (2,)), 4: ((1,), (0,))})
            seen.enter(Membership(2, (0,), (0, 1, 2), wide))
            assert (await seen.states())["expert node 2"] == "serving"
            seen.enter(Membership(3, (0,), (0, 1), placement_of(3, {3: ((0,), (1,))})))
            assert (await seen.states())["expert node 2"] == "apart"
            board.forget(Role.EXPERT, 2)
            seen.instance.counted.engine.forget(NodeGone(Role.EXPERT, 2))
            assert "expert node 2" not in await seen.states()
            seen.now[0] += 100.0
            assert set((await seen.states()).values()) == {"hung"}

    run(work())


# --- terms ----------------------------------------------------------------------------------------


class Expecting:
    """As an outlook."""

    def terms(self, load: Load) -> Terms:
        return Terms(attention=1e-3, experts=2e-3, transfer=0.0, outside=0.0, token=4e-3)


def test_terms_stand_beside_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with watched(monkeypatch) as seen:
            board, counted = seen.instance.board, seen.instance.counted
            assert (await seen.state())["terms"] == []
            for steps in (1, 3):
                attention = {
                    "clock_seconds": float(steps),
                    "steps": steps,
                    "generated_tokens": steps,
                    "dispatch_count": 2 * steps,
                    "dispatch_seconds": steps * 6e-3,
                }
                experts = {"expert_count": 2 * steps, "expert_seconds": steps * 4e-3}
                board.hear(Stats(None, {"attention node 0": attention, "expert node 0": experts}))
            measured = {"attention": 3e-3, "experts": 2e-3, "token": 1.0}
            told = {row["term"]: row for row in (await seen.state())["terms"]}
            assert {term: row["measured"] for term, row in told.items()} == pytest.approx(measured)
            assert all(row["expected"] is None for row in told.values())
            counted.expectation = Expectation(Expecting())
            told = {row["term"]: row["expected"] for row in (await seen.state())["terms"]}
            assert told == {"attention": 1e-3, "experts": 2e-3, "token": 4e-3}

    run(work())


# --- placement ------------------------------------------------------------------------------------


def test_the_placement_is_sent_once_an_epoch() -> None:
    with RunningServer(None) as server, httpx.Client(base_url=server.url, trust_env=False) as http:
        assert http.get("/page/placement").json() is None
        server.instance.board.enter(Membership(7, (0,), (0, 1), TWICE))
        first = http.get("/page/placement")
        assert first.json() == {
            "epoch": 7,
            "nodes": [0, 1],
            "experts": 2,
            "layers": [[3, 0], [4, 1]],
            "tables": [
                [[[0, 16], [1, 0]], [[0, 0], [1, 16]]],
                [[[0, 0], [1, 16]], [[0, 16]]],
            ],
        }
        known = {"If-None-Match": first.headers["etag"]}
        again = http.get("/page/placement", headers=known)
        assert (again.status_code, again.content) == (304, b"")
        server.instance.board.enter(Membership(8, (0,), (0,), placement_of(1, {3: ((0,),)})))
        later = http.get("/page/placement", headers=known)
        assert (later.status_code, later.json()["nodes"]) == (200, [0])


# --- several API servers --------------------------------------------------------------------------


@asynccontextmanager
async def pages(count: int, there: int) -> AsyncIterator[list[tuple[Instance, Page]]]:
    """The first ones of so many API servers of an instance."""
    token = secrets.token_hex(8)
    name: Callable[[int], str] = lambda n: f"megainfer-test-{token}-{n}"  # noqa: E731
    made: list[tuple[Instance, Page]] = []
    async with engine_with(speaking(7, 8)) as (one, _), engine_with(speaking(7, 8)) as (other, _):
        for number, engine in list(enumerate((one, other)))[:there]:
            address = Address(number, count, name) if count > 1 else alone()
            around = Surroundings(NodeBoard(), siblings=address)
            instance = assemble(engine, MODEL, ServingOptions(), around)
            made.append((instance, Page(instance)))
            await instance.exposition.siblings.open()
        try:
            yield made
        finally:
            for instance, _page in made:
                await instance.exposition.siblings.close()


COUNTED = ("in_flight", "prompt_tokens", "generation_tokens", "first_token", "between_tokens")


def test_whichever_server_answers_requests_are_counted_over_all() -> None:
    async def work() -> None:
        async with pages(3, 2) as made:
            for (instance, _), requests in zip(made, (1, 3), strict=True):
                for number in range(requests):
                    await collect(instance.counted.engine.generate(f"{number}", [1, 2], PARAMS))
            made[1][0].occupancy.in_flight = 2
            states = [json.loads((await page.state()).body) for _, page in made]
            assert [state["generation_tokens"] for state in states] == [8, 8]
            assert [state["prompt_tokens"] for state in states] == [8, 8]
            assert [sum(state["first_token"]["counts"]) for state in states] == [4, 4]
            for name in COUNTED:
                assert states[0][name] == states[1][name], name

    run(work())


def test_one_that_is_asked_for_what_it_does_not_know_says_nothing() -> None:
    async def work() -> None:
        async with pages(2, 2) as made:
            assert await made[0][0].exposition.siblings.ask("weather") == {1: b""}

    run(work())


def test_all_who_look_at_once_cause_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with pages(1, 1) as ((instance, page),):
            asked = 0
            ask = instance.exposition.siblings.ask

            async def counting(what: str) -> dict[int, bytes]:
                nonlocal asked
                asked += 1
                return await ask(what)

            monkeypatch.setattr(instance.exposition.siblings, "ask", counting)
            answers = await asyncio.gather(*(page.state() for _ in range(5)))
            assert (asked, len({answer.body for answer in answers})) == (1, 1)

    run(work())


# --- timeline -------------------------------------------------------------------------------------


def test_nodes_that_come_back_are_told_that_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    epoch = 1

    async def main() -> None:
        nonlocal epoch
        timeline = Timeline(Tracer(asked.append, lambda: 0), 1, lambda: epoch)
        for _ in range(2):
            await timeline.look()
        epoch = 2
        for _ in range(2):
            await timeline.look()

    asyncio.run(main())
    assert asked == [KeepSpans(1200)] * 2


def test_a_sibling_that_asks_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings_module, "ASK_SECONDS", 0.05)

    async def work() -> None:
        async with pages(2, 1) as ((instance, _),):
            path = f"\0{instance.exposition._address.name(0)}"
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.read() == b""
            writer.close()

    run(work())
