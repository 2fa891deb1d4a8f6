"""What `megainfer plan` prints."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megainfer.memory import Ledger
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.question import Planned
from megainfer.planner.rehearsal import Rehearsal
from megainfer.planner.report.document import start_of
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.prediction import Prediction

Row = tuple[str, ...]
KINDS = ("apart", "colocated")


def print_tables(console: Console, planned: Planned) -> None:
    """Both kinds of plans, the best one's parts, and the verdict."""
    console.print(_heading(planned), markup=False)
    for title, plans in (
        ("attention and experts apart", planned.apart.plans),
        ("colocated", planned.together.plans),
    ):
        if plans:
            console.print(f"\n[bold]{title}[/bold]")
            console.print(_plans(plans))
    best = planned.best
    console.print(f"\n[bold]the best in detail[/bold]: {escape(best.deployment.describe())}")
    console.print(_details(best))
    if any(kind.rehearsals for kind in planned.kinds):
        console.print("\n[bold]in the simulator[/bold], an instance of each plan")
        console.print(_simulated(planned))
    console.print(f"\n[bold]{escape(planned.verdict.sentence)}[/bold]", soft_wrap=True)
    if planned.simulated_ratio is not None:
        console.print(f"as simulated; by the closed form alone {planned.predicted.ratio:.2f}x")
    _print_start(console, best, planned)


def _heading(planned: Planned) -> str:
    workload, target = planned.workload, planned.target
    again = "".join(
        f" ({what} plans are searched for {_ms(kind.target.tpot_seconds)} here: the simulator "
        "found more between tokens than was predicted)"
        for what, kind in zip(KINDS, planned.kinds, strict=True)
        if kind.target != target
    )
    first = f", {_ms(target.ttft_seconds)} to the first" if target.ttft_seconds else ""
    return (
        f"{planned.model} on {planned.inventory.describe()}: {workload.input_tokens} tokens in, "
        f"{workload.output_tokens} out, prompts {workload.prefill.value}, at most "
        f"{_ms(target.tpot_seconds)} between tokens{first}; best by {planned.objective.value}"
        f"{again}"
    )


def _plans(plans: Sequence[Prediction]) -> Table:
    names = ("", "attention", "experts", "m", "batch", "ms/tok", "ms 1st", "/GPU", "/price", "/W")
    rows = [
        (
            str(place),
            role(plan.deployment.attention),
            _experts(plan.deployment),
            str(plan.deployment.micro_batches),
            str(plan.deployment.batch),
            f"{plan.tpot_seconds * 1e3:.3g}",
            "-" if plan.ttft_seconds is None else f"{plan.ttft_seconds * 1e3:.0f}",
            f"{plan.per_gpu:.0f}",
            f"{plan.per_price:.0f}",
            f"{plan.per_watt:.2f}",
            f"{plan.deployment.replicas}",
            plan.bound,
        )
        for place, plan in enumerate(plans, start=1)
    ]
    return table((*names, "x", "bound by"), rows)


def role(nodes: Nodes) -> str:
    """Such as `8 x 2 L40S`: nodes, and devices of each."""
    width = f" x {nodes.tp}" if nodes.tp > 1 else ""
    return f"{nodes.count}{width} {nodes.device.name}"


def _experts(deployment: Deployment) -> str:
    experts = deployment.experts
    spares = f" +{experts.spares}" if experts.spares else ""
    if not deployment.together:
        return f"{role(experts)}{spares}"
    if experts.count == 1:
        return "split"
    return ("whole" if experts.tp == 1 else f"{experts.count} x {experts.tp}") + spares


