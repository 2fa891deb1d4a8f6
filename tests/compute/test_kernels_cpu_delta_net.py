"""The recurrence in C++ against the reference in float64, at every level of this machine."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from megainfer.compute.cpu.kernels.delta_net import (
    DeltaNetKernel,
    DeltaNetWeights,
    Rows,
    pack_delta_net,
)
from megainfer.compute.reference import kernels as reference
from megainfer.models.spec import DeltaNetSpec
from tests.support.kernel_experts import levels

pytestmark = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")

EPS = 1e-6
SLOTS = 5
SHAPES = [
    DeltaNetSpec(key_heads=2, value_heads=4, key_dim=12, value_dim=10, taps=4),
    DeltaNetSpec(key_heads=3, value_heads=3, key_dim=5, value_dim=83, taps=2),
    DeltaNetSpec(key_heads=1, value_heads=3, key_dim=64, value_dim=128, taps=1),
]
every_level = pytest.mark.parametrize("level", levels())
every_shape = pytest.mark.parametrize("spec", SHAPES, ids=lambda spec: f"{spec.value_dim}")


@dataclass(frozen=True)
class Inputs:
    """Rows of the two projections."""

    qkvz: Tensor
    rates_and_decays: Tensor

    def of(self, begin: int, end: int) -> "Inputs":
        return Inputs(self.qkvz[begin:end], self.rates_and_decays[begin:end])


class Layer:
    """Random weights of one layer."""

    def __init__(self, spec: DeltaNetSpec) -> None:
        self.spec, self.generator = spec, torch.Generator().manual_seed(0)
        self.weights = DeltaNetWeights(
            taps=self.random(spec.channels, spec.taps) / spec.taps**0.5,
            time_bias=self.random(spec.value_heads),
            log_decay=self.random(spec.value_heads) - 2,
            head_norm=1 + 0.2 * self.random(spec.value_dim),
        )

    def random(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator)

    def rows(self, count: int) -> Inputs:
        spec = self.spec
        return Inputs(
            self.random(count, spec.channels + spec.value_size),
            self.random(count, 2 * spec.value_heads),
        )

    def states(self) -> tuple[Tensor, ...]:
        """As others have left them."""
        past, state = (self.random(SLOTS, *shape) for shape in self.spec.state_shapes)
        return past, state

    def run(
        self,
        kernel: DeltaNetKernel,
        inputs: Inputs,
        states: tuple[Tensor, ...],
        lengths: list[int],
        starts: list[int],
        slots: list[int],
    ) -> Tensor:
        row_starts = torch.tensor([0, *lengths]).cumsum(0)
        rows = Rows(row_starts, torch.tensor(starts), torch.tensor(slots))
        packed = pack_delta_net(self.spec, self.weights, EPS)
        return kernel.recur(packed, rows, inputs.qkvz, inputs.rates_and_decays, states)

    def expected(self, inputs: Inputs, past: Tensor, state: Tensor) -> Tensor:
        """Of one sequence, in float64, which past and state are, too."""
        spec, qkvz, weights = self.spec, inputs.qkvz.double(), self.weights
        qkv, gates = qkvz.split([spec.channels, spec.value_size], dim=-1)
        rates, decays = inputs.rates_and_decays.double().chunk(2, dim=-1)
        mixed = reference.causal_convolution(qkv, past, weights.taps.double())
        q, k, v = mixed.split([spec.key_size, spec.key_size, spec.value_size], dim=-1)
        q, k = (
            reference.unit_length(part.unflatten(1, (spec.key_heads, -1))).repeat_interleave(
                spec.value_heads // spec.key_heads, 1
            )
            for part in (q, k)
        )
        v = v.unflatten(1, (spec.value_heads, -1))
        decays = reference.decays(decays, weights.time_bias.double(), weights.log_decay.double())
        read = reference.delta_rule(q, k, v, decays, rates.sigmoid(), state)
        scale = torch.rsqrt(read.square().mean(-1, keepdim=True) + EPS)
        return (read * scale * weights.head_norm).flatten(1) * silu(gates)


@every_level
@every_shape
def test_a_mixed_batch_equals_the_reference(level, spec):
    """Two decodes, a prompt's later chunk and a prompt's beginning, which sees nothing of what
    the slot held."""
    layer = Layer(spec)
    states, lengths = layer.states(), [1, 1, 33, 20]
    starts, slots = [7, 1, 2, 0], [3, 0, 4, 1]
    inputs, before = layer.rows(sum(lengths)), [each.double() for each in states]
    kernel = DeltaNetKernel(2, level)
    found = layer.run(kernel, inputs, states, lengths, starts, slots)
    begin = 0
    for length, start, slot in zip(lengths, starts, slots, strict=True):
        past, state = (each[slot] * (start > 0) for each in before)
        own = inputs.of(begin, begin + length)
        torch.testing.assert_close(
            found[begin : begin + length].double(),
            layer.expected(own, past, state),
            atol=2e-5,
            rtol=2e-5,
        )
        for now, expected in zip(states, (past, state), strict=True):
            torch.testing.assert_close(now[slot].double(), expected, atol=2e-5, rtol=2e-5)
        begin += length
    untouched = 2
    assert all(
        torch.equal(now[untouched].double(), was[untouched])
        for now, was in zip(states, before, strict=True)
    )


@every_level
@every_shape
def test_results_and_states_are_the_same_bits_over_chunks_threads_and_batches(level, spec):
    layer = Layer(spec)
    inputs, neighbour = layer.rows(50), layer.rows(3)
    results = []
    for threads, chunk in ((1, 50), (3, 7), (1, 1)):
        kernel, states = DeltaNetKernel(threads, level), layer.states()
        parts = []
        for start in range(0, 50, chunk):
            own = inputs.of(start, start + chunk)
            both = Inputs(
                torch.cat([neighbour.qkvz, own.qkvz]),
                torch.cat([neighbour.rates_and_decays, own.rates_and_decays]),
            )
            lengths = [3, len(own.qkvz)]
            parts.append(layer.run(kernel, both, states, lengths, [0, start], [0, 4])[3:])
        results.append((torch.cat(parts), *(each[4] for each in states)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_nothing_that_a_slot_held_reaches_a_new_sequence():
    layer = Layer(SHAPES[0])
    inputs, kernel = layer.rows(9), DeltaNetKernel()
    clean = tuple(torch.zeros_like(each) for each in layer.states())
    spoilt = tuple(torch.full_like(each, torch.nan) for each in clean)
    expected = layer.run(kernel, inputs, clean, [9], [0], [2])
    assert torch.equal(layer.run(kernel, inputs, spoilt, [9], [0], [2]), expected)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(clean, spoilt, strict=True))
