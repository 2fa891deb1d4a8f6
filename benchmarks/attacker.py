"""Launches one attack again and again, until standard input ends; tells its answers then.

    python benchmarks/attacker.py http://127.0.0.1:8000 KEY "nested repetition" </dev/tty

A process of its own, as hostile clients are: what it takes to spell and to send 30 MB isn't taken
from who measures. Prints {status: how often} as JSON.
"""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.attacking import Attacker, Outcome
from tests.support.attacks import ATTACKS, Attack, spelled

PAUSE_SECONDS = 0.02


async def on_and_on(url: str, key: str, attack: Attack, seen: Outcome) -> None:
    attacker, text = Attacker(url, key), spelled(attack, key)
    while True:
        with suppress(TimeoutError, OSError):
            await attacker.send(text, attack, seen)
        await asyncio.sleep(PAUSE_SECONDS)


async def until_told(url: str, key: str, name: str) -> Outcome:
    (attack,) = [attack for attack in ATTACKS if attack.name == name]
    seen = Outcome()
    attacking = asyncio.create_task(on_and_on(url, key, attack, seen))
    await asyncio.to_thread(sys.stdin.read)
    attacking.cancel()
    await asyncio.gather(attacking, return_exceptions=True)
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(until_told(*sys.argv[1:])).statuses))
