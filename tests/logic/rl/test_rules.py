"""Rules that score a response in this process."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.rl.rewards.choice import open_reward
from megainfer.rl.rewards.functions import load
from megainfer.rl.rewards.rules import last_number
from megainfer.rl.rewards.score import Attempt, Score


def scored(spec: str, response: str, answer: str) -> Score:
    (score,) = open_reward(spec, 1, 1.0).score([Attempt("?", response, answer)])
    return score


@pytest.mark.parametrize(
    ("spec", "response", "answer", "reward"),
    [
        ("exact", " 42\n", "42", 1.0),
        ("exact", "It is 42", "42", 0.0),
        ("numeric", "so 6 x 7 = 42.", "42", 1.0),
        ("numeric", "that makes $1,200.0", "#### 1200", 1.0),
        ("numeric", "42 or 43", "42", 0.0),
        ("numeric", "no idea", "42", 0.0),
    ],
)
def test_rules(spec: str, response: str, answer: str, reward: float) -> None:
    assert scored(spec, response, answer) == Score(reward)


@pytest.mark.parametrize("value", [0.5, Fraction(1, 2), np.float32(0.5), np.float64(0.5)])
def test_a_real_number_is_a_reward(value: object) -> None:
    assert Score.of(value) == Score(0.5)
    assert Score.of(np.int64(1)) == Score(1.0)


@pytest.mark.parametrize("value", [None, "1", 1j, [1.0], np.float32("inf"), 10**400])
def test_what_is_no_finite_number_is_a_skip(value: object) -> None:
    assert Score.of(value).reward is None


def test_an_answer_without_a_number_is_a_skip() -> None:
    score = scored("numeric", "42", "forty-two")
    assert score == Score(None, "the problem's answer 'forty-two' has no number")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10-3", "3"),
        ("(2)-3", "3"),
        ("x = -3", "-3"),
        ("-.5", "-0.5"),
        ("1.5e-3", "0.0015"),
        ("1,234,567.8", "1234567.8"),
        ("1,2345", "2345"),
        ("2.", "2"),
        ("version 1.2.3", "1.2"),
        ("1e99999", "99999"),
        ("٣", "3"),
    ],
)
def test_the_last_number(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9))
def test_a_number_is_found_as_it_was_written(number: Decimal) -> None:
    assert last_number(f"It is {number:f}") == number
    assert last_number(f"It is {number:,f}.") == number


@pytest.mark.parametrize(
    ("pattern", "response", "reward"),
    [
        (r"#### (\S+)", "#### 41 no: #### 42 ", 1.0),
        (r"\d+", "41, 42", 1.0),
        (r"#### (\d+)", "42", 0.0),
        (r"(x)?42", "42", 0.0),  # its group took no part
    ],
)
def test_a_pattern(pattern: str, response: str, reward: float) -> None:
    assert load(f"regex:{pattern}")(Attempt("?", response, " 42")) == reward


@pytest.mark.parametrize("spec", ["exactly", "regex:", ":f", "module:", ""])
def test_a_reward_that_is_none_is_named(spec: str) -> None:
    with pytest.raises(
        ConfigError, match=f"reward must be exact, .* or module:function, not '{spec}'"
    ):
        open_reward(spec, 1, 1.0)
