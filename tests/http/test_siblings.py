"""Several API servers of one instance: limits and metrics are of all together."""

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from megainfer.commands.listening import listen, reserve
from megainfer.errors import ConfigError, Overloaded
from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.queue_limits import QueueLimits
from megainfer.frontend.router import Router
from megainfer.frontend.serving_options import MAX_API_SERVERS, ServingOptions
from megainfer.frontend.shared_loads import MAX_NODES, SharedLoads
from megainfer.sampling import SamplingParams
from server.openai.served_model import ServedModel
from server.operate import siblings as siblings_module
from server.operate.instance import Instance, Surroundings, assemble
from server.operate.nodes import NodeBoard
from server.operate.siblings import Address
from tests.support.engine_talk import collect, run
from tests.support.scripted_server import engine_with, silent, speaking

MODEL = ServedModel(("tiny",), max_model_len=256, vocab_size=1000, created=0)
PARAMS = SamplingParams(max_tokens=8)


# --- limits ---------------------------------------------------------------------------------------


@asynccontextmanager
async def two_engines(**options: Any) -> AsyncIterator[list[EngineClient]]:
    loads = SharedLoads(2)
    async with AsyncExitStack() as stack:
        made = [engine_with(silent, load=loads.of(n), **options) for n in range(2)]
        yield [(await stack.enter_async_context(engine))[0] for engine in made]


def test_the_last_room_is_everybodys() -> None:
    async def work() -> None:
        async with two_engines(max_outstanding=3) as (one, other):
            first = one.generate("a", [1], PARAMS)
            other.generate("b", [1], PARAMS)
            one.generate("c", [1], PARAMS)
            for engine in (one, other):
                with pytest.raises(Overloaded, match="3 sequences are in flight and 1 more"):
                    engine.generate("d", [1], PARAMS)
            first.close()
            other.generate("d", [1], PARAMS)
            with pytest.raises(Overloaded):
                one.generate("e", [1], PARAMS)

    run(work())


def test_the_queue_is_everybodys() -> None:
    async def work() -> None:
        async with two_engines(queue_limits=QueueLimits(queued=1)) as (one, other):
            for number in range(8):
                one.generate(f"{number}", [1], PARAMS)
            other.generate("waits", [1], PARAMS)
            with pytest.raises(Overloaded, match="9 sequences are in flight, 8 can run at once"):
                other.generate("refused", [1], PARAMS)

    run(work())


def test_a_server_that_starts_again_has_nothing_in_flight() -> None:
    loads = SharedLoads(2)
    first, second = loads.of(0), loads.of(1)
    first.set_sequences(5)
    first.set_tokens(3, 70)
    assert (second.others_sequences(), second.others_tokens(3), second.others_tokens(2)) == (
        *(5, 70),
        0,
    )
    loads.of(0)
    assert (second.others_sequences(), second.others_tokens(3)) == (0, 0)
    second.set_tokens(MAX_NODES, 1)
    assert first.others_tokens(MAX_NODES) == 0, "too many nodes to tell of; no harm"


def test_routers_know_of_each_others_load() -> None:
    loads = SharedLoads(2)
    one, other = (Router(2, shared=loads.of(n)) for n in range(2))
    assert one.assign("a", [1] * 100, 10) == 0
    assert other.assign("b", [2] * 50, 10) == 1
    assert other.assign("c", [3] * 20, 10) == 1
    one.release("a")
    assert other.assign("d", [4] * 20, 10) == 0


# --- the port -------------------------------------------------------------------------------------


def test_one_port_has_a_socket_for_each_server_and_no_room_for_another_instance() -> None:
    sockets = reserve("127.0.0.1", 0, 3)
    listen(sockets)
    (address,) = {sock.getsockname() for sock in sockets}
    try:
        for count in (1, 2):
            with pytest.raises(ConfigError, match="Address already in use"):
                reserve(*address, count)
        reached: set[int] = set()
        while len(reached) < 3:  # the kernel chooses by the client's port
            with socket.create_connection(address):
                reached |= {n for n, sock in enumerate(sockets) if accepted(sock)}
    finally:
        for sock in sockets:
            sock.close()


def accepted(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("count", [0, MAX_API_SERVERS + 1])
def test_a_number_of_servers_that_can_not_be_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"--api-servers must be from 1 to 64, not {count}"):
        ServingOptions(api_servers=count)


# --- metrics --------------------------------------------------------------------------------------


@asynccontextmanager
async def instances(count: int) -> AsyncIterator[list[Instance]]:
    """So many API servers that know of each other; all but the last are there."""
    token = secrets.token_hex(8)
    async with AsyncExitStack() as stack:
        made = []
        for number in range(count - 1):
            engine, _ = await stack.enter_async_context(engine_with(speaking(7, 8)))
            address = Address(number, count, lambda n: f"megainfer-test-{token}-{n}")
            around = Surroundings(NodeBoard(), siblings=address)
            made.append(assemble(engine, MODEL, ServingOptions(), around))
            await made[-1].exposition.siblings.open()
            stack.push_async_callback(made[-1].exposition.siblings.close)
        yield made


def values(text: str, name: str) -> dict[str, float]:
    """Of a family, by server."""
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    return {sample.labels["server"]: sample.value for sample in samples if sample.name == name}


def test_any_server_tells_of_all_that_are_there() -> None:
    async def work() -> None:
        async with instances(3) as (one, other):
            for instance, requests in ((one, 1), (other, 3)):
                for number in range(requests):
                    await collect(instance.counted.engine.generate(f"{number}-0", [1], PARAMS))
            texts = [(await i.exposition.render(""))[0].decode() for i in (one, other)]
            for text in texts:
                assert values(text, "megainfer:generation_tokens_total") == {"0": 2, "1": 6}
                assert values(text, "megainfer:e2e_request_latency_seconds_count") == {
                    "0": 1,
                    "1": 3,
                }
                assert set(values(text, "process_cpu_seconds_total")) == {"0", "1"}
                assert text.count("# TYPE megainfer:generation_tokens_total counter") == 1
            assert 'megainfer:epoch{model_name="tiny"} 1.0' in texts[0]

    run(work())


def test_alone_nothing_has_a_label_of_servers() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, _):
            instance = assemble(engine, MODEL, ServingOptions())
            body, _ = await instance.exposition.render("")
            assert b"server=" not in body
            assert b"process_cpu_seconds_total" in body

    run(work())


def test_one_that_hangs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings_module, "ASK_SECONDS", 0.05)

    async def work() -> None:
        async with instances(3) as (one, other):
            path = f"\0{other.exposition._address.name(2)}"
            with socket.socket(socket.AF_UNIX) as silent_one:
                silent_one.bind(path)
                silent_one.listen()
                text = (await one.exposition.render(""))[0].decode()
                assert set(values(text, "megainfer:server_load")) == {"0", "1"}

    run(work())


def test_another_users_process_is_told_nothing_and_believed_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        async with instances(3) as (one, _):
            monkeypatch.setattr(siblings_module, "peer_uid", lambda connection: 65534)
            text = (await one.exposition.render(""))[0].decode()
            assert set(values(text, "megainfer:server_load")) == {"0"}

    run(work())
