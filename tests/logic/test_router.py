"""The router: least loaded, affine where it saves more than it costs, and bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.frontend.router import BLOCK_SIZE, Router, prefix_hashes


def prompt(seed: int, tokens: int) -> list[int]:
    return [seed * 100_000 + position for position in range(tokens)]


def test_requests_spread_over_idle_nodes() -> None:
    router = Router(3)
    assert [router.assign(f"{i}", prompt(i, 40), 10) for i in range(6)] == [0, 1, 2, 0, 1, 2]


def test_the_node_with_fewest_outstanding_tokens_gets_the_next() -> None:
    router = Router(2)
    assert router.assign("long", prompt(0, 400), 10) == 0
    assert [router.assign(f"{i}", prompt(i, 40), 10) for i in (1, 2, 3)] == [1, 1, 1]


def test_a_known_beginning_returns_to_its_node() -> None:
    router = Router(2)
    router.assign("other", prompt(1, 32), 1)
    assert router.assign("first", prompt(2, 320), 8) == 1
    router.release("first")
    follow_up = [*prompt(2, 320), *prompt(3, 64)]
    router.release("other")
    assert router.assign("second", follow_up, 8) == 1, "node 0 is as idle, but has no prefix"


def test_requests_go_to_members_only_whatever_a_prefix_would_save() -> None:
    router = Router(3)
    assert router.assign("first", prompt(1, 320), 8) == 0
    router.enter((1, 2))
    assert [router.assign(f"{i}", prompt(1, 320), 8) for i in range(2)] == [1, 2]
    router.produced("first", 1)
    router.release("first")
    assert router.loads[0] == 0, "what it had still counted there"
    router.enter((0, 1, 2))
    assert router.assign("again", prompt(2, 40), 8) == 0
    router.check_integrity()


def test_affinity_ends_where_the_node_is_busier_than_it_saves() -> None:
    router = Router(2)
    assert router.assign("first", prompt(1, 64), 1) == 0
    assert router.assign("other", prompt(2, 100), 1) == 1
    assert router.assign("second", prompt(1, 64), 200) == 0, "64 tokens saved, and less busy"
    assert router.loads == (65 + 200, 101)
    assert router.assign("third", prompt(1, 64), 1) == 1, "64 tokens saved, but 164 busier"


def test_progress_lowers_a_load_and_the_end_takes_it_away() -> None:
    router = Router(1)
    router.assign("a", prompt(1, 100), 20)
    assert router.loads == (120,)
    router.produced("a", 1)
    assert router.loads == (19,)
    router.produced("a", 30)
    assert router.loads == (1,), "what still runs isn't free"
    router.release("a")
    assert router.loads == (0,)


def test_an_unlimited_request_counts_as_an_ordinary_one() -> None:
    router = Router(1)
    router.assign("a", prompt(1, 10), 1_000_000)
    assert router.loads[0] < 1000


def test_prefixes_are_whole_blocks_and_depend_on_every_token() -> None:
    tokens = prompt(1, 5 * BLOCK_SIZE)
    lengths = [length for length, _ in prefix_hashes(tokens)]
    assert lengths == [BLOCK_SIZE, 2 * BLOCK_SIZE, 4 * BLOCK_SIZE]
    changed = [*tokens[: BLOCK_SIZE + 1], 7, *tokens[BLOCK_SIZE + 2 :]]
    same = [a == b for a, b in zip(prefix_hashes(tokens), prefix_hashes(changed), strict=True)]
    assert same == [True, False, False]


def test_the_memory_of_prefixes_is_bounded_and_forgets_the_oldest() -> None:
    router = Router(2, max_prefixes=4)
    router.assign("pin", prompt(99, 8), 1)  # too short for a prefix; makes node 1 the idler one
    assert router.assign("old", prompt(0, 16), 1) == 1
    for number in range(1, 5):
        router.assign(f"{number}", prompt(number, 16), 1)
        router.release(f"{number}")
    router.release("pin")
    router.release("old")
    router.check_integrity()
    assert router.assign("again", prompt(0, 16), 1) == 0, "its prefix should be forgotten"


@given(st.data(), st.integers(1, 4))
@settings(max_examples=60)
def test_loads_stay_true_over_any_sequence_of_events(data: st.DataObject, nodes: int) -> None:
    router, running = Router(nodes, max_prefixes=8), []
    for number in range(data.draw(st.integers(0, 25))):
        action = data.draw(st.sampled_from(["assign", "produced", "release"]))
        if action == "assign" or not running:
            running.append(f"{number}")
            length = data.draw(st.integers(1, 100))
            seed = data.draw(st.integers(0, 3))
            node = router.assign(running[-1], prompt(seed, length), data.draw(st.integers(1, 900)))
            assert 0 <= node < nodes
        elif action == "produced":
            router.produced(data.draw(st.sampled_from(running)), data.draw(st.integers(0, 40)))
        else:
            router.release(running.pop(data.draw(st.integers(0, len(running) - 1))))
        router.check_integrity()
        assert min(router.loads) >= 0
    for request_id in running:
        router.release(request_id)
    assert router.loads == (0,) * nodes


def test_the_same_request_is_released_once() -> None:
    router = Router(1)
    router.assign("a", [1], 1)
    router.release("a")
    with pytest.raises(KeyError):
        router.release("a")
