"""What an honest client has left while another one attacks.

    python benchmarks/attacks.py
    python benchmarks/attacks.py --model path/to/model --seconds 10 --json out.json
    python benchmarks/attacks.py --only H1 M3 --rounds 3
    python benchmarks/attacks.py --only "nested repetition"

A server with two keys. The honest client keeps some streams going, in each round alone first, then
beside an attack of tests/support/attacks.py, which a process of its own launches again and again.
Columns, each the median of the rounds; what it is of alone is the median of their ratios:

    attack      and which kind it is of (docs/security.md)
    req/s       of the honest client, and of what it has alone in the same round
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
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import httpx
from checkpoints import SHAPES, ensure_checkpoint, with_tokenizer
from measures import hardware
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.attacking import held_bytes
from tests.support.attacks import ATTACKS, Attack
from tests.support.served import Served

HOSTILE, HONEST = "the-hostile-clients-key", "the-honest-clients-key"
POLL_SECONDS = 0.02
POLLS_A_LOOK = 10
"""At /live, for each look at the memory that is held, which takes milliseconds."""
WARM_UP_SECONDS = 0.5
END_SECONDS = 90.0


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
    """rounds: of each, the pace alone and the pace beside the attack."""

    attack: str
    finding: str
    rounds: list[tuple[Pace, Pace]]
    answers: dict[str, int]

    def alone(self, field: str) -> float:
        return statistics.median(float(getattr(alone, field)) for alone, _ in self.rounds)

    def beside(self, field: str) -> float:
        return statistics.median(float(getattr(beside, field)) for _, beside in self.rounds)

    def ratio(self, field: str) -> float:
        """Beside the attack, of alone."""
        return statistics.median(
            float(getattr(beside, field)) / max(float(getattr(alone, field)), 1e-9)
            for alone, beside in self.rounds
        )


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
        for poll in count():
            if (began := time.monotonic()) >= end:
                break
            await client.get("/live")
            longest = max(longest, time.monotonic() - began)
            if poll % POLLS_A_LOOK == 0:
                self._memory = max(self._memory, held_bytes(pids))
            await asyncio.sleep(POLL_SECONDS)
        return longest


@contextmanager
def attacking(attack: Attack, url: str, answers: Counter[str]) -> Iterator[None]:
    """While this attack is launched again and again; its answers are counted afterwards."""
    script = Path(__file__).with_name("attacker.py")
    command = [sys.executable, str(script), url, HOSTILE, attack.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as attacker:
        time.sleep(WARM_UP_SECONDS)  # by then the attack is under way
        try:
            yield
            answers.update(json.loads(attacker.communicate(timeout=END_SECONDS)[0]))
        finally:
            attacker.kill()


def measured(
    attack: Attack, client: HonestClient, served: Served, seconds: float, rounds: int
) -> Row:
    """The honest client's pace alone, and while this attack is launched again and again."""
    pids = [pid for pid, _ in served.members()]
    pairs: list[tuple[Pace, Pace]] = []
    answers: Counter[str] = Counter()
    for _ in range(rounds):
        alone = asyncio.run(client.keep_on(seconds, pids))
        with attacking(attack, served.url, answers):
            pairs.append((alone, asyncio.run(client.keep_on(seconds, pids))))
    return Row(attack.name, attack.finding, pairs, dict(answers))


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


def table(rows: Sequence[Row]) -> Table:
    shown = Table()
    for title in ("attack", "of", "req/s", "of alone", "ttft", "of alone", "standstill", "memory"):
        shown.add_column(title, justify="left" if title == "attack" else "right")
    shown.add_column("answers")
    for row in rows:
        refused = sum(beside.failed for _, beside in row.rounds)
        told = " ".join(f"{status}:{count}" for status, count in sorted(row.answers.items()))
        shown.add_row(
            row.attack,
            row.finding,
            f"{row.beside('requests_per_second'):.1f}",
            f"{row.ratio('requests_per_second'):.2f}",
            f"{row.beside('first_token_ms'):.0f}",
            f"{row.ratio('first_token_ms'):.1f}",
            f"{row.beside('standstill_ms'):.0f}",
            f"{row.beside('memory_mib'):.0f}",
            told + (f" (honest: {refused} refused)" if refused else ""),
        )
    return shown


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="0.17B", help=f"folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--seconds", type=float, default=5, help="alone, and beside each attack")
    parser.add_argument("--rounds", type=int, default=1, help="of each attack")
    parser.add_argument("--streams", type=int, default=8, help="of the honest client")
    parser.add_argument("--tokens", type=int, default=16, help="of each of its answers")
    parser.add_argument("--only", nargs="+", help="kinds such as H1, or names")
    parser.add_argument("--flags", nargs="+", default=["--kv-cache-memory", "256MiB"])
    parser.add_argument("--json", type=Path, help="write the results there as well")
    return parser.parse_args()


def measure(args: argparse.Namespace, model: Path) -> list[Row]:
    only = args.only
    attacks = [a for a in ATTACKS if only is None or a.finding in only or a.name in only]
    if not attacks:
        raise SystemExit(f"no attack is of a kind, or has a name, of {only}")
    with serving(model, args.flags) as served:
        client = HonestClient(served.url, args.streams, args.tokens)
        asyncio.run(client.keep_on(args.seconds / 2, [pid for pid, _ in served.members()]))
        rows = []
        for attack in attacks:
            print(attack.name, file=sys.stderr, flush=True)
            rows.append(measured(attack, client, served, args.seconds, args.rounds))
    return rows


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        given = args.model in SHAPES
        model = ensure_checkpoint(args.model, folder) if given else Path(args.model)
        rows = measure(args, with_tokenizer(model, folder) if given else model)
    console = Console(highlight=False, width=max(150, Console().width))
    alone = statistics.median(row.alone("requests_per_second") for row in rows)
    first = statistics.median(row.alone("first_token_ms") for row in rows)
    console.print(
        f"{hardware()}\n{args.model}, {args.streams} streams of {args.tokens} tokens, "
        f"{args.rounds} rounds of {args.seconds:g} s\n"
        f"alone: {alone:.1f} req/s, {first:.0f} ms to the first token"
    )
    console.print(table(rows))
    if args.json:
        document = {"hardware": hardware(), "results": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
