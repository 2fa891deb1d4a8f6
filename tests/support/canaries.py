"""Memory that is nobody's, filled with what can't be overheard."""

import torch

from megainfer.attention_node.node import AttentionNode


def unused_blocks(node: AttentionNode) -> torch.Tensor:
    held = {block for sequence in node.scheduler.live for block in sequence.block_ids}
    return torch.tensor([b for b in range(node._parts.kv.num_blocks) if b not in held])


def unused_slots(node: AttentionNode) -> torch.Tensor:
    held = {sequence.state_slot for sequence in node.scheduler.live}
    return torch.tensor(
        [s for s in range(node._parts.kv.states.num_slots) if s not in held], dtype=int
    )


def fill_unused(node: AttentionNode, value: float) -> None:
    """All blocks and states without a user, of a node without a prefix cache."""
    blocks, slots = unused_blocks(node), unused_slots(node)
    for layer in range(len(node._model.spec.layers)):
        states = node._parts.kv.states.layer(layer)
        for tensor in node._parts.kv.layer(layer):
            tensor[slots if any(tensor is state for state in states) else blocks] = value
