"""Dispatch, expert, combine without slots or messages: slow, obvious, and the oracle of tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megainfer.m2n.mailbox import Part

Expert = Callable[[int, int, Tensor], Tensor]
"""(expert node, local id, token float32 [D]) -> output float32 [D]"""


@dataclass(frozen=True, slots=True)
class ExpertChoices:
    """Where the tokens of a step go.

    expert_ids: int64 [T, K], global. weights: float32 [T, K]. homes: for each global expert id,
    the expert node that serves it and its local id there.
    """

    expert_ids: Tensor
    weights: Tensor
    homes: tuple[tuple[int, int], ...]


def marked_tokens(num_tokens: int, hidden_size: int, source: int, dtype: torch.dtype) -> Tensor:
    """[T, D] whose rows are told apart by token and source, exact in every dtype of the wire, so
    that a row which went astray can't go unnoticed."""
    token = torch.arange(num_tokens, dtype=torch.int64).unsqueeze(1)
    column = torch.arange(hidden_size, dtype=torch.int64).unsqueeze(0)
    mixed = (token + 1) * 2654435761 + column * 40503 + (source + 1) * 7919 * (column + 1)
    return ((mixed >> 5) % 251 - 125).to(dtype)


def make_part(routing: ExpertChoices, node: int) -> Part:
    """What expert node `node` is sent: each token that chose an expert there, once."""
    rows, local_ids, weights = [], [], []
    for token, experts in enumerate(routing.expert_ids.tolist()):
        homes = [routing.homes[expert] for expert in experts]
        if not any(owner == node for owner, _ in homes):
            continue
        chosen = routing.weights[token].tolist()
        rows.append(token)
        local_ids.append([local if owner == node else -1 for owner, local in homes])
        weights.append(
            [w if owner == node else 0.0 for w, (owner, _) in zip(chosen, homes, strict=True)]
        )
    shape = (len(rows), routing.expert_ids.shape[1])
    return Part(
        rows=torch.tensor(rows, dtype=torch.int64),
        local_ids=torch.tensor(local_ids, dtype=torch.int32).view(shape),
        weights=torch.tensor(weights, dtype=torch.float32).view(shape),
    )


def make_parts(routing: ExpertChoices, num_expert: int) -> tuple[Part, ...]:
    """What each expert node is sent, in node order."""
    return tuple(make_part(routing, node) for node in range(num_expert))


def serve(node: int, hidden: Tensor, local_ids: Tensor, weights: Tensor, expert: Expert) -> Tensor:
    """The reply [R, D] of expert node `node`: weighted and summed over its experts, in float32."""
    sums = torch.zeros(hidden.shape, dtype=torch.float32)
    for row, choices in enumerate(local_ids.tolist()):
        for k, local in enumerate(choices):
            if local >= 0:
                sums[row] += weights[row, k] * expert(node, local, hidden[row].float())
    return sums.to(hidden.dtype)


def combine(parts: Sequence[Part], replies: Sequence[Tensor], out: Tensor) -> None:
    """Add the replies into `out` [T, D] in node order."""
    for part, reply in zip(parts, replies, strict=True):
        for index, token in enumerate(part.rows.tolist()):
            out[token] += reply[index].to(out.dtype)


def moe(hidden: Tensor, routing: ExpertChoices, num_expert: int, expert: Expert) -> Tensor:
    """[T, D]: every token's weighted sum of experts, by way of parts and replies."""
    parts = make_parts(routing, num_expert)
    replies = [
        serve(node, hidden[part.rows], part.local_ids, part.weights, expert)
        for node, part in enumerate(parts)
    ]
    out = torch.zeros_like(hidden)
    combine(parts, replies, out)
    return out


def moe_without_nodes(hidden: Tensor, routing: ExpertChoices, expert: Expert) -> Tensor:
    """The same sum in float32, as a model on one device would do it; rounding may differ."""
    out = torch.zeros(hidden.shape, dtype=torch.float32)
    for token, experts in enumerate(routing.expert_ids.tolist()):
        for k, chosen in enumerate(experts):
            node, local = routing.homes[chosen]
            out[token] += routing.weights[token, k] * expert(node, local, hidden[token].float())
    return out
