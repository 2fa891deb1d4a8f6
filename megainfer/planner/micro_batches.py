"""How many micro-batches pay, from measured stage times."""

from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.planner.formulas import ROUNDING, layer_period
from megainfer.planner.profiles import StageProfile


@dataclass(frozen=True)
class Prediction:
    """What splitting a batch into `micro_batches` is expected to give. Times in seconds."""

    micro_batches: int
    rows: float  # of one micro-batch
    t_a: float
    t_e: float
    t_c: float
    period: float  # of one layer, for the whole batch
    throughput: float  # rows a second through one layer


@dataclass(frozen=True)
class MicroBatchChoice:
    """The m to use, and the predictions for every m that were compared."""

    micro_batches: int
    predictions: tuple[Prediction, ...]


def choose_micro_batches(
    profile: StageProfile, batch: int, max_micro_batches: int
) -> MicroBatchChoice:
    """The m in 1..max_micro_batches with the largest predicted throughput of `batch` tokens.

    m micro-batches pass a layer in `layer_period(T_a(b/m), T_e(b/m), T_c(b/m), m)`. Splitting
    reads the experts' weights m times, which the profile shows as the part of T_e(b/m) that does
    not shrink with the rows. Of equal predictions the smaller m is taken; those beyond the batch
    cannot all be used and so predict what m = batch does.
    """
    if batch < 1 or max_micro_batches < 1:
        raise ConfigError(
            f"batch and max_micro_batches must be at least 1, got {batch} and {max_micro_batches}"
        )
    predictions = tuple(_predict(profile, batch, m) for m in range(1, max_micro_batches + 1))
    best = max(p.throughput for p in predictions)
    chosen = next(p for p in predictions if p.throughput >= best * (1 - ROUNDING))
    return MicroBatchChoice(chosen.micro_batches, predictions)


def _predict(profile: StageProfile, batch: int, m: int) -> Prediction:
    used = min(m, batch)
    rows = batch / used
    t_a, t_e, t_c = (
        curve.at(rows) for curve in (profile.attention, profile.expert, profile.transfer)
    )
    period = layer_period(t_a, t_e, t_c, used)
    if period <= 0:
        raise ConfigError(
            f"the profile predicts that {rows:g} rows take no time at all; measure it at fewer rows"
        )
    return Prediction(m, rows, t_a, t_e, t_c, period, batch / period)
