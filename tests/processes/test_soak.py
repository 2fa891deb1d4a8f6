"""A crowd of clients, a long while: nobody gets a wrong token, and nothing is left behind."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.served import Served, serving
from tests.support.soak import Crowd, wishes

VOCABULARY = 160  # of every checkpoint that the tests write
WISHES = 32
GROWTH_BYTES = 24 * 2**20
"""Of a process over most of a soak: allocators keep what the busiest moment needed."""
REST_SECONDS = 20.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two attention and two expert nodes, with fewer KV blocks than the crowd would like."""
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("model"))
    flags = ["--attn-gpus", "2", "--ffn-gpus", "2", "--micro-batches", "2"]
    with serving(str(folder), *flags, "--kv-cache-memory", "512KiB") as served:
        yield served


def crowd(served: Served, seed: int) -> Crowd:
    crowd = Crowd(served.url, wishes(random.Random(seed), VOCABULARY, WISHES), seed)
    asyncio.run(crowd.learn())
    return crowd


def gauges(served: Served) -> dict[str, float]:
    """What each attention node holds now, over all of them."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    totals = dict.fromkeys(names, 0.0)
    for line in httpx.get(f"{served.url}/metrics").text.splitlines():
        name = line.partition("{")[0].removeprefix("megainfer:")
        if name in totals:
            totals[name] += float(line.rpartition(" ")[2])
    return totals


async def at_rest(served: Served) -> dict[str, float]:
    """The gauges once they are zero, after a bounded while: nodes tell them every second."""
    async with asyncio.timeout(REST_SECONDS):
        while any(gauges(served).values()):
            await asyncio.sleep(0.2)
    return gauges(served)


def resident(pid: int) -> int:
    """Bytes that belong to this process alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = [line.split() for line in lines if line.startswith("Private_")]
    return sum(int(fields[1]) * 1024 for fields in private)


def soak(served: Served, crowd: Crowd, requests: int) -> None:
    members = dict(served.members())
    asyncio.run(crowd.rush(requests // 3))
    before = {pid: resident(pid) for pid in members}
    asyncio.run(crowd.rush(requests - requests // 3))
    asyncio.run(at_rest(served))
    assert crowd.tally.wrong == []
    assert sum(crowd.tally.done.values()) == requests
    assert dict(served.members()) == members
    grown = {members[pid]: resident(pid) - size for pid, size in before.items()}
    assert max(grown.values()) < GROWTH_BYTES, grown


def test_a_crowd_disturbs_nobody(served: Served) -> None:
    soak(served, crowd(served, seed=1), 300)


def test_a_hundred_streams_left_in_the_middle_leave_nothing(served: Served) -> None:
    hung_up(served, crowd(served, seed=2), 100)


@pytest.mark.slow
def test_a_long_soak(served: Served) -> None:
    soak(served, crowd(served, seed=3), 2000)


@pytest.mark.slow
def test_a_thousand_streams_left_in_the_middle_leave_nothing(served: Served) -> None:
    hung_up(served, crowd(served, seed=4), 1000)


def hung_up(served: Served, crowd: Crowd, count: int) -> None:
    asyncio.run(crowd.hang_up(count))
    asyncio.run(at_rest(served))
    assert crowd.tally.wrong == []
    assert crowd.tally.done["hung up"] == count
    asyncio.run(crowd.rush(40))  # and what comes after is answered as ever
    assert crowd.tally.wrong == []