def _details(plan: Prediction) -> Table:
    stages, (attention_idle, expert_idle) = plan.stages, plan.pace.idle()
    rows: list[Row] = [
        ("T_a, a layer", f"{_time(stages.attention)}; idle {attention_idle:.0%}"),
        ("T_e, a layer", f"{_time(stages.experts)}; idle {expert_idle:.0%}"),
        ("T_c there, back", f"{_time(stages.dispatch)}; {_ms(stages.combine.total)}"),
        ("a step's rest", _time(stages.outside)),
    ]
    names = ("memory",) if plan.deployment.together else ("attention's memory", "experts' memory")
    for name, role, ledger in zip(names, plan.deployment.roles, plan.memory, strict=True):
        rows.append((name, f"{_memory(ledger)}, of {_gb(role.device.memory_bytes)}"))
    more = f"a larger one misses: {plan.limit.value}" if plan.limit else "a larger one brings less"
    rows.append(("batch", f"{plan.deployment.batch} sequences an instance; {more}"))
    return table(("", ""), rows, header=False)


def _time(time: Time) -> str:
    parts = sorted((p for p in time.parts if p[1] > 0.005 * time.total), key=lambda p: -p[1])
    told = ", ".join(f"{name} {seconds / time.total:.0%}" for name, seconds in parts)
    return f"{_ms(time.total)} ({told})" if told else _ms(time.total)


def _memory(ledger: Ledger) -> str:
    told = ", ".join(f"{name} {_gb(size)}" for name, size in ledger.lines if size > 5e7)
    return f"{_gb(ledger.total)} ({told})"


def _simulated(planned: Planned) -> Table:
    """Each plan that was tried: all places taken, then under a load; p50 and p99 in ms."""
    names = ("", "tokens/s", "predicted", "ms/tok", "idle a", "idle e", "load")
    rows = [
        (f"{name} {place}", *_tried(plan, tried))
        for name, kind in zip(KINDS, planned.kinds, strict=True)
        for place, (plan, tried) in enumerate(
            zip(kind.plans, kind.rehearsals, strict=False), start=1
        )
    ]
    return table((*names, "1st", "gap", "mean"), rows)


def _tried(plan: Prediction, tried: Rehearsal) -> Row:
    predicted, seen = plan.instance_tokens_per_second, tried.latencies
    return (
        f"{tried.tokens_per_second:.0f}",
        f"{predicted:.0f} ({tried.tokens_per_second / predicted - 1:+.0%})",
        f"{tried.tpot_seconds * 1e3:.3g}",
        f"{tried.attention_idle:.0%}",
        f"{tried.expert_idle:.0%}",
        f"{tried.offered:.0f}",
        f"{seen.first_token.p50 * 1e3:.0f} {seen.first_token.p99 * 1e3:.0f}",
        f"{seen.between_tokens.p50 * 1e3:.0f} {seen.between_tokens.p99 * 1e3:.0f}",
        f"{seen.per_token.p50 * 1e3:.0f} {seen.per_token.p99 * 1e3:.0f}",
    )


def _print_start(console: Console, plan: Prediction, planned: Planned) -> None:
    start = start_of(planned, plan)
    if start.refusals:
        console.print("\n[bold]not served yet[/bold]")
        for text in start.refusals:
            console.print(f"  {text}", markup=False, soft_wrap=True)
    else:
        console.print("\n[bold]start it[/bold]")
        console.print(f"  {start.command}", markup=False, soft_wrap=True)
        if plan.deployment.replicas > 1:
            console.print(f"  {plan.deployment.replicas} times", markup=False)


def table(names: Row, rows: Sequence[Row], header: bool = True) -> Table:
    """Without lines."""
    made = Table(box=None, padding=(0, 1, 0, 0), show_header=header, header_style="dim")
    for name in names:
        made.add_column(name)
    for row in _escaped(rows):
        made.add_row(*row)
    return made


def _escaped(rows: Sequence[Row]) -> Iterator[Row]:
    for row in rows:
        yield tuple(map(escape, row))


def _ms(seconds: float) -> str:
    """
    >>> _ms(0.15), _ms(2.5), _ms(42e-6)
    ('150 ms', '2.5 s', '42 us')
    """
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
