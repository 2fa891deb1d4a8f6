"""Which attention node serves a request: the one that would be done with it first.

Costs are in tokens. A node's load is what its requests still have to compute; a prompt whose
beginning a node served lately is cheaper there, because that part is in its prefix cache. So
affinity wins exactly while it saves more than the node is busier than others.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from megainfer.frontend.shared_loads import FrontEndLoad, SharedLoads

BLOCK_SIZE = 16
MAX_PREFIXES = 65536

# A request without a limit of its own may run to the end of the context, but seldom does; counted
# in full, a few such requests would hide everything else.
MAX_EXPECTED_TOKENS = 512


@dataclass(slots=True)
class _Share:
    """What one request still adds to its node's load."""

    node: int
    prefill: int
    decode: int

    @property
    def tokens(self) -> int:
        return self.prefill + self.decode


class Router:
    """Chooses nodes and keeps their loads; no clock and no randomness.

    shared: what other front ends have sent to the same nodes.
    """

    def __init__(
        self,
        num_nodes: int,
        max_prefixes: int = MAX_PREFIXES,
        shared: FrontEndLoad | None = None,
    ) -> None:
        self._shared = shared or SharedLoads(1).of(0)
        self._loads = dict.fromkeys(range(num_nodes), 0)
        self._members: Collection[int] = range(num_nodes)
        self._shares: dict[str, _Share] = {}
        self._max_prefixes = max_prefixes
        self._prefixes: OrderedDict[int, int] = OrderedDict()  # prefix hash -> node, latest last
        # Of the latest prompt: the n sequences of a request come one after the other.
        self._hashed: tuple[Sequence[int], str, list[tuple[int, int]]] | None = None

    @property
    def loads(self) -> tuple[int, ...]:
        """Outstanding tokens of each node, by number."""
        return tuple(self._loads[node] for node in sorted(self._loads))

    def enter(self, members: Collection[int]) -> None:
        """New requests go to these nodes only; those that others have still count there."""
        self._members = members
        for node in members:
            self._loads.setdefault(node, 0)

    def forget_prefixes(self, node: int) -> None:
        """Its cache is gone."""
        kept = ((prefix, own) for prefix, own in self._prefixes.items() if own != node)
        self._prefixes = OrderedDict(kept)

    def assign(
        self, request_id: str, prompt: Sequence[int], max_tokens: int, salt: str = ""
    ) -> int:
        """The member for a new request, which counts for it until `release`. salt: prompts of
        different ones don't share what a node has cached."""
        if self._hashed is None or self._hashed[0] is not prompt or self._hashed[1] != salt:
            self._hashed = prompt, salt, list(prefix_hashes(prompt, salt))
        prefixes = self._hashed[2]
        cached = self._cached_tokens(prefixes)
        others = {n: self._shared.others_tokens(n) for n in self._members}
        node = min(self._members, key=lambda n: (self._loads[n] + others[n] - cached[n], n))
        prefill = len(prompt) - cached[node]
        self._shares[request_id] = share = _Share(
            node, prefill, min(max_tokens, MAX_EXPECTED_TOKENS)
        )
        self._add(node, share.tokens)
        self._remember(prefixes, node)
        return node

    def produced(self, request_id: str, tokens: int) -> None:
        """The request's node has sent this many tokens; the first says that prefill is done.

        Other front ends are told of the first ones alone: these are most of the load, and this is
        called for every token.
        """
        share = self._shares[request_id]
        before = share.tokens
        is_first, share.prefill = share.prefill > 0, 0
        share.decode = max(share.decode - tokens, 1)  # it still runs, so it isn't free
        self._loads[share.node] += share.tokens - before
        if is_first:
            self._add(share.node, 0)

    def release(self, request_id: str) -> None:
        """The request has ended."""
        share = self._shares.pop(request_id)
        self._add(share.node, -share.tokens)

    def check_integrity(self) -> None:
        """Each load is the sum of its requests' shares, and the memory is within its bound."""
        sums = dict.fromkeys(self._loads, 0)
        for share in self._shares.values():
            sums[share.node] += share.tokens
        assert sums == self._loads, f"loads are {self._loads}, but shares add up to {sums}"
        assert len(self._prefixes) <= self._max_prefixes

    def _add(self, node: int, tokens: int) -> None:
        self._loads[node] += tokens
        self._shared.set_tokens(node, self._loads[node])

    def _cached_tokens(self, prefixes: list[tuple[int, int]]) -> dict[int, int]:
        """How many tokens of the prompt each node has likely cached."""
        cached = dict.fromkeys(self._loads, 0)
        for tokens, prefix in prefixes:
            node = self._prefixes.get(prefix)
            if node is not None:
                cached[node] = max(cached[node], tokens)
        return cached

    def _remember(self, prefixes: list[tuple[int, int]], node: int) -> None:
        for _, prefix in prefixes:
            self._prefixes[prefix] = node
            self._prefixes.move_to_end(prefix)
        while len(self._prefixes) > self._max_prefixes:
            self._prefixes.popitem(last=False)


def prefix_hashes(prompt: Sequence[int], salt: str = "") -> Iterator[tuple[int, int]]:
    """(length in tokens, hash) of the prompt's beginnings of 1, 2, 4, 8, ... whole blocks."""
    chained, start, length = hash(salt) if salt else 0, 0, BLOCK_SIZE
    while length <= len(prompt):
        chained = hash((chained, tuple(prompt[start:length])))
        yield length, chained
        start, length = length, 2 * length
