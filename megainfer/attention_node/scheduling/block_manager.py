"""Who holds which KV block: reference counts, the free list and the prefix cache. No tensors.

A block holds the keys and values of `block_size` consecutive tokens of one sequence. It is

- in use, while one sequence or more has it in its block table;
- cached, while nobody has it but its contents are known by their digest: it may be used again
  by a sequence with the same prefix, or evicted, least recently used first;
- free, otherwise.

A digest names the block's tokens and all tokens before them, so that equal digests mean equal
keys and values. It is published once the contents are whole, and not before.

After a change of weights what was known before is stale: it is found by those only who ask for
that, and is evicted like all else. Blocks that were computed from stale ones are stale too.
"""

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from megainfer.errors import ConfigError

DIGEST_BYTES = 32


def root_digest(salt: str) -> bytes:
    """The parent of a sequence's first block. Those of another salt have no block in common:
    whoever finds a prompt in the cache learns that somebody has sent it."""
    return blake2b(salt.encode(), digest_size=DIGEST_BYTES).digest() if salt else b""


def block_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a block: a cryptographic hash of its parent's name and its own tokens.

    Clients choose the tokens, so a hash with findable collisions would let one client's prompt
    be answered from another's context.
    """
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


class BlockManager:
    """Hands out blocks 0 .. num_blocks - 1 and remembers the contents of those given back."""

    def __init__(self, num_blocks: int, block_size: int = 16) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ConfigError(
                f"the KV cache needs at least one block of one token, "
                f"not {num_blocks} blocks of {block_size} tokens"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._cache: dict[bytes, int] = {}
        self._stale: set[int] = set()  # of those in the cache
        self._free = deque(range(num_blocks))
        self._evictable: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give: the free ones and those cached without a user."""
        return len(self._free) + len(self._evictable)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count <= num_free` blocks, each with one reference; evicts only when it must."""
        assert count <= self.num_free, f"{count} blocks asked for, {self.num_free} are free"
        return [self._take() for _ in range(count)]

    def acquire(self, blocks: Iterable[int]) -> None:
        """Add a reference to each of these blocks, which `match_prefix` has just returned."""
        for block in blocks:
            assert self._digests[block] is not None, f"block {block} is not cached"
            self._evictable.pop(block, None)
            self._references[block] += 1

    def release(self, table: Sequence[int]) -> None:
        """Give up a sequence's reference to each of its blocks.

        From the last to the first: a prefix is worth more than what follows it, so it is evicted
        later.
        """
        for block in reversed(table):
            assert self._references[block] > 0, f"block {block} is released once too often"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._retire(block)

    def match_prefix(self, digests: Iterable[bytes], stale: bool = False) -> list[int]:
        """The cached blocks of the longest known prefix; takes no reference. stale: whether blocks
        may be among them that other weights have filled.

        `digests` is consumed up to the first unknown one only, so it may be computed on the way.
        """
        blocks: list[int] = []
        for digest in digests:
            block = self._cache.get(digest)
            if block is None or (block in self._stale and not stale):
                break
            blocks.append(block)
        return blocks

    def count_unused(self, blocks: Iterable[int]) -> int:
        """How many of these blocks have no reference, so that using them lowers `num_free`."""
        return sum(self._references[block] == 0 for block in blocks)

    def count_stale(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are stale."""
        return sum(block in self._stale for block in blocks)

    def outdate(self) -> None:
        """All that is known so far is stale from now on: other weights compute."""
        self._stale.update(self._cache.values())

    def publish(self, block: int, digest: bytes, stale: bool = False) -> None:
        """Make a block in use, now whole, known by its digest. stale: it was computed from stale
        ones. What isn't takes the place of what is.

        Where two sequences filled equal blocks at the same time, the first one stays known and
        the second is just a block that returns to the free list.
        """
        assert self._references[block] > 0, f"block {block} is published but not in use"
        known = self._cache.get(digest)
        if known is not None and known in self._stale and not stale and known != block:
            self._supersede(known)
        if self._digests[block] is None and digest not in self._cache:
            self._digests[block] = digest
            self._cache[digest] = block
            if stale:
                self._stale.add(block)

    def forget(self, blocks: Iterable[int]) -> None:
        """What these blocks hold, which are in use, is nobody else's to find any more."""
        for block in blocks:
            self._unname(block)

    def drop_cache(self) -> None:
        """Forget the contents of every block that is not in use."""
        while self._evictable:
            self._free.append(self._evict())

    def check_integrity(self, live_tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError naming each leak and double count, given all tables in use."""
        problems = list(self._problems(Counter(b for table in live_tables for b in table)))
        if problems:
            raise AssertionError("KV blocks: " + "; ".join(problems))

    def _supersede(self, block: int) -> None:
        self._unname(block)
        if block in self._evictable:
            del self._evictable[block]
            self._free.append(block)

    def _unname(self, block: int) -> None:
        if (digest := self._digests[block]) is not None:
            del self._cache[digest]
            self._digests[block] = None
            self._stale.discard(block)

    def _take(self) -> int:
        block = self._free.popleft() if self._free else self._evict()
        self._references[block] = 1
        return block

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        assert self._digests[block] is not None, f"block {block} is evictable without a digest"
        self._unname(block)
        return block

    def _retire(self, block: int) -> None:
        if self._digests[block] is None:
            self._free.appendleft(block)  # given out next: its memory is there and warm
        else:
            self._evictable[block] = None

    def _problems(self, uses: Counter[int]) -> Iterator[str]:
        free = Counter(self._free)
        for block, references in enumerate(self._references):
            if references != uses[block]:
                yield f"block {block} has {references} references, {uses[block]} tables hold it"
            places = free[block] + (block in self._evictable)
            if places != (references == 0):
                yield f"block {block}, {references} references, is {places} times among the free"
            if (block in self._evictable) and self._digests[block] is None:
                yield f"block {block} is evictable without a digest"
        yield from self._cache_problems()

    def _cache_problems(self) -> Iterator[str]:
        published = {d: b for b, d in enumerate(self._digests) if d is not None}
        if published != self._cache:
            yield f"{len(self._cache)} digests are cached, {len(published)} are on blocks"
        if not self._stale <= set(published.values()):
            yield "a block is stale that isn't known"
        if not set(self._free).isdisjoint(published.values()):
            yield "a block on the free list still has a digest"
