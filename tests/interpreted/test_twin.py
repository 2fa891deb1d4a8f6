"""Messages between nodes on GPUs, kernels interpreted: rows into a peer's payloads, replies out of
one's own, against the reference."""

import pytest
import torch

from megainfer.compute.gpu.kernels.routing.packing import KernelPacking
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import AttentionPort, Dispatch, ExpertPort, Part
from megainfer.m2n.reference import Expert, make_parts, marked_tokens, moe, serve
from tests.support.m2n_cluster import affine_expert, padded, random_routing, spread
from tests.support.twin_hub import TwinHub

CAPACITY, HIDDEN, TOP_K = 9, 40, 3


def with_places(part: Part, tokens: int) -> Part:
    """As kernels plan it: as many rows as tokens, and where each token is among them."""
    places = torch.full((tokens,), -1, dtype=torch.int32)
    places[part.rows] = torch.arange(len(part.rows), dtype=torch.int32)
    return padded(part, tokens)._replace(places=places)


def answer(port: ExpertPort, node: int, expert: Expert) -> None:
    """Of what is behind the rows that count it knows nothing, and leaves poison there."""
    for message in port.receive():
        assert isinstance(message, Dispatch)
        assert message.count is not None
        count = int(message.count)
        rows = (message.hidden, message.local_ids, message.weights)
        reply = serve(node, *(tensor[:count] for tensor in rows), expert)
        port.reply_buffer(message).fill_(torch.nan)[:count] = reply
        port.reply(message)


def layer(
    attention: AttentionPort, experts: list[ExpertPort], parts: list[Part], hidden: torch.Tensor
) -> torch.Tensor:
    homes = spread(5, len(experts))
    handle = attention.dispatch(1, 0, hidden, parts)
    assert handle.awaiting == set(range(len(experts)))
    for node, port in enumerate(experts):
        answer(port, node, affine_expert(homes))
    assert len(attention.poll()) == len(experts)
    out = torch.zeros_like(hidden)
    attention.combine(handle, out)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 4, CAPACITY])
@pytest.mark.parametrize("nodes", [2, 3])
def test_a_layer_equals_the_references(nodes: int, tokens: int, dtype: str) -> None:
    hub = TwinHub(Geometry(1, nodes, 2, CAPACITY, HIDDEN, TOP_K, dtype), KernelPacking())
    attention, experts = hub.attention_port(0), [hub.expert_port(n) for n in range(nodes)]
    homes, generator = spread(5, nodes), torch.Generator().manual_seed(tokens)
    hidden = marked_tokens(tokens, HIDDEN, 0, getattr(torch, dtype))
    for _ in range(2):  # slots are used again
        routing = random_routing(tokens, TOP_K, homes, generator)
        parts = [with_places(part, tokens) for part in make_parts(routing, nodes)]
        out = layer(attention, experts, parts, hidden)
        assert torch.equal(out, moe(hidden, routing, nodes, affine_expert(homes)))
