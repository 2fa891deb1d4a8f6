"""A real instance on which faults are tried, and what it holds when nobody wants anything."""

import os
import re
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import httpx

from tests.support.chaos.draw import Shape
from tests.support.chaos.orders import Board, Order
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import write_tokenizer
from tests.support.served import Served, open_files, session_members
from tests.support.tools import TEMPLATE

REST_SECONDS = 60.0
"""Generous: the machine may be busy with others."""
END_SECONDS = 60.0
GROWTH_BYTES = 48 * 2**20
"""Of a process since the instance was fresh: allocators keep what the busiest moment needed."""
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
_DIED = re.compile(r"WARNING (\S[^(\n]*?) \(process \d+\) died: .*; it is started again")
_BACK = re.compile(r"INFO (\S[^(\n]*?) is back after ([\d.]+) s")


def write_model(folder: Path) -> Path:
    """The model of all trials: small, with a tokenizer and a chat template that knows tools."""
    if not (folder / "tokenizer.json").exists():
        write_checkpoint("qwen3_moe", "gqa", folder, vocab_size=400, max_position_embeddings=1024)
        write_tokenizer(folder, chat_template=TEMPLATE)
    return folder


@dataclass(frozen=True)
class Holdings:
    """By process name: open files, and bytes of its own. sockets: abstract ones of all."""

    files: Mapping[str, int]
    memory: Mapping[str, int]
    sockets: int

    def excess(self, of: "Holdings") -> list[str]:
        """What `of` holds beyond this."""
        found = []
        if (of.files.keys() ^ self.files.keys()) - {HELPER}:
            found.append(f"processes are {sorted(of.files)}, not {sorted(self.files)}")
        for name in self.files.keys() & of.files.keys():
            if of.files[name] > self.files[name]:
                found.append(f"{name} has {of.files[name]} open files, not {self.files[name]}")
            if of.memory[name] > self.memory[name] + GROWTH_BYTES:
                mib = [size >> 20 for size in (of.memory[name], self.memory[name])]
                found.append(f"{name} has {mib[0]} MiB of its own, {mib[1]} when it was fresh")
        if of.sockets > self.sockets:
            found.append(f"{of.sockets} abstract sockets are open, not {self.sockets}")
        return found


class Instance:
    """`megainfer serve` of this shape, whose processes look at a board. orders: given before.
    restarts, gpus: see tests/support/chaos/serve.py.
    """

    def __init__(
        self,
        model: Path,
        shape: Shape,
        options: Sequence[str] = (),
        orders: Sequence[Order] = (),
        restarts: str = "20/1",
        gpus: int = 0,
    ) -> None:
        self.shape = shape
        self._folder = tempfile.TemporaryDirectory(prefix="chaos-")
        self.board = Board(Path(self._folder.name))
        if orders:
            self.board.give(*orders)
        nodes = ["--attn-gpus", str(shape.attention), "--ffn-gpus", str(shape.experts)]
        if shape.replicas:
            nodes += ["--expert-replicas", str(shape.replicas)]
        self._began = monotonic()
        try:
            self.served = Served(
                [str(model), *nodes, *FLAGS, *options],
                program="tests.support.chaos.serve",
                environment={
                    "CHAOS_BOARD": self._folder.name,
                    "CHAOS_RESTARTS": restarts,
                    "CHAOS_GPUS": str(gpus),
                    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                },
                wait=False,
            )
        except BaseException:
            self._folder.cleanup()
            raise
        self.fresh: Holdings | None = None
        # Whether experts may lie elsewhere than where they began, which changes sums' last bits.
        self.moved = shape.replicated

    # --- life -----------------------------------------------------------------------------------

    def wait_until_ready(self) -> bool:
        """False: it has ended instead."""
        return self.served.wait_until_ready()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.served.process.pid, signal.SIGCONT)
        self.served.kill()
        self._folder.cleanup()

    @property
    def url(self) -> str:
        return self.served.url

    @property
    def is_alive(self) -> bool:
        return self.served.process.poll() is None

    def left_behind(self) -> list[tuple[int, str]]:
        """Who is still there a while after it should all have ended."""
        deadline = monotonic() + END_SECONDS
        pid = self.served.process.pid
        while (left := session_members(pid)) and monotonic() < deadline:
            sleep(0.02)
        return left

    def wait_until_back(self) -> None:
        """Until all who died serve again, or for a bounded while."""
        deadline = monotonic() + REST_SECONDS
        while self.is_alive and self.awaited() and monotonic() < deadline:
            sleep(0.02)

    # --- rest -----------------------------------------------------------------------------------

    def settle(self) -> list[str]:
        """Wait until it is as it was when it was fresh; what is not, after a bounded while."""
        deadline = monotonic() + REST_SECONDS
        pause = 0.02
        while wrong := self._unrest():
            if monotonic() > deadline or not self.is_alive:
                return wrong
            sleep(pause)
            pause = min(0.2, 1.5 * pause)
        return []

    def _unrest(self) -> list[str]:
        if not self.is_alive:
            return [f"it has ended:\n{self.served.output[-2000:]}"]
        if awaited := self.awaited():
            return [f"{', '.join(awaited)} isn't back"]
        try:
            health = httpx.get(f"{self.url}/health", timeout=10, trust_env=False)
            if health.status_code != 200 or "degraded" in health.text:
                return [f"/health says {health.status_code} {health.text}"]
            metrics = httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text
        except httpx.HTTPError as error:
            return [f"it doesn't answer: {error!r}"]
        if busy := _busy(metrics):
            return busy
        holdings = self.holdings()
        if holdings is None:
            return ["its processes come and go"]
        if self.fresh is None:
            self.fresh = holdings
        return self.fresh.excess(holdings)

    def awaited(self) -> list[str]:
        """Who has died and isn't back, as the log tells it."""
        away: dict[str, None] = {}
        for line in self.served.output.splitlines():
            if match := _DIED.search(line):
                away[match[1]] = None
            elif match := _BACK.search(line):
                away.pop(match[1], None)
        return list(away)

    def holdings(self) -> Holdings | None:
        """None where a process ended while we looked."""
        files, memory = {}, {}
        try:
            for pid, comm in self.served.members():
                name = self._name(pid, comm)
                files[name] = len(list(open_files(pid)))
                memory[name] = _resident(pid)
        except OSError:
            return None
        return Holdings(files, memory, len(self.served.sockets()))

    def _name(self, pid: int, comm: str) -> str:
        if comm != "python":
            return comm
        return "supervisor" if pid == self.served.process.pid else HELPER

    def recoveries(self, since: int) -> list[tuple[str, float]]:
        """(who, seconds until it served again), as told after so many characters of its output."""
        found = _BACK.finditer(self.served.output, since)
        return [(match[1], float(match[2])) for match in found]


FLAGS = ("--kv-cache-memory", "4MiB", "--drain-timeout", "60", "--micro-batches", "2")
HELPER = "template worker"
"""Of an API server, which starts it when it is first needed."""
ROOT = Path(__file__).parents[3]


def _busy(metrics: str) -> list[str]:
    found = []
    for line in metrics.splitlines():
        name = line.partition("{")[0].removeprefix("megainfer:")
        if name in GAUGES and float(line.rpartition(" ")[2]):
            found.append(line)
    return found


def _resident(pid: int) -> int:
    """Bytes that belong to this process alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = [line.split() for line in lines if line.startswith("Private_")]
    return sum(int(fields[1]) * 1024 for fields in private)
