"""Reward-to-go, what a value model is trained towards.

Source: T-PPO (arXiv 2506.15050): the value is fitted to Monte-Carlo returns of finished answers,
that is, to lambda 1: G_t = r_t + gamma G_{t+1}, and nothing after the end.
"""

from collections.abc import Sequence


def rewards_to_go(rewards: Sequence[float], gamma: float) -> list[float]:
    """G_t of each token of a finished answer."""
    returns = [0.0] * len(rewards)
    following = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        following = rewards[t] + gamma * following
        returns[t] = following
    return returns
