"""Weights that another process broadcasts, by torch.distributed, to an instance and to a server."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file

from megainfer import LLM, SamplingParams
from megainfer.errors import CheckpointError, ConfigError
from megainfer.weight_group.joining import announced
from megainfer.weight_group.wishes import BroadcastWeights, Group
from tests.support.old_and_new import Models, write_models
from tests.support.served import Served, serving

PROMPT = list(range(3, 30))
SECONDS = 60.0
TRAINER = """
import os, signal, sys, time
from itertools import islice
from safetensors.torch import load_file
from megainfer.weight_group.joining import broadcast, join_group
from megainfer.weight_group.wishes import Group

file, port, seconds, count, end = sys.argv[1:]
tensors = load_file(file)
print("here", flush=True)
group = join_group(Group("127.0.0.1", int(port), seconds=float(seconds)), rank=0)
for line in sys.stdin:  # a broadcast each
    broadcast(group, dict(islice(tensors.items(), int(count))))
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("models"))


class Trainer:
    """A process of its own, which broadcasts when told to: `count` tensors of a file, then `end`:
    "kill", or it goes on."""

    def __init__(self, file: Path, port: int, count: int, end: str, seconds: float) -> None:
        arguments = map(str, (file, port, seconds, count, end))
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "here\n"

    def send(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("now\n")
        self.process.stdin.flush()


@contextmanager
def trainer(
    file: Path, port: int, count: int = 10**6, end: str = "", seconds: float = SECONDS
) -> Iterator[Trainer]:
    own = Trainer(file, port, count, end, seconds)
    try:
        yield own
    finally:
        own.process.kill()
        own.process.communicate()


def free_port() -> int:
    """The trainer takes it at once."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def of(folder: Path) -> BroadcastWeights:
    return announced(load_file(folder / "model.safetensors"))


def tokens(llm: LLM) -> list[int]:
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    return llm.generate([PROMPT], params, progress=False)[0].outputs[0].token_ids


def fresh(folder: Path) -> list[int]:
    with LLM(str(folder), micro_batches=1, progress=False) as llm:
        return tokens(llm)


def test_an_instance_takes_what_is_broadcast(models: Models) -> None:
    expected, port = fresh(models.new), free_port()
    with (
        LLM(str(models.old), micro_batches=1, attn_gpus=2, ffn_gpus=2, progress=False) as llm,
        trainer(models.new / "model.safetensors", port) as sender,
    ):
        before = tokens(llm)
        with pytest.raises(ConfigError, match="call join_weight_group first"):
            llm.update_weights(of(models.new))
        llm.join_weight_group(Group("127.0.0.1", port))
        for number in ("1", "2"):
            sender.send()
            assert llm.update_weights(of(models.new)) == number
            assert tokens(llm) == expected != before
        llm.leave_weight_group()
        assert llm.update_weights(models.old) == "3"
        assert tokens(llm) == before


@pytest.mark.parametrize("end", ["kill", "silence"])
def test_a_broadcast_that_breaks_off_leaves_the_old_weights(models: Models, end: str) -> None:
    port, count = free_port(), len(of(models.new).tensors) // 2
    seconds = SECONDS if end == "kill" else 6.0
    with (
        LLM(str(models.old), micro_batches=1, progress=False) as llm,
        trainer(models.new / "model.safetensors", port, count, end, seconds) as sender,
    ):
        before = tokens(llm)
        llm.join_weight_group(Group("127.0.0.1", port, seconds=seconds))
        sender.send()
        with pytest.raises(CheckpointError, match="the broadcast of weights failed"):
            llm.update_weights(of(models.new))
        assert llm.weight_version == "0"
        assert tokens(llm) == before
        with pytest.raises(ConfigError, match="join one again"):
            llm.update_weights(of(models.new))


def test_what_was_announced_amiss_changes_nothing(models: Models) -> None:
    port, whole = free_port(), of(models.new)
    with (
        LLM(str(models.old), micro_batches=1, progress=False) as llm,
        trainer(models.new / "model.safetensors", port, count=1) as sender,
    ):
        llm.join_weight_group(Group("127.0.0.1", port))
        sender.send()
        with pytest.raises(CheckpointError, match="holds no tensor"):
            llm.update_weights(BroadcastWeights(whole.tensors[:1]))
        odd = BroadcastWeights.of(["x"], ["float42"], [[1]])
        with pytest.raises(CheckpointError, match="'float42' is no dtype"):
            llm.update_weights(odd)
        assert llm.weight_version == "0"


def test_a_group_that_nobody_opens_is_waited_for_so_long_and_no_longer(models: Models) -> None:
    with LLM(str(models.old), micro_batches=1, progress=False) as llm:
        with pytest.raises(ConfigError, match="can't join the group"):
            llm.join_weight_group(Group("127.0.0.1", free_port(), seconds=1.0))
        llm.update_weights(models.new)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (lambda: Group("a", 1, backend="mpi"), "backend must be gloo or nccl"),
        (lambda: Group("a?rank=0&", 1), "address must be a host's name"),
        (lambda: Group("a", 0), "port must be from 1"),
        (lambda: Group("a", 1, rank=0), "rank must be from 1"),
        (lambda: Group("a", 1, rank=2), "below the group's size"),
        (lambda: Group("a", 1, seconds=0), "seconds must be above 0"),
        (lambda: BroadcastWeights.of(["a"], [], [[1]]), "there are 1, 0 and 1"),
        (lambda: BroadcastWeights.of([], [], []), "1 to 1048576 tensors"),
        (lambda: BroadcastWeights.of(["a", "a"], ["x"] * 2, [[1]] * 2), "the same name"),
        (lambda: BroadcastWeights.of(["a"], ["x"], [[-1]]), r"can't have shape \[-1\]"),
    ],
)
def test_what_no_group_can_be(wish: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        wish()


def post(served: Served, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, timeout=2 * SECONDS)


def answer(served: Served) -> list[int]:
    body = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    response = post(served, "/v1/completions", **body, return_token_ids=True)
    return list(response.json()["choices"][0]["token_ids"])


def test_a_server_by_sglangs_and_by_vllms_addresses(models: Models) -> None:
    expected, whole = fresh(models.new), of(models.new)
    names = [each.name for each in whole.tensors]
    dtypes, shapes = ([getattr(t, k) for t in whole.tensors] for k in ("dtype", "shape"))
    place: dict[str, Any] = {"master_address": "127.0.0.1", "rank_offset": 1, "world_size": 2}
    with serving(str(models.old)) as served:
        before = answer(served)
        refused = post(
            served, "/update_weights_from_distributed", names=names, dtypes=dtypes, shapes=shapes
        )
        assert refused.status_code == 400
        assert "is in no group" in refused.json()["message"]

        own = {**place, "master_port": free_port()}
        with trainer(models.new / "model.safetensors", own["master_port"]) as sender:
            assert post(served, "/init_weights_update_group", **own).status_code == 200
            sender.send()
            done = post(
                served,
                "/update_weights_from_distributed",
                names=names,
                dtypes=dtypes,
                shapes=shapes,
                weight_version="step-1",
            )
            assert done.json()["success"] is True, done.text
            assert answer(served) == expected != before
            assert post(served, "/destroy_weights_update_group").status_code == 200

        assert httpx.get(f"{served.url}/get_world_size").json() == {"world_size": 1}
        own = {**place, "master_port": free_port()}
        with trainer(models.old / "model.safetensors", own["master_port"]) as sender:
            assert post(served, "/init_weight_transfer_engine", init_info=own).status_code == 200
            sender.send()
            info = {"names": names, "dtype_names": dtypes, "shapes": shapes}
            done = post(served, "/update_weights", update_info=info)
            assert done.json()["weight_version"] == "2", done.text
            assert answer(served) == before
