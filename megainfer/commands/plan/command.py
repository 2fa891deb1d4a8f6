"""`megainfer plan`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from megainfer.commands.config_file import ConfigFile
from megainfer.commands.options import takes_options
from megainfer.commands.plan.model import stages_of
from megainfer.commands.plan.options import (
    LiveOptions,
    LoadOptions,
    MachineOptions,
    ReportOptions,
    TryingOptions,
    WeightOptions,
)
from megainfer.commands.plan.values import parse_inventory, parse_tps, parse_traffic
from megainfer.errors import ConfigError

if TYPE_CHECKING:
    from megainfer.planner.question import Planned, Question
    from megainfer.planner.rehearsal import Rehearsal, Traffic

EPILOG = """[bold]Examples[/bold]

The paper's question: which of two kinds of GPUs for what, by price:

[cyan]megainfer plan mixtral-8x22b --gpus H20:64,L40S:64 --tpot 150ms --objective cost[/cyan]

What can be started here and now, without tensor parallelism, and started:

[cyan]megainfer plan path/to/model --gpus H100:8 --tp 1 --json > plan.json[/cyan]

[cyan]megainfer serve --plan plan.json[/cyan]

What a running server lacks:

[cyan]megainfer plan --from http://127.0.0.1:8000[/cyan]"""


@takes_options
def plan(
    machines: MachineOptions,
    load: LoadOptions,
    weights: WeightOptions,
    trying: TryingOptions,
    report: ReportOptions,
    live: LiveOptions,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder with a config.json, a hub id, or dbrx, mixtral-8x22b, scaled-moe.",
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Find how many of which devices a model needs, for which role, before anyone pays for them.

    Nothing is started and no weights are read: it predicts from the model's shape and a table of
    devices, and tries the best plans in a simulator.
    """
    if live.url is not None:
        from megainfer.commands.plan_live import plan_from

        if model is not None or machines.gpus is not None:
            raise ConfigError("--from asks a running server; leave MODEL and --gpus out")
        plan_from(live.url, live.api_key, live.seconds, report.json)
        return
    if model is None:
        raise ConfigError("MODEL is missing: a folder with a config.json, or a hub id")
    if report.paper:
        from megainfer.commands.plan.paper import print_paper

        _check_top(report.top)
        print_paper(model, machines.gpus, load, weights, report)
        return
    if machines.gpus is None:
        raise ConfigError("--gpus is missing: which devices there are, such as --gpus H100:16")
    _check_top(report.top)
    _check_file(report.plot, ".svg", "--plot")
    _check_file(report.timeline, ".json", "--timeline")
    if trying.simulate < 0:
        raise ConfigError("--simulate must be at least 0")
    traffic = parse_traffic(
        trying.arrivals, trying.lengths, trying.share, trying.straggler, trying.jitter
    )
    question = _question(model, machines, load, weights, traffic)
    _answer(question, traffic, trying.simulate, report)


def _answer(question: "Question", traffic: "Traffic", tries: int, report: ReportOptions) -> None:
    """Plan, and write what was asked for."""
    from megainfer.planner.report.document import document
    from megainfer.planner.report.picture import svg

    planned = question.planned(report.top, tries, traffic, report.timeline is not None)
    front = question.front() if report.plot or report.json else None
    if report.plot is not None and front is not None:
        _write(report.plot, svg(front, question.objective, _title(planned)), "--plot")
    if report.timeline is not None:
        _write(report.timeline, _trace(planned.apart.rehearsal(0)), "--timeline")
    if report.json:
        print(json.dumps(document(planned, front), indent=1))
    else:
        from megainfer.commands.plan.tables import print_tables

        print_tables(Console(highlight=False), planned)


def _question(
    model: str,
    machines: MachineOptions,
    load: LoadOptions,
    weights: WeightOptions,
    traffic: "Traffic",
) -> "Question":
    from megainfer.planner.hardware import load_devices
    from megainfer.planner.question import Question
    from megainfer.planner.search.planning import Planner
    from megainfer.planner.search.space import Space

    inventory = parse_inventory(machines.gpus or "", load_devices(machines.hardware))
    workload = traffic.workload(load.workload())
    target, objective = load.target(), load.chosen_objective()
    stages, space = stages_of(model, weights), Space(tps=parse_tps(machines.tp))
    planner = Planner.of(stages, inventory, workload, space)
    return Question(model, weights.precision(), planner, target, objective)


def _title(planned: "Planned") -> str:
    return f"{planned.model} on {planned.inventory.describe()}"


def _check_top(top: int) -> None:
    if top < 1:
        raise ConfigError("--top must be at least 1")


def _check_file(path: Path | None, suffix: str, flag: str) -> None:
    """Before anything is computed."""
    if path is not None and path.suffix != suffix:
        raise ConfigError(f"{flag} writes a file that ends in {suffix}, not {path}")


def _write(path: Path, text: str, flag: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{flag} {path} can't be written: {error}") from error


def _trace(tried: "Rehearsal | None") -> str:
    """A simulated step as Perfetto shows it."""
    from megainfer.instruments.stage_clock import NOT_OF_ONE
    from megainfer.instruments.stage_clock import Span as Work
    from megainfer.instruments.trace_events import trace_document

    if tried is None or not tried.spans:
        raise ConfigError("--timeline needs a plan apart that was simulated: --simulate 1")
    nodes: dict[str, list[Work]] = {}
    for span in tried.spans:
        layer = NOT_OF_ONE if span.layer is None else span.layer
        kind = "sample" if span.layer is None else span.role
        work = Work(kind, span.micro_batch, layer, span.start, span.end)
        nodes.setdefault(f"{span.role}-{span.node}", []).append(work)
    return json.dumps(trace_document({"simulated": nodes}))
