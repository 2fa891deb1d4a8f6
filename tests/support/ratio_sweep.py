"""A public sweep of the ratio of attention to experts, and what our costs say of it.

FastAFD serves Qwen3-235B-A22B-FP8 on GB200; a re-run of it (github.com/linsj20/FastAFD, July 2026)
fixed four GPUs for experts, which have 32 experts of each layer each, and added attention GPUs by
fours, each with as many sequences as its 839,424 tokens of bfloat16 KV hold, in two micro-batches.
Tokens a second and GPU, experts' GPUs counted. The baseline, vLLM with wide expert parallelism, is
of the same re-run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megainfer.compute.selection import Precision
from megainfer.planner.costs import (
    AttentionStage,
    ColocatedStage,
    Contexts,
    ExpertStage,
    ModelCosts,
    Road,
    Step,
)
from megainfer.planner.formulas import layer_period
from megainfer.planner.hardware import Device, load_devices
from tests.support.public_models import public_spec

EXPERT_GPUS = 4
MICRO_BATCHES = 2
DECODED = 16
"""Tokens of each answer."""


@dataclass(frozen=True)
class Sweep:
    """context: tokens of each prompt. batch: sequences of one attention GPU. measured: tokens a
    second and GPU, by attention GPUs for each of the experts'."""

    context: int
    batch: int
    measured: Mapping[int, float]


def _from(ratio: int, *measured: float) -> Mapping[int, float]:
    """By ratio, from this one on."""
    return dict(enumerate(measured, ratio))


SWEEPS = (
    Sweep(
        16384,
        50,
        _from(
            4,
            *(1616.0, 1683.5, 1670.9, 1640.4, 1558.8, 1558.1, 1480.6),
            *(1434.1, 1393.6, 1360.3, 1257.7, 1238.9, 1172.1),
        ),
    ),
    Sweep(
        32768,
        25,
        _from(
            3,
            *(850.4, 871.0, 880.7, 911.5, 903.5, 891.8, 881.0),
            *(867.0, 852.1, 832.0, 852.3, 804.8, 825.3, 783.1),
        ),
    ),
    Sweep(
        65536,
        12,
        _from(
            3,
            *(460.7, 471.6, 487.7, 493.0, 496.7, 492.5, 481.8),
            *(479.0, 480.9, 490.5, 486.9, 459.5, 476.9, 467.9),
        ),
    ),
)
COLOCATED = {4: (32, 935.8), 8: (44, 1094.3), 16: (48, 1204.1), 32: (50, 1164.9), 64: (52, 1126.5)}
"""vLLM at 16K: GPUs -> (sequences of one GPU, tokens a second and GPU)."""


@dataclass(frozen=True)
class Predictor:
    """What our costs say of it, from the table of devices alone."""

    costs: ModelCosts
    device: Device

    @classmethod
    def of(cls, folder: Path) -> "Predictor":
        """folder: for the model's config.json."""
        spec = public_spec("qwen3-235b-a22b", folder)
        precision = Precision("bfloat16", "fp8", "fp8")
        costs = ModelCosts.of(spec, precision, own_arithmetic=True)
        return cls(costs, load_devices()["GB200"])

    def apart(self, sweep: Sweep, ratio: int) -> float:
        """Tokens a second and GPU. One kernel of theirs receives rows, computes, and sends replies,
        so that transfers are part of T_e, and T_c is 0."""
        nodes, rows = ratio * EXPERT_GPUS, sweep.batch / MICRO_BATCHES
        attention = AttentionStage(self.costs, self.device)
        experts = ExpertStage(self.costs, self.device, 1, EXPERT_GPUS)
        road = Road(attention, experts, nodes)
        t_e = experts.layer(rows * nodes) + road.dispatch(rows) + road.combine(rows)
        step = _step(sweep.context, rows)
        t_a = attention.layer(step, EXPERT_GPUS).total
        period = layer_period(t_a, t_e.total, 0.0, MICRO_BATCHES)
        outside = MICRO_BATCHES * self._outside(attention, step)
        seconds = self.costs.moe_layers * period + outside
        return sweep.batch * nodes / (nodes + EXPERT_GPUS) / seconds

    def curve(self, sweep: Sweep) -> dict[int, float]:
        """`apart` of each ratio that was measured."""
        return {ratio: self.apart(sweep, ratio) for ratio in sweep.measured}

    def colocated(self, gpus: int, batch: int) -> float:
        """Of as many sequences on each of `gpus` GPUs, among which experts are dealt."""
        stage = ColocatedStage(self.costs, self.device, 1, gpus, gpus)
        step = _step(SWEEPS[0].context, batch)
        seconds = self.costs.moe_layers * stage.layer(step).total
        return batch / (seconds + self._outside(stage.half, step))

    def _outside(self, attention: AttentionStage, step: Step) -> float:
        """Theirs prepares each step on the host while the one before is computed."""
        host = self.device.efficiency
        return attention.outside(step).total - (
            host.step_seconds + host.sequence_seconds * step.sampled
        )


def best(curve: Mapping[int, float]) -> int:
    """The ratio with most tokens."""
    return max(curve, key=lambda ratio: curve[ratio])


def errors(curve: Mapping[int, float], sweep: Sweep, constant: float = 1.0) -> dict[int, float]:
    """Predicted over measured, less 1, where what is predicted is multiplied with `constant`."""
    measured = sweep.measured
    return {ratio: constant * curve[ratio] / measured[ratio] - 1 for ratio in measured}


def constant_of(curve: Mapping[int, float], sweep: Sweep) -> float:
    """How many times faster they are than predicted: with it, errors are none in the mean."""
    logs = [math.log1p(error) for error in errors(curve, sweep).values()]
    return math.exp(-sum(logs) / len(logs))


def _step(context: int, rows: float) -> Step:
    return Step(rows, Contexts(context + 1, context + DECODED))
