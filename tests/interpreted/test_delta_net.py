"""Gated DeltaNet's kernels, interpreted, against the reference in float64."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.kernels.delta.convolution import convolve
from megainfer.compute.gpu.kernels.delta.delta_chunks import recur_by_chunks
from megainfer.compute.gpu.kernels.delta.delta_net import Recurrent, norm_gated, recur
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST
from megainfer.models.spec import DeltaNetSpec

SLOTS = 6
GUARDS = 2
SHAPES = [
    DeltaNetSpec(key_heads=1, value_heads=2, key_dim=12, value_dim=10, taps=4),
    DeltaNetSpec(key_heads=2, value_heads=2, key_dim=5, value_dim=37, taps=2),
    DeltaNetSpec(key_heads=1, value_heads=1, key_dim=32, value_dim=64, taps=1),
]
RULES = [recur, recur_by_chunks]
every_shape = pytest.mark.parametrize("spec", SHAPES, ids=lambda spec: f"{spec.value_dim}")
every_rule = pytest.mark.parametrize("rule", RULES)


class Part(NamedTuple):
    """What one sequence does: so many tokens from this position on, its state in this slot."""

    tokens: int
    start: int
    slot: int


DECODES = [Part(1, 7, 3), Part(1, 1, 0), Part(1, 0, 5)]
PROMPTS = [Part(17, 2, 4), Part(2, 0, 1), Part(3, 9, 0)]
LONG = [Part(66, 0, 2), Part(32, 30, 1)]


@dataclass(frozen=True)
class Step:
    """Sequences behind `before` rows of others."""

    parts: Sequence[Part]
    before: int = 2

    @property
    def span(self) -> Span:
        starts = [*accumulate((part.tokens for part in self.parts), initial=self.before)]
        return Span(
            torch.tensor(starts),
            torch.zeros(len(self.parts), 1, dtype=torch.int64),
            torch.tensor([part.slot for part in self.parts]),
            slice(starts[0], starts[-1]),
            max(part.tokens for part in self.parts),
            max(part.start + part.tokens for part in self.parts),
        )

    @property
    def positions(self) -> Tensor:
        numbers = [p for part in self.parts for p in range(part.start, part.start + part.tokens)]
        return torch.tensor([99] * self.before + numbers)

    def rows(self) -> list[slice]:
        starts = self.span.row_starts.tolist()
        return [slice(*pair) for pair in pairwise(starts)]


def poisoned(step: Step, *shape: int) -> Tensor:
    """Rows of a step, and some behind them, that hold nothing."""
    return torch.full((step.span.rows.stop + GUARDS, *shape), torch.nan)


def assert_only_written(step: Step, out: Tensor) -> None:
    assert out[: step.before].isnan().all()
    assert out[step.span.rows.stop :].isnan().all()
    assert out[step.span.rows].isfinite().all()


def states_of(step: Step, *shape: int) -> Tensor:
    """Of all slots; poison where nothing may be read."""
    states = torch.randn(SLOTS, *shape)
    for part in step.parts:
        if part.start == 0:
            states[part.slot] = torch.nan
    return states


def before(states: Tensor, part: Part) -> Tensor:
    return states[part.slot].double() if part.start else torch.zeros_like(states[0]).double()


def assert_states(step: Step, now: Tensor, was: Tensor, expected: Sequence[Tensor]) -> None:
    for part, own in zip(step.parts, expected, strict=True):
        torch.testing.assert_close(now[part.slot].double(), own, atol=2e-5, rtol=2e-5)
    others = [slot for slot in range(SLOTS) if slot not in {part.slot for part in step.parts}]
    assert torch.equal(now[others], was[others])


def by_key_head(spec: DeltaNetSpec, x: Tensor) -> Tensor:
    return x.unflatten(-1, (spec.key_heads, spec.key_dim))


def unit_length(spec: DeltaNetSpec, mixed: Tensor) -> Tensor:
    """mixed, its queries of length 1 / sqrt(key_dim) and its keys of length 1."""
    q, k, v = mixed.split([spec.key_size, spec.key_size, spec.value_size], -1)
    q, k = (reference.unit_length(by_key_head(spec, part)).flatten(1) for part in (q, k))
    return torch.cat((q * spec.key_dim**-0.5, k, v), -1)


@every_shape
@pytest.mark.parametrize("parts", [DECODES, PROMPTS], ids=["decodes", "prompts"])
def test_convolution_equals_the_reference_and_keeps_the_last_inputs(spec, parts):
    step = Step(parts)
    taps = torch.randn(spec.channels, spec.taps)
    inputs = torch.randn(step.span.rows.stop, spec.channels + 9)
    past, out = states_of(step, spec.taps - 1, spec.channels), poisoned(step, spec.channels)
    was, kept = past.clone(), []
    convolve(HOST, spec, inputs, taps, past, step.span, step.positions, out)
    for part, rows in zip(parts, step.rows(), strict=True):
        kept.append(before(was, part))
        own = inputs[rows, : spec.channels].double()
        expected = unit_length(spec, reference.causal_convolution(own, kept[-1], taps.double()))
        torch.testing.assert_close(out[rows].double(), expected, atol=1e-5, rtol=1e-5)
    assert_states(step, past, was, kept)
    assert_only_written(step, out)


def random_inputs(spec: DeltaNetSpec, step: Step) -> Recurrent:
    heads, rows = spec.value_heads, step.span.rows.stop
    return Recurrent(
        unit_length(spec, torch.randn(rows, spec.channels)),
        torch.randn(rows, 2 * heads),
        torch.randn(heads),
        torch.randn(heads) - 2,
        step.positions,
    )


def expected_of(spec: DeltaNetSpec, inputs: Recurrent, rows: slice, state: Tensor) -> Tensor:
    """What is read of one sequence's rows; the state takes them in."""
    mixed, projected, bias, log_decay = (part.double() for part in inputs[:4])
    q, k, v = mixed[rows].split([spec.key_size, spec.key_size, spec.value_size], -1)
    q, k = (
        by_key_head(spec, part).repeat_interleave(spec.value_heads // spec.key_heads, 1)
        for part in (q * spec.key_dim**0.5, k)
    )
    rates, decays = projected[rows].chunk(2, -1)
    decays = reference.decays(decays, bias, log_decay)
    v = v.unflatten(1, (spec.value_heads, -1))
    return reference.delta_rule(q, k, v, decays, rates.sigmoid(), state)


def assert_rule(spec: DeltaNetSpec, step: Step, inputs: Recurrent, rule) -> None:
    state = states_of(step, spec.value_heads, spec.key_dim, spec.value_dim)
    was, after = state.clone(), []
    out = poisoned(step, spec.value_heads, spec.value_dim)
    rule(HOST, spec, inputs, state, step.span, out)
    for part, rows in zip(step.parts, step.rows(), strict=True):
        after.append(before(was, part))
        expected = expected_of(spec, inputs, rows, after[-1])
        torch.testing.assert_close(out[rows].double(), expected, atol=2e-5, rtol=2e-5)
    assert_states(step, state, was, after)
    assert_only_written(step, out)


@every_shape
@every_rule
@pytest.mark.parametrize("parts", [DECODES, PROMPTS], ids=["decodes", "prompts"])
def test_the_rule_equals_the_reference(spec, rule, parts):
    step = Step(parts)
    assert_rule(spec, step, random_inputs(spec, step), rule)


def test_a_padding_row_changes_no_state_and_reads_zeros():
    spec, step = SHAPES[0], Step([Part(1, -1, 3), Part(1, 4, 0)])
    past, state = states_of(step, spec.taps - 1, spec.channels), states_of(step, 2, 12, 10)
    was = past[3].clone(), state[3].clone()
    inputs, out = random_inputs(spec, step), poisoned(step, 2, 10)
    taps = torch.randn(spec.channels, spec.taps)
    mixed = poisoned(step, spec.channels)
    convolve(HOST, spec, inputs.mixed, taps, past, step.span, step.positions, mixed)
    assert mixed[step.before].isnan().all()
    recur(HOST, spec, inputs, state, step.span, out)
    assert torch.equal(past[3], was[0])
    assert torch.equal(state[3], was[1])
    assert not out[step.before].any()


def test_chunks_follow_each_other():
    step = Step(LONG)
    assert_rule(SHAPES[0], step, random_inputs(SHAPES[0], step), recur_by_chunks)


@every_rule
@pytest.mark.parametrize("log_decay", [-30.0, 4.0], ids=["nothing fades", "all fades"])
def test_the_same_token_over_and_over(rule, log_decay):
    """The worst that a triangular system can be: all keys alike and every rate near 1."""
    spec, step = SHAPES[0], Step([Part(40, 3, 0)])
    inputs = random_inputs(spec, step)
    inputs.mixed.copy_(inputs.mixed[:1].clone().expand_as(inputs.mixed))
    inputs.projected[:, : spec.value_heads] = 9.0
    assert_rule(spec, step, inputs._replace(log_decay=torch.full((2,), log_decay)), rule)


def test_token_by_token_a_result_is_the_same_bits_however_it_is_cut():
    spec, whole = SHAPES[0], Step([Part(20, 0, 1)], before=0)
    inputs = random_inputs(spec, whole)
    state, out = (
        torch.empty(SLOTS, spec.value_heads, spec.key_dim, spec.value_dim),
        torch.empty(20, spec.value_heads, spec.value_dim),
    )
    recur(HOST, spec, inputs, state, whole.span, out)
    again, parts = torch.empty_like(state), torch.empty_like(out)
    for start, stop in ((0, 1), (1, 9), (9, 20)):
        own = Recurrent(*(part[start:stop] if len(part) == 20 else part for part in inputs))
        step = Step([Part(stop - start, start, 1)], before=0)
        recur(HOST, spec, own, again, step.span, parts[start:stop])
    assert torch.equal(parts, out)
    assert torch.equal(again[1], state[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "heads", "size"), [(0, 2, 8), (3, 3, 7), (9, 4, 32)])
def test_gated_norm_equals_the_reference(tokens, heads, size, dtype):
    read, weight = torch.randn(tokens, heads, size), torch.randn(size)
    gates = torch.randn(tokens, 5 + heads * size).to(dtype)[:, 5:]
    out = norm_gated(HOST, read, weight, gates, 1e-6)
    expected = reference.rms_norm(read, weight, 1e-6).flatten(1) * silu(gates.float())
    bound = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(out, expected.to(dtype), atol=1e-5, rtol=bound)
