"""The pool: always as many, unfinished answers first, and none lost or taken twice."""

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.errors import ProtocolError
from megainfer.rl.samples.pool import Pool
from megainfer.rl.samples.problem_order import ProblemOrder
from megainfer.rl.samples.sample import Sample, Window
from tests.support.rl_samples import END, sample_of, window_of

MOST = 12


class Draws:
    """Gives all answers to a problem at a time."""

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        self._numbers = count()
        self.groups = 0

    def __call__(self) -> list[Sample]:
        self.groups += 1
        return [
            Sample(next(self._numbers), self.groups - 1, 0, (1,)) for _ in range(self._group_size)
        ]


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 6), st.data())
def test_a_run_of_steps(size: int, group_size: int, window: int, data: st.DataObject) -> None:
    pool, draw = Pool(size), Draws(group_size)
    released: list[int] = []
    unfinished: list[int] = []
    for step in range(8):
        samples = pool.fill(draw)
        numbers = [sample.number for sample in samples]
        assert len(samples) == size
        assert numbers[: len(unfinished)] == unfinished, "those that go on come first"
        assert numbers == sorted(numbers), "and then others in the order they were begun"
        assert len(pool.waiting) < group_size, "a problem is drawn only when none waits"
        for sample in samples:
            tokens = [3] * data.draw(st.integers(1, sample.room(window, MOST)))
            tokens[-1] = data.draw(st.sampled_from([3, END]))
            sample.add(window_of(tokens, version=step), MOST, [END])
        finished = pool.release()
        assert all(sample.finished for sample in finished)
        released += [sample.number for sample in finished]
        unfinished = [sample.number for sample in samples if not sample.finished]
        assert [sample.number for sample in pool.running] == unfinished
        pool.check_integrity()
    seen = released + unfinished + [sample.number for sample in pool.waiting]
    assert sorted(seen) == list(range(draw.groups * group_size)), "none is lost or there twice"


def test_whole_groups_end_in_whole_groups() -> None:
    """As in PPO and GRPO, where nothing waits from one step to the next."""
    pool, draw = Pool(6), Draws(3)
    for step in range(3):
        samples = pool.fill(draw)
        assert Counter(sample.group for sample in samples) == {2 * step: 3, 2 * step + 1: 3}
        for sample in samples:
            sample.add(window_of([END]), MOST, [END])
        assert pool.release() == samples


def test_a_pool_goes_on_from_what_was_read_from_it() -> None:
    pool, draw = Pool(4), Draws(3)
    first = pool.fill(draw)
    first[1].add(window_of([END]), MOST, [END])
    pool.release()
    again = Pool.of(4, pool.running, pool.waiting)
    assert again.fill(draw) == pool.fill(Draws(3)) == [first[0], *first[2:], again.running[-1]]


def test_an_answer_ends_by_an_end_token_or_by_its_length() -> None:
    assert sample_of([3, 3], most=3).finish is None
    assert sample_of([3, 3], [END], most=3).finish == "stop"
    assert sample_of([3, 3], [3], most=3).finish == "length"
    assert sample_of([END, 3], most=3).finish is None, "only a last token ends it"
    sample = sample_of([3, 4], [5], most=8)
    assert sample.room(4, 8) == 4
    assert sample.room(9, 8) == 5
    assert (sample.length, sample.response_ids) == (3, [3, 4, 5])
    assert sample.token_ids == [5, 6, 7, 3, 4, 5]


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Window((), (), 0), "1 to 3 tokens was asked for, not 0"),
        (Window((1,) * 4, (-1.0,) * 4, 0), "1 to 3 tokens was asked for, not 4"),
        (Window((1, 1), (-1.0,), 0), "has 1 log-probabilities for 2 tokens"),
        (Window((1, 1), (-1.0, -1.0), 0), "stopped after 2 of 3 tokens without an end token"),
        (Window((9, END), (-1.0, -1.0), 0), "has token 9; there are 9"),
        (Window((END,), (float("nan"),), 0), "has log-probability nan for token 2"),
        (Window((END,), (float("-inf"),), 0), "has log-probability -inf for token 2"),
    ],
)
def test_what_an_engine_may_not_give_is_named(window: Window, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        window.check(3, vocab_size=9, end_tokens=[END])


@given(st.integers(1, 20), st.integers(0, 2**40), st.integers(0, 60))
def test_each_epoch_has_each_problem_once_and_goes_on_where_it_stopped(
    problems: int, seed: int, drawn: int
) -> None:
    order = ProblemOrder(problems, seed)
    whole = [order.draw() for _ in range(80)]
    for start in range(0, 80 - problems, problems):
        assert sorted(whole[start : start + problems]) == list(range(problems))
    resumed = ProblemOrder(problems, seed, drawn)
    assert [resumed.draw() for _ in range(80 - drawn)] == whole[drawn:]
    assert resumed.epoch == 80 / problems


def test_epochs_and_seeds_differ() -> None:
    first, second = ProblemOrder(50, seed=1), ProblemOrder(50, seed=2)
    epochs = [[first.draw() for _ in range(50)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [second.draw() for _ in range(50)]
