"""Gates that choose the experts that they are told: transformers' own, of every kind of router."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megainfer.errors import ModelError
from megainfer.messages.routed_experts import RoutedExperts
from megainfer.rl.samples.rows import Row
from megainfer.rl.training.models import Policy, checkpoint_activations
from tests.support.checkpoints import write_checkpoint

FAMILIES = [
    ("mixtral", "gqa"),
    ("qwen3_moe", "gqa"),
    ("deepseek_v3", "groups"),
    ("gpt_oss", "alternating"),
]
TOKENS = ([5, 9, 14, 3, 7], [21, 22, 23])


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family[0])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(*request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture
def policy(folder: Path) -> Policy:
    policy = Policy.load(folder)
    policy.replay_routing()
    return policy


def rows_of(routing: Sequence[RoutedExperts | None] = (None, None)) -> list[Row]:
    pairs = zip(TOKENS, routing, strict=True)
    return [Row(tokens, range(1, len(tokens)), routing=one) for tokens, one in pairs]


def recorded(ids: Tensor) -> RoutedExperts:
    """int [tokens, layers, top_k]"""
    return RoutedExperts(0, *ids.shape[1:], ids.to(torch.int16).numpy().tobytes())


@contextmanager
def listening(policy: Policy) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Of each call of a gate, in their order, weights and experts."""
    heard: list[tuple[Tensor, Tensor]] = []

    def hear(module: Any, given: Any, out: Any) -> None:
        heard.append((out[-2].detach(), out[-1]))

    gates = [m for m in policy.model.modules() if type(m).__name__.lower().endswith("router")]
    hooks = [gate.register_forward_hook(hear) for gate in gates]
    yield heard
    for hook in hooks:
        hook.remove()


def own_choice(policy: Policy) -> list[RoutedExperts]:
    """What the gates choose by themselves for all tokens of TOKENS but the last of each."""
    width = max(map(len, TOKENS))
    with listening(policy) as heard, torch.no_grad():
        policy.logprobs(rows_of())
    ids = torch.stack([experts for _, experts in heard], 1).view(len(TOKENS), width, len(heard), -1)
    return [recorded(ids[row, : len(own) - 1]) for row, own in enumerate(TOKENS)]


def turned(one: RoutedExperts, experts: int) -> RoutedExperts:
    """The next expert for each, so that a token's are still different ones."""
    ids = torch.frombuffer(bytearray(one.ids), dtype=torch.int16)
    return replace_ids(one, (ids + 1) % experts)


def replace_ids(one: RoutedExperts, ids: Tensor) -> RoutedExperts:
    return RoutedExperts(one.start, one.layers, one.top_k, ids.numpy().tobytes())


def num_experts(policy: Policy) -> int:
    gates = (m for m in policy.model.modules() if type(m).__name__.lower().endswith("router"))
    return int(next(gates).num_experts)


def gradients(policy: Policy, rows: Sequence[Row]) -> dict[str, Tensor]:
    policy.zero_grad()
    policy.logprobs(rows).square().sum().backward()
    named = policy.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_what_they_would_choose_changes_nothing(policy: Policy) -> None:
    """Not a bit, of log-probabilities and of gradients."""
    rows = rows_of(own_choice(policy))
    expected, found = gradients(policy, rows_of()), gradients(policy, rows)
    assert torch.equal(policy.logprobs(rows), policy.logprobs(rows_of()))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_what_they_are_told_is_computed(policy: Policy) -> None:
    """These experts, with the weights that the router gives them; for tokens of which nothing is
    told the gate's own."""
    told = [turned(one, num_experts(policy)) for one in own_choice(policy)]
    with listening(policy) as heard, torch.no_grad():
        changed = policy.logprobs(rows_of(told))
    width = max(map(len, TOKENS))
    for layer, (weights, experts) in enumerate(heard):
        experts = experts.view(len(TOKENS), width, -1)
        for row, one in enumerate(told):
            ids = torch.frombuffer(bytearray(one.ids), dtype=torch.int16)
            right = ids.view(one.stop, one.layers, one.top_k)[:, layer]
            assert torch.equal(experts[row, : one.stop], right.long())
        assert weights.shape[-1] == one.top_k
    with torch.no_grad():
        assert not torch.allclose(changed, policy.logprobs(rows_of()))


def test_weights_are_those_of_the_told_experts(tmp_path: Path) -> None:
    """Of Mixtral, whose formula is short: a softmax, divided by the sum of the chosen."""
    policy = Policy.load(write_checkpoint("mixtral", "gqa", tmp_path))
    policy.replay_routing()
    told = [turned(one, num_experts(policy)) for one in own_choice(policy)]
    with torch.no_grad(), listening(policy) as heard:
        gate = next(m for m in policy.model.modules() if type(m).__name__ == "MixtralTopKRouter")
        seen: list[Tensor] = []
        hook = gate.register_forward_hook(lambda module, given, out: seen.append(given[0]))
        policy.logprobs(rows_of(told))
        hook.remove()
        weights, experts = heard[0]
        scores = torch.softmax(seen[0].view(len(experts), -1) @ gate.weight.T, -1)
    chosen = scores.gather(1, experts)
    torch.testing.assert_close(weights, chosen / chosen.sum(-1, keepdim=True))


def test_activations_that_are_computed_again_choose_the_same(folder: Path, policy: Policy) -> None:
    told = [turned(one, num_experts(policy)) for one in own_choice(policy)]
    expected = gradients(policy, rows_of(told))
    other = Policy.load(folder)
    other.replay_routing()
    checkpoint_activations(other)
    found = gradients(other, rows_of(told))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_a_model_that_cant_replay_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    with pytest.raises(ModelError, match="LlamaForCausalLM has no gates that can replay"):
        Policy(LlamaForCausalLM(config)).replay_routing()


def test_another_number_of_layers_is_an_error(policy: Policy) -> None:
    own = own_choice(policy)
    fewer = [
        RoutedExperts(
            0, one.layers - 1, one.top_k, bytes(2 * one.stop * (one.layers - 1) * one.top_k)
        )
        for one in own
    ]
    with pytest.raises(
        ModelError, match=r"recorded \d+ layers with experts, the policy has \d+ gates"
    ):
        policy.logprobs(rows_of(fewer))


def test_rows_without_it_are_free(policy: Policy) -> None:
    """One answer is told, the other isn't."""
    first, _ = own_choice(policy)
    told = turned(first, num_experts(policy))
    with torch.no_grad():
        alone = policy.logprobs(rows_of()[1:])
        both = policy.logprobs(rows_of([told, None]))
    torch.testing.assert_close(both[len(TOKENS[0]) - 1 :], alone, rtol=1e-5, atol=1e-5)
