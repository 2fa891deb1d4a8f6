"""Results as tables, and as rows for JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from peers.contest import Outcome, best
from peers.entrants import PRECISIONS, Entrant
from peers.measurement import Load, Result

RATES = "tokens_per_second", "decode_per_second", "prefill_per_second"
Contest = Sequence[Outcome]


def results_table(outcomes: Contest, loads: Sequence[Load], gpus: int) -> Table:
    table = Table()
    for title in ("B", "engine", "precision", "tok/s", "decode", "prefill", "ttft", "per GPU"):
        table.add_column(title, justify="right")
    for title in ("m", "T_a", "T_e", "T_c", "idle a/e"):
        table.add_column(title, justify="right")
    for load in loads:
        for outcome in outcomes:
            table.add_row(str(load.concurrency), *_cells(outcome, load, gpus))
        table.add_section()
    return table


def _cells(outcome: Outcome, load: Load, gpus: int) -> Iterator[str]:
    yield outcome.entrant.name
    yield outcome.entrant.precision
    result = outcome.results.get(load)
    if result is None:
        yield "failed"
        return
    yield from (number(getattr(result, rate), 1) for rate in RATES)
    yield number(result.ttft, 1)
    yield number(result.tokens_per_second / gpus, 1)
    yield number(result.micro_batches, 0)
    yield from (number(value, 3) for value in (result.t_a, result.t_e, result.t_c))
    yield _idle(result)


def _idle(result: Result) -> str:
    if result.idle_attention is None or result.idle_expert is None:
        return ""
    return f"{result.idle_attention:.0%} / {result.idle_expert:.0%}"


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def ratios_table(outcomes: Contest, loads: Sequence[Load]) -> Table | None:
    """Our best beside the best peer of the same and of any higher precision; None without peers."""
    rows = list(ratios(outcomes, loads))
    if not rows:
        return None
    table = Table(title="our best over the best peer")
    for title in ("B", "precision", "rate", "ours", "", "peer of", "", "", "ratio"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            str(row["concurrency"]),
            row["precision"],
            row["rate"].removesuffix("_per_second"),
            row["ours"],
            f"{row['our_rate']:.0f}",
            row["against"],
            row["peer"],
            f"{row['peer_rate']:.0f}",
            f"{row['ratio']:.2f}",
        )
    return table


def ratios(outcomes: Contest, loads: Sequence[Load]) -> Iterator[dict[str, Any]]:
    taking_part = {outcome.entrant.precision for outcome in outcomes}
    for precision in (p for p in PRECISIONS if p in taking_part):
        higher = PRECISIONS[: PRECISIONS.index(precision)]
        for load in loads:
            for rate in RATES:
                for against, allowed in (("same", (precision,)), ("higher", higher)):
                    row = _ratio(outcomes, load, rate, precision, allowed)
                    if row is not None:
                        yield {"precision": precision, "against": against, **row}


def _ratio(
    outcomes: Contest, load: Load, rate: str, precision: str, allowed: Sequence[str]
) -> dict[str, Any] | None:
    def is_ours(entrant: Entrant) -> bool:
        return entrant.ours and entrant.precision == precision

    def is_peer(entrant: Entrant) -> bool:
        return not entrant.ours and entrant.precision in allowed

    ours = best(outcomes, load, rate, is_ours)
    peer = best(outcomes, load, rate, is_peer)
    if ours is None or peer is None:
        return None
    return {
        "concurrency": load.concurrency,
        "rate": rate,
        "ours": ours[0],
        "our_rate": ours[1],
        "peer": peer[0],
        "peer_rate": peer[1],
        "ratio": ours[1] / peer[1],
    }


def json_rows(outcomes: Contest, gpus: int) -> Iterator[dict[str, Any]]:
    for outcome in outcomes:
        about = {"engine": outcome.entrant.name, "precision": outcome.entrant.precision}
        for load, result in outcome.results.items():
            per_gpu = result.tokens_per_second / gpus
            yield {**asdict(load), **about, **asdict(result), "per_gpu": per_gpu}
        if outcome.failure is not None:
            yield {**about, "failure": outcome.failure}
