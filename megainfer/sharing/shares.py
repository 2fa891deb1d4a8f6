"""How much each client holds of what there is a bounded amount of. Pure: no clock, no I/O.

All state are numbers by client and by thing, so that it could be kept for several servers at once.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from megainfer.errors import Overloaded, RequestError

Amounts = Mapping[str, int]
"""How much of each thing, by its name."""


class Shares:
    """One client may hold at most `share` of what all others leave, of each thing: whoever comes
    next finds some, however many have come before. totals: how much there is; a thing that isn't
    named has no bound. With a share of 1 there is no bound but these."""

    def __init__(self, totals: Amounts, share: float = 1.0) -> None:
        assert 0 < share <= 1, f"a share of {share}"
        self._totals = dict(totals)
        self._share = share
        self._held: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by thing, then client
        self._sums: Counter[str] = Counter()

    def held(self, thing: str, client: str | None = None) -> int:
        """How much of it this client holds, or all together."""
        return self._sums[thing] if client is None else self._held[thing][client]

    def largest(self, thing: str) -> int:
        """What a client can hold at most, while nobody else holds any."""
        return int(self._totals[thing] * self._share)

    def check(self, client: str, wanted: Amounts) -> None:
        """Raises RequestError for what could never be had, Overloaded for what can't be had now."""
        for thing, amount in wanted.items():
            if thing in self._totals:
                self._check(client, thing, amount)

    def take(self, client: str, wanted: Amounts) -> None:
        """Hold so much more; raises as `check`, and then holds nothing more."""
        self.check(client, wanted)
        for thing, amount in wanted.items():
            self._held[thing][client] += amount
            self._sums[thing] += amount

    def give_back(self, client: str, amounts: Amounts) -> None:
        """Hold so much less."""
        for thing, amount in amounts.items():
            self._held[thing][client] -= amount
            self._sums[thing] -= amount
            assert self._held[thing][client] >= 0, f"{client} gave back too many {thing}"
            if not self._held[thing][client]:
                del self._held[thing][client]

    def check_integrity(self) -> None:
        """Raise AssertionError where sums and parts differ."""
        for thing, total in self._sums.items():
            parts = sum(self._held[thing].values())
            assert parts == total, f"{total} {thing} are held, and {parts} by clients"

    def _check(self, client: str, thing: str, amount: int) -> None:
        own, total = self._held[thing].get(client, 0), self._totals[thing]
        most = int((total - (self._sums[thing] - own)) * self._share)
        if own + amount <= most:
            return
        if amount > self.largest(thing):
            raise RequestError(
                f"this request alone takes {amount} {thing}, and one client may have "
                f"{self.largest(thing)} at a time; ask for less at once"
            )
        raise Overloaded(
            f"you have {own} {thing}, {self._sums[thing]} of {total} are taken in all, and "
            f"{amount} more were asked for; try again later"
        )
