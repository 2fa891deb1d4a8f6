"""Which tokens train what, and with which numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.rl.samples.batch import Estimation, rows_by_group, rows_by_value, value_rows
from megainfer.rl.samples.rows import PolicyRow
from megainfer.rl.samples.sample import Sample
from megainfer.rl.samples.spans import policy_span, value_span
from tests.support.rl_samples import END, sample_of, window_of

HOW = Estimation(window=4, edge=2)
PROMPT = 3  # tokens of sample_of's prompts


def test_spans_by_hand() -> None:
    cut = sample_of([3, 3, 3, 3], [4, 4, 4, 4])
    assert (policy_span(cut, edge=2), value_span(cut)) == (range(4, 6), range(0))
    ended = sample_of([3, 3, 3, 3], [4, END])
    assert (policy_span(ended, edge=2), value_span(ended)) == (range(4, 6), range(6))
    short = sample_of([3, 3, 3, 3], [4])
    assert not policy_span(short, edge=2), "a window shorter than the edge is all edge"


@given(st.integers(1, 12), st.integers(0, 12), st.data())
def test_a_token_trains_the_policy_once_or_never_and_the_value_once(
    window: int, edge: int, data: st.DataObject
) -> None:
    most = 30
    sample = Sample(0, 0, 0, (1,))
    policy: list[int] = []
    value: list[int] = []
    edges: set[int] = set()
    while not sample.finished:
        tokens = [3] * data.draw(st.integers(1, sample.room(window, most)))
        tokens[-1] = data.draw(st.sampled_from([3, 3, END]))
        before = sample.length
        sample.add(window_of(tokens), most, [END])
        span = policy_span(sample, edge)
        policy += span
        value += value_span(sample)
        if not sample.finished:
            edges.update(range(max(before, sample.length - edge), sample.length))
    assert len(set(policy)) == len(policy), "one policy update only"
    assert set(policy) == set(range(sample.length)) - edges
    assert value == list(range(sample.length)), "when it has ended"


def test_a_row_by_value_is_the_windows_own() -> None:
    """Two answers, one cut and one correct, by hand: lambda is 0.95, all values are 0.5."""
    cut = sample_of([3, 3], [4, 4, 4, 4], number=0)
    ended = sample_of([3, 3], [4, END], number=1)
    rows = rows_by_value([cut, ended], {1: 1.0}, HOW)
    # Cut: all deltas are 0. Ended: the last delta is 1 - 0.5.
    raw = [0.0, 0.0, 0.95 * 0.5, 0.5]
    mean = sum(raw) / 4
    deviation = (sum((a - mean) ** 2 for a in raw) / 4) ** 0.5
    white = [(a - mean) / deviation for a in raw]
    assert [list(row.advantages) for row in rows] == [
        pytest.approx(white[:2]),
        pytest.approx(white[2:]),
    ]
    assert [row.span for row in rows] == [range(PROMPT + 2, PROMPT + 4)] * 2, "without the edge"
    assert rows[0].token_ids == [5, 6, 7, 3, 3, 4, 4, 4, 4]
    assert [list(row.old_logprobs) for row in rows] == [[-0.125, -0.25]] * 2
    assert [row.correct for row in rows] == [False, True]


@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("finished", [True, False])
def test_lambda_is_of_the_whole_answer_so_far(finished: bool, gamma: float) -> None:
    """Not of its latest window. What is worth 1 in the third token is worth (gamma lambda)^2 in the
    first; whitening keeps ratios of differences."""
    if finished:
        sample = sample_of([3] * 1000, [4, 4, END])
        sample.value([0.0, 0.0, 0.0])
        length = 1003.0
    else:
        sample = sample_of([3] * 1000, [4] * 4)
        sample.value([0.0, 0.0, 0.0, 1.0])
        length = 1004 + 4000 / 2
    how = Estimation(window=4000, edge=1, gamma=gamma)
    (row,) = rows_by_value([sample], {0: 1.0}, how)
    first, second, third = row.advantages
    lam = 1 - 1 / (0.05 * length)
    if finished or gamma == 1:
        assert (second - first) / (third - second) == pytest.approx(gamma * lam)
    else:  # the last delta is (gamma - 1) V too
        last = gamma - 1
        deltas = [0.0, 0.0, gamma, last]
        raw = [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(3)]
        expected = (raw[1] - raw[0]) / (raw[2] - raw[1])
        assert (second - first) / (third - second) == pytest.approx(expected)


def test_a_reward_is_at_the_last_token_of_a_finished_answer_only() -> None:
    """Of a cut answer no reward counts, whatever is given."""
    samples = [sample_of([3] * 4, number=0), sample_of([3, 4, 5, END], number=1)]
    assert rows_by_value(samples, {1: 1.0}, HOW) == rows_by_value(samples, {0: 9.0, 1: 1.0}, HOW)


def test_what_has_no_reward_or_no_token_trains_nothing() -> None:
    unscored = sample_of([3, END], number=0)
    all_edge = sample_of([3, 3], number=1)
    assert rows_by_value([unscored, all_edge], {}, HOW) == []
    assert rows_by_group([unscored, all_edge], {}, HOW) == []
    assert value_rows([unscored, all_edge], {1: 1.0}, gamma=1.0) == []


def test_a_value_row_is_the_whole_answer() -> None:
    sample = sample_of([3, 3], [4, END], number=7, value=0.25)
    (row,) = value_rows([sample, sample_of([3], number=8)], {7: 1.0}, gamma=0.5)
    assert row.token_ids == [5, 6, 7, 3, 3, 4, END]
    assert row.span == range(PROMPT, PROMPT + 4)
    assert row.returns == [0.125, 0.25, 0.5, 1.0]
    assert row.old_values == [0.25] * 4


def test_rows_by_group_compare_answers_to_one_problem() -> None:
    samples = [
        sample_of([3, END], number=0, group=0),
        sample_of([END], number=1, group=0),
        sample_of([4, END], number=2, group=1),
        sample_of([4], number=3, group=1),
    ]
    rows = rows_by_group(samples, {0: 1.0, 1: 0.0, 2: 1.0}, HOW)
    assert [list(row.advantages) for row in rows] == [
        pytest.approx([1.0, 1.0], abs=1e-5),
        pytest.approx([-1.0], abs=1e-5),
        [0.0, 0.0],
    ]


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.floats(0, 1)), min_size=1))
def test_whole_answers_have_no_edge_and_no_bootstrap(
    answers: list[tuple[int, bool, float]],
) -> None:
    """With windows as long as answers T-PPO's rows are PPO's, whatever its edge and window are."""
    most = 9
    samples = [
        sample_of([3] * (length - 1) + [END if stops or length < most else 3], number=n, most=most)
        for n, (length, stops, _) in enumerate(answers)
    ]
    rewards = {n: reward for n, (_, _, reward) in enumerate(answers)}
    assert all(sample.finished for sample in samples)
    wide: list[PolicyRow] = rows_by_value(samples, rewards, Estimation(window=most, edge=8))
    narrow = rows_by_value(samples, rewards, Estimation(window=3, edge=0))
    assert wide == narrow
    assert [len(row.span) for row in wide] == [length for length, _, _ in answers]
