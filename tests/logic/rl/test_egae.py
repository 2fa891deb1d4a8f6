"""EGAE is GAE where an answer ended, and has the stated bootstrap where it was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.rl.advantages.egae import egae
from megainfer.rl.advantages.returns import rewards_to_go

numbers = st.floats(-10, 10, allow_subnormal=False)
shares = st.floats(0, 1)
steps = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30)


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """GAE as its paper has it: values has one more than rewards, that of the last state; the sum
    over k of (gamma lambda)^k delta_{t+k}, term by term."""
    count = len(rewards)
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(count)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(count - t)) for t in range(count)]


@given(steps, shares, shares)
def test_it_is_gae_where_the_answer_ended(
    given_steps: list[tuple[float, float]], gamma: float, lam: float
) -> None:
    rewards, values = map(list, zip(*given_steps, strict=True))
    expected = slow_gae(rewards, [*values, 0.0], gamma, lam)
    found = egae(rewards, values, finished=True, gamma=gamma, lam=lam)
    assert found == pytest.approx(expected, abs=1e-9)


@given(steps, shares, shares)
def test_a_cut_answers_last_value_stands_for_what_follows(
    given_steps: list[tuple[float, float]], gamma: float, lam: float
) -> None:
    rewards, values = map(list, zip(*given_steps, strict=True))
    expected = slow_gae(rewards, [*values, values[-1]], gamma, lam)
    found = egae(rewards, values, finished=False, gamma=gamma, lam=lam)
    assert found == pytest.approx(expected, abs=1e-9)
    last = rewards[-1] + (gamma - 1) * values[-1]
    assert found[-1] == pytest.approx(last, abs=1e-12)


@given(steps, shares, shares, st.booleans(), st.data())
def test_a_window_needs_nothing_from_before_it(
    given_steps: list[tuple[float, float]],
    gamma: float,
    lam: float,
    finished: bool,
    data: st.DataObject,
) -> None:
    rewards, values = map(list, zip(*given_steps, strict=True))
    start = data.draw(st.integers(0, len(values) - 1))
    whole = egae(rewards, values, finished=finished, gamma=gamma, lam=lam)
    window = egae(rewards[start:], values[start:], finished=finished, gamma=gamma, lam=lam)
    assert window == whole[start:]


def test_by_hand() -> None:
    rewards, values = [0.0, 0.0, 1.0], [0.5, 0.25, 0.75]
    # Deltas with gamma 1: -0.25, 0.5, 0.25; with lambda 1/2 each takes half of what follows.
    assert egae(rewards, values, finished=True, gamma=1, lam=0.5) == [0.0625, 0.625, 0.25]
    # Cut: the last delta is 0, if there is no reward.
    cut = egae([0.0] * 3, values, finished=False, gamma=1, lam=0.5)
    assert cut == [0.0, 0.5, 0.0]
    # With a discount: V(s_3) = V(s_2) = 0.75, so the last delta is (0.5 - 1) 0.75.
    discounted = egae([0.0] * 3, values, finished=False, gamma=0.5, lam=1)
    assert discounted == pytest.approx([-0.375 + 0.125 / 2 - 0.375 / 4, 0.125 - 0.1875, -0.375])


def test_nothing_gives_nothing() -> None:
    assert egae([], [], finished=False, gamma=1, lam=1) == []


@given(steps, shares)
def test_lambda_1_is_reward_to_go_less_the_value(
    given_steps: list[tuple[float, float]], gamma: float
) -> None:
    rewards, values = map(list, zip(*given_steps, strict=True))
    advantages = egae(rewards, values, finished=True, gamma=gamma, lam=1)
    returns = rewards_to_go(rewards, gamma)
    slow = [
        sum(gamma**k * rewards[t + k] for k in range(len(rewards) - t)) for t in range(len(rewards))
    ]
    assert returns == pytest.approx(slow, abs=1e-9)
    expected = [g - v for g, v in zip(returns, values, strict=True)]
    assert advantages == pytest.approx(expected, abs=1e-9)
