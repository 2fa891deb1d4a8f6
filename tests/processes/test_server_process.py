"""The API server's process, up to its end, with the supervisor's and the nodes' parts played."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from megainfer.config import EngineConfig
from megainfer.errors import MegaInferError
from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.serving_options import ServingOptions
from megainfer.frontend.shared_loads import SharedLoads
from megainfer.launch.control import ChildLink, link_pair
from megainfer.launch.heartbeat import Page
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.launch.station import Station
from megainfer.messages.from_child import Opened, Ready
from megainfer.messages.message import Role
from megainfer.messages.requests import Tokens
from megainfer.messages.to_child import Enter, NodeDown, Stop
from megainfer.model_folder.deployment import Deployment
from megainfer.topology import first_membership
from server.process import ServerSeat, _Server
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import WAIT_SECONDS, MockNode, silent


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = write_checkpoint("olmoe", "mha", tmp_path_factory.mktemp("model"))
    return make_plan(EngineConfig(model=str(folder)), folder, read_machine())


@asynccontextmanager
async def served(plan: Plan) -> AsyncIterator[tuple[asyncio.Task[None], MockNode, ChildLink]]:
    """A server that has said that it is ready: its life, its only node, and the supervisor's end
    of its link."""
    ours, theirs = link_pair()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        options = ServingOptions(names=("tiny",))
        seat = ServerSeat(0, [sock], SharedLoads(1))
        station, deployment = Station(theirs, Page()), Deployment(plan, None, "")
        living = asyncio.create_task(_Server(station, deployment, options, seat).run(sock))
        await asyncio.to_thread(ours.expect, Opened, WAIT_SECONDS)
        node = MockNode(plan.front_endpoint(), 0, silent)
        speaking = asyncio.create_task(node.run())
        try:
            await asyncio.to_thread(ours.expect, Ready, WAIT_SECONDS)
            yield living, node, ours
        finally:
            for task in (living, speaking):
                task.cancel()
            await asyncio.gather(living, speaking, return_exceptions=True)
            ours.close()
            theirs.close()


def test_a_server_that_can_not_hear_any_more_ends_and_says_why(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with served(plan) as (living, node, _):
            monkeypatch.setattr(EngineClient, "_on_message", lambda *_: 1 / 0)
            await node.say(Tokens(node=0, events=[]))
            with pytest.raises(MegaInferError, match=r"can't hear from the nodes.*Zero"):
                await asyncio.wait_for(living, WAIT_SECONDS)

    asyncio.run(work())


def test_a_server_that_misses_what_the_supervisor_says_ends_and_says_why(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with served(plan) as (living, _, supervisor):
            monkeypatch.setattr(EngineClient, "enter", lambda *_: 1 / 0)
            supervisor.send(Enter(first_membership(1, plan.placement)))
            with pytest.raises(MegaInferError, match=r"can't hear from the supervisor.*Zero"):
                await asyncio.wait_for(living, WAIT_SECONDS)

    asyncio.run(work())


def test_a_node_that_can_not_be_used_is_the_supervisors_business(plan: Plan) -> None:
    async def work() -> None:
        async with served(plan) as (living, node, supervisor):
            await node._socket.send(b"\x80")
            report = await asyncio.to_thread(supervisor.expect, NodeDown, WAIT_SECONDS)
            assert (report.role, report.node, report.incarnation) == (Role.ATTENTION, 0, 0)
            assert "can't be read" in report.message
            supervisor.send(NodeDown(role=Role.ATTENTION, node=0, message="killed"))
            supervisor.send(Stop())
            await asyncio.wait_for(living, WAIT_SECONDS)

    asyncio.run(work())
