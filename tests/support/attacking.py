"""Carries attacks out: raw connections, since a well-behaved client can't do most of this."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.support.attacks import Attack, spelled

ANSWER_SECONDS = 60.0
READ_BYTES = 2**16


@dataclass
class Outcome:
    """statuses: of the answers that came, by how many. largest: bytes of the largest answer."""

    statuses: Counter[int] = field(default_factory=Counter)
    largest: int = 0

    def problems(self, attack: Attack) -> list[str]:
        """What doesn't hold."""
        wrong = [s for s in self.statuses if s not in attack.statuses]
        found = [f"{attack.name}: answered {status}" for status in wrong]
        if self.largest > attack.most_bytes:
            found.append(f"{attack.name}: an answer of {self.largest} bytes")
        if not self.statuses and not (attack.stays or attack.leaves):
            found.append(f"{attack.name}: no answer")
        return found


class Attacker:
    """One client of the server at `url`. key: sent as a bearer token."""

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._key = key

    async def launch(self, attack: Attack, seen: Outcome) -> None:
        """Until every connection is answered; one that stays is cancelled by its owner."""
        await self.send(spelled(attack, self._key), attack, seen)

    async def send(self, text: bytes, attack: Attack, seen: Outcome) -> None:
        """`launch`, of an attack that is spelled already."""
        await asyncio.gather(*(self._one(text, attack, seen) for _ in range(attack.times)))

    async def _one(self, text: bytes, attack: Attack, seen: Outcome) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=2**22)
        try:
            # A server that refuses a body doesn't read it to its end.
            with suppress(ConnectionError):
                writer.write(text)
                if attack.leaves:
                    await writer.drain()
                    return
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._read(reader, seen)
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, seen: Outcome) -> None:
        size, head = 0, b""
        with suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                size += len(data)
                if len(head) < 16:
                    head += data[:16]
                    if len(head) >= 12:
                        seen.statuses[int(head[9:12])] += 1
        seen.largest = max(seen.largest, size)


@dataclass(frozen=True)
class Honest:
    """Somebody else than the attacker, who asks for little."""

    url: str
    key: str | None = None
    tokens: int = 3

    async def ask(self, seconds: float = ANSWER_SECONDS) -> None:
        """One completion, which has to come."""
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        body = {"prompt": [1, 2, 3], "max_tokens": self.tokens, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False) as client:
            answer = await client.post("/v1/completions", json=body, timeout=seconds)
            assert answer.status_code == 200, answer.text


async def attack_beside(attacker: Attacker, attack: Attack, honest: Honest) -> Outcome:
    """The attack, and somebody else meanwhile, who must be served."""
    seen = Outcome()
    attacking = asyncio.create_task(attacker.launch(attack, seen))
    try:
        if attack.stays:
            while not seen.statuses and not attacking.done():
                await asyncio.sleep(0.01)
        await honest.ask()
    finally:
        if attack.stays:
            attacking.cancel()
    await asyncio.gather(attacking, return_exceptions=attack.stays)
    return seen


def held_bytes(pids: Iterable[int]) -> int:
    """Of these processes together, each page once; files that are mapped can be given back."""
    total = 0
    for pid in pids:
        with suppress(OSError):  # it has ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon", "Pss_Shmem")):
                    total += int(line.split()[1]) * 1024
    return total
