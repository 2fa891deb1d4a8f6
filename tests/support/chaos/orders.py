"""What the harness asks processes to do to themselves, and what they say that they did.

A folder that all of them share: who started it writes orders and counts them up in a page of
memory; each process looks at that count whenever it comes to a place where a fault can be done.
"""

import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from mmap import PAGESIZE, mmap
from pathlib import Path
from time import monotonic

from tests.support.chaos.draw import Fault, Target

_COUNT = struct.Struct("<Q")


@dataclass(frozen=True)
class Order:
    """place: the name of what a process comes to time and again; nth: at which of these times.

    node: None: whoever of the target's role is there first. new: only a process that was forked
    after the order was given. variant: which of several ways.
    """

    fault: Fault
    target: Target
    place: str
    nth: int = 1
    node: int | None = None
    new: bool = False
    variant: int = 0
    given_at: float = 0.0


@dataclass(frozen=True)
class Done:
    """at: on the monotonic clock."""

    order: int
    pid: int
    name: str
    fault: Fault
    at: float


class Board:
    """Both ends of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / "count"
        if not path.exists():
            path.write_bytes(bytes(PAGESIZE))
        with path.open("r+b") as file:
            self._page = mmap(file.fileno(), PAGESIZE)

    # --- the harness's end ----------------------------------------------------------------------

    def give(self, *orders: Order) -> int:
        """From now on these are the orders, instead of those before; returns their number."""
        count = self.count + 1
        now = monotonic()
        text = json.dumps([{**asdict(order), "given_at": now} for order in orders])
        (self._folder / f"orders-{count}").write_text(text)
        _COUNT.pack_into(self._page, 0, count)
        return count

    def done(self, count: int) -> list[Done]:
        """Of the orders of this number, those that were carried out, in the order of that."""
        path = self._folder / f"done-{count}"
        if not path.exists():
            return []
        rows = (json.loads(line) for line in path.read_text().splitlines())
        return [Done(**{**row, "fault": Fault(row["fault"])}) for row in rows]

    # --- a process's end ------------------------------------------------------------------------

    @property
    def count(self) -> int:
        (count,) = _COUNT.unpack_from(self._page, 0)
        return int(count)

    def orders(self, count: int) -> Sequence[Order]:
        path = self._folder / f"orders-{count}"
        return list(_parsed(path.read_text())) if path.exists() else []

    def claim(self, count: int, number: int) -> bool:
        """Whether nobody has done this order yet; from now on somebody has."""
        try:
            (self._folder / f"claimed-{count}-{number}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def tell(self, count: int, number: int, name: str, fault: Fault) -> None:
        """It is about to be done."""
        row = asdict(Done(number, os.getpid(), name, fault, monotonic()))
        line = json.dumps(row) + "\n"
        fd = os.open(self._folder / f"done-{count}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, line.encode())  # at once, whoever else writes
        finally:
            os.close(fd)


def _parsed(text: str) -> Iterator[Order]:
    for row in json.loads(text):
        yield Order(**{**row, "fault": Fault(row["fault"]), "target": Target(row["target"])})
