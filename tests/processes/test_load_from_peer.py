"""A host whose model folder lacks weights: another host of the instance gives them."""

import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from megainfer.agent.fetching import Fetching
from megainfer.agent.giving import serve_weights
from megainfer.checkpoint.headers import INDEX
from megainfer.checkpoint.lacking import lacking
from megainfer.errors import MegaInferError
from megainfer.hosts.wire import Wire, await_messages
from megainfer.messages.hosts import Peer, ToAttendant, WeightsListed, to_attendant_decoder
from tests.processes.launched import await_output
from tests.support.agents import AgentProcess, free_port, wait_until_ready, write_token
from tests.support.chaos.instance import write_model
from tests.support.served import Served, answer, serving

PROMPT, TOKENS = [5, 6, 7, 8] * 8, 16
OPTIONS = ("--micro-batches", "1", "--dtype", "float32", "--kv-cache-memory", "4MiB")
SHARED, EXPERTS = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TOKEN, SECONDS = b"a token that is long enough to be one", 30.0
WHOLE, HALF = "127.0.0.2", "127.0.0.3"
PLACES = ("attention.0=whole", "expert.0=half")
GONE_SECONDS, HANG_SECONDS = 30.0, 120.0
CAME = re.compile(r"half expert-1 \| .* experts came from expert node 0")
TWO_EXPERTS = ("attention.0=whole", "expert.0=whole", "expert.1=half")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its experts in a file of their own."""
    folder = write_model(tmp_path_factory.mktemp("model"))
    (single,) = folder.glob("*.safetensors")
    tensors = load_file(single)
    single.unlink()
    of = {name: EXPERTS if ".experts." in name else SHARED for name in tensors}
    for file in (SHARED, EXPERTS):
        held = {name: tensor for name, tensor in tensors.items() if of[name] == file}
        save_file(held, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": of}))
    return folder


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    with serving(str(model), *OPTIONS) as served:
        return answer(served, PROMPT, TOKENS)


@contextmanager
def two_hosts(
    model: Path, other: Path, folder: Path, *options: str, places: Sequence[str] = PLACES
) -> Iterator[tuple[Served, dict[str, AgentProcess]]]:
    """The attention node where the model is whole, the expert node where the other folder is,
    unless it is to be otherwise; the server, and the agents."""
    token, address = write_token(folder), ("127.0.0.1", free_port())
    with ExitStack() as stack:
        served = Served(
            [
                *(str(model), *OPTIONS, "--agents", "2", "--token-file", str(token), *options),
                *("--listen-agents", "{}:{}".format(*address)),
                *(word for place in places for word in ("--place", place)),
            ],
            wait=False,
        )
        stack.callback(served.kill)
        agents = {}
        for name, at, own in (("whole", WHOLE, model), ("half", HALF, other)):
            where = ("--host", at, "--name", name, "--model", str(own))
            agents[name] = AgentProcess.joining(address, token, *where)
            stack.callback(agents[name].kill)
        wait_until_ready(served, [*agents.values()])
        yield served, agents


def without_experts(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    (folder / EXPERTS).unlink()
    return folder


def test_experts_come_from_the_host_that_has_them(
    model: Path, expected: list[int], tmp_path: Path
) -> None:
    other = without_experts(model, tmp_path / "other")
    assert lacking(other) == {EXPERTS}
    with two_hosts(model, other, tmp_path, "--load-from-peer") as (served, _):
        assert answer(served, PROMPT, TOKENS) == expected
        assert "half expert-0 | copying 1 files with weights" in served.output
    assert (other / EXPERTS).read_bytes() == (model / EXPERTS).read_bytes()
    assert sorted(path.name for path in other.iterdir()) == sorted(
        path.name for path in model.iterdir()
    )


# --- from nodes that serve ------------------------------------------------------------------------


def change(served: Served, path: str, body: dict[str, Any]) -> None:
    said = httpx.post(f"{served.url}{path}", json=body, timeout=120, trust_env=False)
    assert said.status_code == 200, said.text


def test_experts_come_from_nodes_that_have_them_and_else_from_files(
    model: Path, expected: list[int], tmp_path: Path
) -> None:
    """Once the instance serves; the other host lacks them again and again."""
    other = without_experts(model, tmp_path / "other")
    options = ("--ffn-gpus", "2", "--load-from-peer")
    with two_hosts(model, other, tmp_path, *options, places=TWO_EXPERTS) as (served, agents):
        lost = other / EXPERTS
        lost.unlink()  # it was copied for the first start
        told = len(served.output)
        change(served, "/admin/scale", {"ffn": 1})
        agents["half"].await_nodes(0, GONE_SECONDS)
        change(served, "/admin/scale", {"ffn": 2})  # a node that starts
        assert answer(served, PROMPT, TOKENS) == expected
        assert CAME.search(served.output, told)
        assert not lost.exists()

        told = len(served.output)
        os.kill(agents["half"].nodes()["expert-1"], signal.SIGKILL)  # nobody else has what it had
        assert answer(served, PROMPT, TOKENS) == expected
        assert "copying 1 files with weights" in served.output[told:]
        lost.unlink()

        told = len(served.output)
        change(served, "/admin/drain", {"node": "expert-0"})  # to a node that serves
        assert answer(served, PROMPT, TOKENS) == expected
        assert CAME.search(served.output, told)
        assert not lost.exists()


def test_a_node_that_is_started_again_has_its_experts_from_their_replicas(
    model: Path, expected: list[int], tmp_path: Path
) -> None:
    other = without_experts(model, tmp_path / "other")
    options = ("--ffn-gpus", "2", "--expert-replicas", "4", "--load-from-peer")
    with two_hosts(model, other, tmp_path, *options, places=TWO_EXPERTS) as (served, agents):
        lost = other / EXPERTS
        lost.unlink()
        told = len(served.output)
        os.kill(agents["half"].nodes()["expert-1"], signal.SIGKILL)
        await_output(served, lambda output: "expert node 1 is back" in output[told:])
        assert answer(served, PROMPT, TOKENS) == expected
        assert CAME.search(served.output, told)
        assert not lost.exists()


@pytest.mark.slow
def test_one_that_hangs_holds_nobody_up_for_long(
    model: Path, expected: list[int], tmp_path: Path
) -> None:
    """Who asks it in vain is started again, with files that are copied."""
    other = without_experts(model, tmp_path / "other")
    options = ("--ffn-gpus", "2", "--expert-replicas", "4", "--load-from-peer")
    with two_hosts(model, other, tmp_path, *options, places=TWO_EXPERTS) as (served, agents):
        (other / EXPERTS).unlink()
        told = len(served.output)
        os.kill(agents["whole"].nodes()["expert-0"], signal.SIGSTOP)
        os.kill(agents["half"].nodes()["expert-1"], signal.SIGKILL)
        await_output(served, lambda output: "expert node 1 is back" in output[told:], HANG_SECONDS)
        assert "expert node 0 gives no experts: " in served.output[told:]
        assert "copying 1 files with weights" in served.output[told:]
        assert answer(served, PROMPT, TOKENS) == expected


# --- files ----------------------------------------------------------------------------------------


def plain_wire(connection: socket.socket) -> Wire[ToAttendant]:
    return Wire(connection, TOKEN, to_attendant_decoder, "a host", False, 10.0)


@contextmanager
def giving(folder: Path, sizes: dict[str, int] | None = None) -> Iterator[Peer]:
    """A host that gives one other what is in a folder; sizes: what it says of that instead."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def give() -> None:
            wire = plain_wire(server.accept()[0])
            try:
                said = await_messages(wire, SECONDS)
                if sizes is None:
                    serve_weights(wire, said, folder)
                else:
                    wire.send(WeightsListed(sizes))
                    await_messages(wire, SECONDS)
            except MegaInferError:
                pass  # the other has heard enough
            finally:
                wire.close()

        thread = threading.Thread(target=give)
        thread.start()
        yield Peer("left", *server.getsockname())
    thread.join(SECONDS)


