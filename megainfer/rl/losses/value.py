"""The value model's clipped squared error.

Source: PPO's usual implementation (Huang et al., "The 37 implementation details of PPO", 2022,
detail 9: value function loss clipping); T-PPO (arXiv 2506.15050) takes 0.5 below and 0.6 above:

    loss = 1/2 max((V - G)^2, (clip(V, V_old - low, V_old + high) - G)^2)
"""

import torch
from torch import Tensor


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, low: float = 0.5, high: float = 0.6
) -> Tensor:
    """Each token's loss, float32 [R].

    values: V, [R], with gradients; old_values: V when the token was drawn; returns: G, what V
    should be. low, high: how far V may move from V_old to its profit.
    """
    clipped = torch.clamp(values, old_values - low, old_values + high)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
