"""The API server's process, up to its end, with the supervisor's and the nodes' parts played."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from megainfer.config import EngineConfig
from megainfer.errors import MegaInferError
from megainfer.frontend.serving_options import ServingOptions
from megainfer.launch.control import ChildLink, link_pair
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.messages import NodeDown, Ready, Role, Stop
from server.process import _Server
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
        living = asyncio.create_task(_Server(theirs, plan, options).run(sock))
        node = MockNode(plan.endpoint, 0, silent)
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
    monkeypatch.setattr("server.process.SUPERVISOR_SECONDS", 0.01)

    async def work() -> None:
        async with served(plan) as (living, node, _):
            await node._socket.send(b"\x80")
            with pytest.raises(MegaInferError, match="attention node 0: sent a message that can't"):
                await asyncio.wait_for(living, WAIT_SECONDS)

    asyncio.run(work())


@pytest.mark.parametrize("told", [True, False], ids=["told of the death", "told to stop"])
def test_a_dead_node_is_the_supervisors_business(plan: Plan, told: bool) -> None:
    async def work() -> None:
        async with served(plan) as (living, node, supervisor):
            if told:
                supervisor.send(NodeDown(role=Role.ATTENTION, node=0, message="killed"))
            await node._socket.send(b"\x80")
            supervisor.send(Stop())
            await asyncio.wait_for(living, WAIT_SECONDS)

    asyncio.run(work())
