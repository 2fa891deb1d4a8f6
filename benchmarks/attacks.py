"""What an honest client has left while another one attacks.

    python benchmarks/attacks.py
    python benchmarks/attacks.py --model path/to/model --seconds 10 --json out.json
    python benchmarks/attacks.py --only H1 M3

A server with two keys. The honest client keeps some streams going, alone first, then beside each
attack of tests/support/attacks.py, which the other client launches again and again. Columns:

    attack      and which kind it is of (docs/security.md)
    req/s       of the honest client, and of what it has alone
    ttft        ms to the first token of a stream, median, and how many times what it is alone
    standstill  ms: the longest that /live took to answer
    answers     that the attacker got, by status
    memory      MiB that all processes hold, the most
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from checkpoints import SHAPES, ensure_checkpoint, with_tokenizer
from measures import hardware
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.attacking import Attacker, Outcome, held_bytes
from tests.support.attacks import ATTACKS, Attack
from tests.support.served import Served

HOSTILE, HONEST = "the-hostile-clients-key", "the-honest-clients-key"
POLL_SECONDS = 0.02
WARM_UP_SECONDS = 0.5


@dataclass(frozen=True)
class Pace:
    """Of the honest client."""

    requests_per_second: float
    first_token_ms: float
    standstill_ms: float
    memory_mib: float
    failed: int


@dataclass(frozen=True)
class Row:
    attack: str
    finding: str
    pace: Pace
    answers: dict[int, int]


@dataclass
class HonestClient:
    """streams: at a time, of so many tokens."""

    url: str
    streams: int
    tokens: int

    async def keep_on(self, seconds: float, pids: Sequence[int]) -> Pace:
        """Ask for so long, and count what ended in that time."""
        headers = {"Authorization": f"Bearer {HONEST}"}
        firsts: list[float] = []
        self._done, self._failed, self._memory = 0, 0, 0
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, limits=limits, trust_env=False, timeout=600
        ) as client:
            streams = [
                asyncio.create_task(self._ask(client, end, firsts)) for _ in range(self.streams)
            ]
            standstill = await self._poll(client, end, pids)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        first = statistics.median(firsts) if firsts else seconds
        return Pace(
            self._done / seconds, 1e3 * first, 1e3 * standstill, self._memory / 2**20, self._failed
        )

    async def _ask(self, client: httpx.AsyncClient, end: float, firsts: list[float]) -> None:
        body = {"prompt": [3, 4, 5], "max_tokens": self.tokens, "ignore_eos": True, "stream": True}
        while (began := time.monotonic()) < end:
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    self._failed += 1
                    await asyncio.sleep(POLL_SECONDS)
                    continue
                first = True
                async for line in answer.aiter_lines():
                    if first and line.startswith("data: {"):
                        firsts.append(time.monotonic() - began)
                        first = False
            self._done += 1

    async def _poll(self, client: httpx.AsyncClient, end: float, pids: Sequence[int]) -> float:
        longest = 0.0
        while (began := time.monotonic()) < end:
            await client.get("/live")
            longest = max(longest, time.monotonic() - began)
            self._memory = max(self._memory, held_bytes(pids))
            await asyncio.sleep(POLL_SECONDS)
        return longest


async def beside(attack: Attack, client: HonestClient, served: Served, seconds: float) -> Row:
    """The honest client's pace while this attack is launched again and again."""
    seen = Outcome()
    attacker = Attacker(served.url, HOSTILE)

    async def on_and_on() -> None:
        while True:
            with suppress(TimeoutError, OSError):
                await attacker.launch(attack, seen)
            await asyncio.sleep(POLL_SECONDS)

    attacking = asyncio.create_task(on_and_on())
    await asyncio.sleep(WARM_UP_SECONDS)
    pace = await client.keep_on(seconds, [pid for pid, _ in served.members()])
    attacking.cancel()
    await asyncio.gather(attacking, return_exceptions=True)
    return Row(attack.name, attack.finding, pace, dict(seen.statuses))


@contextmanager
def serving(model: Path, flags: Sequence[str]) -> Iterator[Served]:
    served = Served([str(model), *flags, "--api-key", HOSTILE, "--api-key", HONEST])
    try:
        yield served
    finally:
        os.kill(served.process.pid, signal.SIGTERM)
        with suppress(Exception):
            served.process.wait(60)
        served.kill()


def table(alone: Pace, rows: Sequence[Row]) -> Table:
    shown = Table()
    for title in ("attack", "of", "req/s", "of alone", "ttft", "of alone", "standstill", "memory"):
        shown.add_column(title, justify="left" if title == "attack" else "right")
    shown.add_column("answers")
    for name, finding, pace, answers in [
        ("(alone)", "", alone, {}),
        *((row.attack, row.finding, row.pace, row.answers) for row in rows),
    ]:
        share = pace.requests_per_second / max(alone.requests_per_second, 1e-9)
        later = pace.first_token_ms / max(alone.first_token_ms, 1e-9)
        told = " ".join(f"{status}:{count}" for status, count in sorted(answers.items()))
        shown.add_row(
            name,
            finding,
            f"{pace.requests_per_second:.1f}",
            f"{share:.2f}",
            f"{pace.first_token_ms:.0f}",
            f"{later:.1f}",
            f"{pace.standstill_ms:.0f}",
            f"{pace.memory_mib:.0f}",
            told + (f" (honest: {pace.failed} refused)" if pace.failed else ""),
        )
    return shown


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="0.17B", help=f"folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--seconds", type=float, default=5, help="beside each attack")
    parser.add_argument("--streams", type=int, default=8, help="of the honest client")
    parser.add_argument("--tokens", type=int, default=16, help="of each of its answers")
    parser.add_argument("--only", nargs="+", help="kinds of attacks, such as H1")
    parser.add_argument("--flags", nargs="+", default=["--kv-cache-memory", "256MiB"])
    parser.add_argument("--json", type=Path, help="write the results there as well")
    return parser.parse_args()


def measure(args: argparse.Namespace, model: Path) -> tuple[Pace, list[Row]]:
    attacks = [a for a in ATTACKS if args.only is None or a.finding in args.only]
    with serving(model, args.flags) as served:
        client = HonestClient(served.url, args.streams, args.tokens)
        pids = [pid for pid, _ in served.members()]
        asyncio.run(client.keep_on(args.seconds / 2, pids))
        alone = asyncio.run(client.keep_on(args.seconds, pids))
        rows = []
        for attack in attacks:
            print(attack.name, file=sys.stderr, flush=True)
            rows.append(asyncio.run(beside(attack, client, served, args.seconds)))
    return alone, rows


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        given = args.model in SHAPES
        model = ensure_checkpoint(args.model, folder) if given else Path(args.model)
        alone, rows = measure(args, with_tokenizer(model, folder) if given else model)
    console = Console(highlight=False, width=max(150, Console().width))
    console.print(
        f"{hardware()}\n{args.model}, {args.streams} streams of {args.tokens} tokens, "
        f"{args.seconds:g} s each"
    )
    console.print(table(alone, rows))
    if args.json:
        results = [asdict(row) for row in rows]
        document = {"hardware": hardware(), "alone": asdict(alone), "results": results}
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
