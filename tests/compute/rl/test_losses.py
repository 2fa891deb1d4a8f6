"""Losses against slow versions, token by token, and by hand; their gradients against formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megainfer.rl.losses.logprobs import chosen_logprobs
from megainfer.rl.losses.policy import clipped_share, policy_loss
from megainfer.rl.losses.value import value_loss

logprobs = st.floats(-30, 0, width=32, allow_subnormal=False)
numbers = st.floats(-10, 10, width=32, allow_subnormal=False)


def slow_policy_loss(new: float, old: float, advantage: float) -> float:
    """T-PPO's numbers: clip 0.2 and 0.28, dual clip 10."""
    ratio = math.exp(new - old)
    clipped = min(max(ratio, 0.8), 1.28)
    objective = min(ratio * advantage, clipped * advantage)
    if advantage < 0:
        objective = max(objective, 10 * advantage)
    return -objective


@given(st.lists(st.tuples(logprobs, logprobs, numbers), min_size=1, max_size=20))
def test_policy_loss_is_the_slow_one(tokens: list[tuple[float, float, float]]) -> None:
    new, old, advantages = (torch.tensor(column) for column in zip(*tokens, strict=True))
    expected = [slow_policy_loss(*token) for token in tokens]
    assert policy_loss(new, old, advantages).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on-policy: the gradient of log p is -A
        (1.2, 2.0, -2.4, -2.4),
        (1.5, 2.0, -2.56, 0.0),  # above 1.28: no further
        (0.5, 2.0, -1.0, -1.0),  # below, but against its profit: all the way back
        (1.0, -2.0, 2.0, 2.0),
        (0.9, -2.0, 1.8, 1.8),
        (0.5, -2.0, 1.6, 0.0),  # below 0.8: no further
        (5.0, -2.0, 10.0, 10.0),
        (12.0, -2.0, 20.0, 0.0),  # the dual clip
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    new = torch.tensor([math.log(ratio)], requires_grad=True)
    found = policy_loss(new, torch.zeros(1), torch.tensor([advantage]))
    found.sum().backward()
    assert found.item() == pytest.approx(loss, rel=1e-6)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(gradient, rel=1e-6)


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_a_ratio_beyond_floating_point_changes_nothing(advantage: float) -> None:
    new = torch.tensor([0.0], requires_grad=True)
    loss = policy_loss(new, torch.tensor([-1000.0]), torch.tensor([advantage]))
    loss.sum().backward()
    assert loss.item() == pytest.approx({-1.0: 10.0, 0.0: 0.0, 1.0: -1.28}[advantage])
    assert new.grad is not None
    assert new.grad.item() == 0.0


def test_the_clipped_share_counts_what_has_no_gradient() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    assert clipped_share(ratio, advantages, 0.2, 0.28).item() == pytest.approx(2 / 5)


def slow_value_loss(value: float, old: float, target: float) -> float:
    clipped = min(max(value, old - 0.5), old + 0.6)
    return max((value - target) ** 2, (clipped - target) ** 2) / 2


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=20))
def test_value_loss_is_the_slow_one(tokens: list[tuple[float, float, float]]) -> None:
    values, old, returns = (torch.tensor(column) for column in zip(*tokens, strict=True))
    expected = [slow_value_loss(*token) for token in tokens]
    assert value_loss(values, old, returns).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (0.25, 0.25, 1.0, 0.28125, -0.75),
        (0.75, 0.0, 1.0, 0.08, 0.0),  # more than 0.6 above: no further
        (-0.75, 0.0, -1.0, 0.125, 0.0),  # more than 0.5 below: no further
        (0.75, 0.0, -1.0, 1.53125, 1.75),  # and back in full
    ],
)
def test_value_loss_by_hand(
    value: float, old: float, target: float, loss: float, gradient: float
) -> None:
    given_value = torch.tensor([value], requires_grad=True)
    found = value_loss(given_value, torch.tensor([old]), torch.tensor([target]))
    found.sum().backward()
    assert found.item() == pytest.approx(loss, rel=1e-6)
    assert given_value.grad is not None
    assert given_value.grad.item() == pytest.approx(gradient)


def test_chosen_logprobs_are_log_softmax() -> None:
    logits = 50 * torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([0, 10, 3, 3, 5, 9, 1])
    expected = torch.log_softmax(logits.double(), dim=-1)[torch.arange(7), tokens]
    torch.testing.assert_close(chosen_logprobs(logits, tokens), expected.float())
    wide = chosen_logprobs(logits.bfloat16(), tokens)
    assert wide.dtype == torch.float32
