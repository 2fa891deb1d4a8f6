"""The block manager: references, the free list, the prefix cache, and its own audit."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from megainfer.attention_node.scheduling.block_manager import (
    BlockManager,
    block_digest,
    root_digest,
)
from megainfer.errors import ConfigError


def chain(*blocks: list[int]) -> list[bytes]:
    digests = [root_digest("")]
    for token_ids in blocks:
        digests.append(block_digest(digests[-1], token_ids))
    return digests[1:]


def filled(manager: BlockManager, digests: list[bytes]) -> list[int]:
    """The table of a sequence that has computed and published blocks of these digests."""
    table = manager.allocate(len(digests))
    for block, digest in zip(table, digests, strict=True):
        manager.publish(block, digest)
    return table


def test_a_digest_names_the_tokens_and_all_before_them() -> None:
    first, second = chain([1, 2], [3, 4])
    assert chain([1, 2], [3, 4]) == [first, second]
    assert second not in chain([3, 4]) + chain([9, 2], [3, 4]) + chain([1, 2], [4, 3])


def test_digests_of_numbers_that_concatenate_alike_differ() -> None:
    assert chain([1, 23]) != chain([12, 3])
    assert chain([-1]) != chain([2**32 - 1])


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert BlockManager(4).blocks_for(tokens) == blocks


def test_a_cache_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="not 0 blocks of 16 tokens"):
        BlockManager(0)


def test_allocate_gives_each_block_once_until_none_is_left() -> None:
    manager = BlockManager(4)
    assert sorted(manager.allocate(3) + manager.allocate(1)) == [0, 1, 2, 3]
    assert manager.num_free == 0
    with pytest.raises(AssertionError, match="1 blocks asked for, 0 are free"):
        manager.allocate(1)


def test_a_shared_block_is_free_when_its_last_user_lets_go() -> None:
    manager = BlockManager(2)
    table = filled(manager, chain([1]))
    manager.acquire(manager.match_prefix(chain([1])))
    manager.release(table)
    assert manager.num_free == 1
    manager.release(table)
    assert manager.num_free == 2
    with pytest.raises(AssertionError, match="released once too often"):
        manager.release(table)


def test_match_prefix_finds_the_longest_published_beginning() -> None:
    manager = BlockManager(8)
    digests = chain([1], [2], [3])
    table = filled(manager, digests[:2])
    assert manager.match_prefix(digests) == table
    assert manager.match_prefix(chain([1], [7], [3])) == table[:1]
    assert manager.match_prefix(chain([2], [3])) == []


def test_match_prefix_takes_no_digest_beyond_the_first_miss() -> None:
    manager = BlockManager(2)
    digests = iter(chain([1], [2], [3]))
    assert manager.match_prefix(digests) == []
    assert len(list(digests)) == 2


def test_released_blocks_are_found_again_until_they_are_evicted() -> None:
    manager = BlockManager(2)
    digests = chain([1], [2])
    table = filled(manager, digests)
    manager.release(table)
    assert manager.num_free == 2
    assert manager.match_prefix(digests) == table
    assert manager.count_unused(table) == 2
    manager.acquire(table)
    assert manager.num_free == 0
    assert manager.count_unused(table) == 0


def test_unpublished_blocks_are_taken_before_any_is_evicted() -> None:
    manager = BlockManager(4)
    manager.release(filled(manager, chain([1])))
    manager.allocate(3)
    assert manager.match_prefix(chain([1])) == [0]
    manager.allocate(1)
    assert manager.match_prefix(chain([1])) == []


def test_eviction_takes_the_least_recently_used_and_a_tail_before_its_head() -> None:
    manager = BlockManager(4)
    old, new = chain([1], [2]), chain([3], [4])
    old_table = filled(manager, old)
    manager.release(old_table)
    manager.release(filled(manager, new))
    manager.acquire(old_table)
    manager.release(old_table)  # used last now
    manager.allocate(1)
    assert len(manager.match_prefix(new)) == 1
    assert len(manager.match_prefix(old)) == 2
    manager.allocate(2)
    assert len(manager.match_prefix(new)) == 0
    assert len(manager.match_prefix(old)) == 1


def test_the_second_of_two_equal_blocks_stays_unknown_and_returns_to_the_free_list() -> None:
    manager = BlockManager(2)
    first = filled(manager, chain([1]))
    second = filled(manager, chain([1]))
    assert manager.match_prefix(chain([1])) == first
    manager.release(second)
    manager.release(first)
    manager.check_integrity([])
    assert manager.allocate(1) == second


def test_publishing_a_block_that_nobody_uses_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="not in use"):
        BlockManager(1).publish(0, chain([1])[0])


def test_what_is_forgotten_is_not_found_and_its_users_keep_their_blocks() -> None:
    manager = BlockManager(3)
    first = filled(manager, chain([1], [2]))
    manager.forget(first[1:])
    manager.forget(first[1:])  # nothing is left to forget
    assert manager.match_prefix(chain([1], [2])) == first[:1]
    manager.check_integrity([first])
    again = filled(manager, chain([1], [2])[1:])
    assert manager.match_prefix(chain([1], [2])) == [first[0], *again]
    manager.release(first)
    manager.release(again)
    manager.check_integrity([])


def test_drop_cache_forgets_what_is_unused_and_nothing_else() -> None:
    manager = BlockManager(3)
    used = filled(manager, chain([1]))
    manager.release(filled(manager, chain([2])))
    manager.drop_cache()
    assert manager.match_prefix(chain([1])) == used
    assert manager.match_prefix(chain([2])) == []
    assert manager.num_free == 2
    manager.check_integrity([used])


def test_what_other_weights_have_filled_is_for_those_who_ask() -> None:
    manager = BlockManager(6)
    digests = chain([1], [2])
    used = filled(manager, digests[:1])
    table = used + filled(manager, digests[1:])
    manager.release(table)
    manager.outdate()
    assert manager.match_prefix(digests) == []
    assert manager.match_prefix(digests, stale=True) == table
    assert (manager.count_stale(table), manager.num_free) == (2, 6)

    anew = filled(manager, digests[:1])
    assert manager.match_prefix(digests) == anew, "a new one takes the place of a stale one"
    assert manager.match_prefix(digests, stale=True) == [*anew, table[1]]
    mixed = manager.allocate(1)
    manager.publish(mixed[0], chain([1], [3])[1], stale=True)
    assert manager.match_prefix(chain([1], [3])) == anew
    manager.publish(mixed[0], digests[0], stale=True)
    assert manager.match_prefix(digests) == anew, "and never the other way round"
    manager.release(anew + mixed)
    manager.drop_cache()
    assert manager.match_prefix(digests, stale=True) == []
    manager.check_integrity([])


def test_a_stale_block_in_use_can_be_superseded() -> None:
    manager = BlockManager(2)
    old = filled(manager, chain([1]))
    manager.outdate()
    new = filled(manager, chain([1]))
    manager.check_integrity([old, new])
    manager.release(old)
    assert (manager.match_prefix(chain([1])), manager.num_free) == (new, 1)
    manager.check_integrity([new])


def test_check_integrity_names_a_leak_and_a_double_use() -> None:
    manager = BlockManager(2)
    table = manager.allocate(2)
    manager.check_integrity([table])
    with pytest.raises(AssertionError, match="block 1 has 1 references, 0 tables hold it"):
        manager.check_integrity([table[:1]])
    with pytest.raises(AssertionError, match="block 0 has 1 references, 2 tables hold it"):
        manager.check_integrity([table, table[:1]])


class BlockMachine(RuleBasedStateMachine):
    """Sequences over a tiny alphabet take, fill, share and give up blocks in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(6, block_size=1)
        self.tables: list[list[int]] = []
        self.contents: dict[int, bytes] = {}
        self.made: dict[int, set[int]] = {}  # by block, of which weights what is in it was made
        self.weights = 0

    @rule(token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=5), takes_stale=st.booleans())
    def start(self, token_ids: list[int], takes_stale: bool) -> None:
        digests = chain(*([t] for t in token_ids))
        prefix = self.manager.match_prefix(digests, takes_stale)
        behind = set().union(*(self.made[block] for block in prefix))
        assert takes_stale or behind <= {self.weights}
        outdated = [block for block in prefix if self.made[block] != {self.weights}]
        assert self.manager.count_stale(prefix) == len(outdated)
        assert [self.contents[b] for b in prefix] == digests[: len(prefix)]
        missing = len(digests) - len(prefix)
        if missing > self.manager.num_free - self.manager.count_unused(prefix):
            return
        self.manager.acquire(prefix)
        fresh = self.manager.allocate(missing)
        for block, digest in zip(fresh, digests[len(prefix) :], strict=True):
            self.contents[block] = digest
            self.made[block] = behind | {self.weights}
            self.manager.publish(block, digest, stale=bool(outdated))
        self.tables.append(prefix + fresh)

    @rule(choice=st.randoms(use_true_random=False))
    def end(self, choice) -> None:  # type: ignore[no-untyped-def]
        if self.tables:
            self.manager.release(self.tables.pop(choice.randrange(len(self.tables))))

    @rule()
    def drop_cache(self) -> None:
        self.manager.drop_cache()

    @rule()
    def renew(self) -> None:
        self.weights += 1
        self.manager.outdate()

    @invariant()
    def adds_up(self) -> None:
        self.manager.check_integrity(self.tables)
        assert self.manager.num_free == 6 - len({b for table in self.tables for b in table})


BlockMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestBlockMachine = BlockMachine.TestCase
