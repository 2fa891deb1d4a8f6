"""EGAE, the extended generalised advantage estimation of T-PPO: GAE that also takes cut answers.

Source: T-PPO (arXiv 2506.15050), after GAE (Schulman et al., arXiv 1506.02438), formula 16:

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    A_t     = sum over k = 0 .. l-t-1 of (gamma lambda)^k delta_{t+k}

s_t is the prompt with the answer's first t tokens, l how many there are. A finished answer has
V(s_l) = 0; one that was cut at its window's end has V(s_l) = V(s_{l-1}), which is the paper's
choice: with gamma = 1 and no reward its last delta is 0.

A_t needs nothing from before t, so a window's advantages need that window's values only.
"""

from collections.abc import Sequence


def egae(
    rewards: Sequence[float],
    values: Sequence[float],
    *,
    finished: bool,
    gamma: float,
    lam: float,
) -> list[float]:
    """A_t of consecutive tokens, the answer's last one at their end.

    rewards: r_t; values: V(s_t); as many of both. finished: the answer ends here, and isn't cut.
    """
    advantages = [0.0] * len(values)
    following = 0.0 if finished or not values else values[-1]
    advantage = 0.0
    for t in range(len(values) - 1, -1, -1):
        delta = rewards[t] + gamma * following - values[t]
        advantage = delta + gamma * lam * advantage
        advantages[t] = advantage
        following = values[t]
    return advantages
