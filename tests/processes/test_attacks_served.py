"""The attacks against a whole instance: it stays what it was, within the memory that it told of."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from megainfer.config import parse_bytes
from tests.support.attacking import Attacker, Honest, attack_beside, held_bytes
from tests.support.attacks import ATTACKS, Attack
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import write_tokenizer
from tests.support.served import Served, serving

HOSTILE, HONEST = "the-hostile-clients-key", "the-honest-clients-key"
SHORT = (
    "4096 endless sequences in one request",
    "long prompts, each 128 times",
    "a text of 31 MB to be cut",
    "a literal of 250,000 letters as a regex",
    "a different literal of 150001 letters",
    "nested repetition",
    "an enum of 5,000 objects",
    "bad grammars, and nobody waits for them",
    "128 bad words of 256 letters in 64 sequences",
    "1,024 biases in 128 sequences",
)
"""What reaches nodes, or the process that tries out grammars."""
REST_SECONDS = 30.0
GROWTH_BYTES = 64 * 2**20
"""Of all processes over a third round: allocators keep what the busiest moment needed, and which
attacks meet differs from round to round."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("attacked")
    write_checkpoint("qwen3_moe", "gqa", folder, vocab_size=400, max_position_embeddings=1024)
    write_tokenizer(folder)
    keys = ("--api-key", HOSTILE, "--api-key", HONEST)
    flags = ("--kv-cache-memory", "16MiB", "--micro-batches", "2", "--request-memory", "256MiB")
    with serving(str(folder), *flags, *keys) as served:
        yield served


def planned_bytes(served: Served) -> int:
    found = re.search(r"^memory +([\d.]+ [KMG]iB) at most", served.output, re.MULTILINE)
    assert found, served.output
    return parse_bytes(found[1], "memory")


def descriptors(served: Served) -> dict[int, int]:
    return {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid, _ in served.members()}


def attack_with(served: Served, attacks: list[Attack]) -> list[str]:
    """What doesn't hold of them."""
    problems, most = [], int(1.1 * planned_bytes(served))
    for attack in attacks:
        attacker, honest = Attacker(served.url, HOSTILE), Honest(served.url, HONEST)
        seen = asyncio.run(attack_beside(attacker, attack, honest))
        problems += seen.problems(attack)
        if (held := held_bytes(pid for pid, _ in served.members())) > most:
            problems.append(f"{attack.name}: {held} bytes are held, and at most {most} planned")
    return problems


def is_back(served: Served, before: dict[int, int]) -> bool:
    now = descriptors(served)
    return all(now.get(pid, 0) <= count for pid, count in before.items())


def withstand(served: Served, attacks: list[Attack]) -> None:
    warm_up = [a for a in attacks if a.name == "a different literal of 150001 letters"]
    attack_with(served, warm_up)  # the process that tries out grammars is there from now on
    members, before = dict(served.members()), descriptors(served)
    assert attack_with(served, attacks) == []
    deadline = time.monotonic() + REST_SECONDS
    while not is_back(served, before):
        assert time.monotonic() < deadline, f"{descriptors(served)} are open, not {before}"
        time.sleep(0.1)
    assert "Traceback" not in served.output, "a client can fill the log"
    nodes = {pid: name for pid, name in members.items() if name.startswith("mega-")}
    assert nodes.items() <= dict(served.members()).items(), "a process was lost"


def test_an_instance_withstands_what_reaches_its_nodes(served: Served) -> None:
    withstand(served, [attack for attack in ATTACKS if attack.name in SHORT])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_instance_withstands_everything(served: Served) -> None:
    for _ in range(2):
        withstand(served, list(ATTACKS))
    held = held_bytes(pid for pid, _ in served.members())
    withstand(served, list(ATTACKS))
    grown = held_bytes(pid for pid, _ in served.members()) - held
    assert grown < GROWTH_BYTES, f"{grown} bytes more after the same once more"


def test_cached_prompts_are_told_only_to_those_of_the_same_salt(served: Served) -> None:
    def cached(key: str, **fields: str) -> int:
        body = {"prompt": list(range(40, 104)), "max_tokens": 1, **fields}
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(
            f"{served.url}/v1/completions", json=body, headers=headers, trust_env=False
        )
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached(HOSTILE, cache_salt="mine") == 0
    assert cached(HOSTILE, cache_salt="mine") == 48
    assert cached(HONEST, cache_salt="mine") == 48
    assert cached(HONEST, cache_salt="yours") == 0
    assert cached(HONEST) == 0
    assert cached(HONEST) == 48