def bring(folder: Path, *peers: Peer) -> list[str]:
    """What is told of it."""
    told: list[str] = []
    Fetching(peers, TOKEN, None, lambda: None, told.append).bring(folder, b"")
    return told


def test_a_folder_without_any_weights_gets_all(model: Path, tmp_path: Path) -> None:
    assert lacking(model) == set()
    assert lacking(tmp_path) is None
    with giving(model) as peer:
        told = bring(tmp_path, peer)
    assert told[0].startswith("copying 3 files with weights, ")
    for name in (SHARED, EXPERTS, INDEX):
        assert (tmp_path / name).read_bytes() == (model / name).read_bytes()
    assert len(list(tmp_path.iterdir())) == 3, "nothing else is left"


def test_the_next_host_is_asked_and_then_it_goes_by_what_is_there(
    model: Path, tmp_path: Path
) -> None:
    other, empty = without_experts(model, tmp_path / "other"), tmp_path / "empty"
    empty.mkdir()
    gone = Peer("gone", "127.0.0.1", free_port())
    with giving(empty) as poor:
        told = bring(other, gone, poor)
    assert told[0].startswith("no weights from host gone: it can't be reached")
    assert told[1] == "no weights from host left: it hasn't them either"
    assert told[2] == f"no host gives the weights that {other} lacks; going by what is there"
    with giving(model) as peer:
        told = bring(other, gone, peer)
    assert told[-1].startswith("copied ")
    assert lacking(other) == set()


def test_what_a_host_says_names_no_other_file(model: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    names = ["../x.safetensors", "config.json", "..", "/tmp/x.gguf", ""]
    with giving(model, dict.fromkeys(names, 8)) as peer:
        told = bring(inner, peer)
    assert told[0] == "no weights from host left: it hasn't them either"
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert list(inner.iterdir()) == []


def test_more_than_there_is_room_for_is_not_begun(model: Path, tmp_path: Path) -> None:
    with giving(model, {SHARED: 1 << 60}) as peer:
        told = bring(tmp_path, peer)
    assert "has room for" in told[0]
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_goes_leaves_no_half_of_a_file(model: Path, tmp_path: Path) -> None:
    with giving(model, {SHARED: 1 << 20}) as peer:
        told = bring(tmp_path, peer)
    assert "no weights from host left: host left" in told[1]
    assert list(tmp_path.iterdir()) == []
