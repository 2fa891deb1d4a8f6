"""What the planner expects of this machine beside what it does, for many configurations.

    megainfer calibrate --output here.toml
    python benchmarks/predicted.py --hardware here.toml --results predicted.jsonl
    python benchmarks/predicted.py --results predicted.jsonl another-time.jsonl --table

Each configuration is an arrangement of nodes, a precision, so many sequences and so long contexts.
Decoding is timed as t(n) - t(1): all sequences with n new tokens, less the same with one. Their
prompts are in the prefix cache by then, so that neither holds a prompt's computing. What is
expected comes of the hardware's description and the model's shape alone.

A result is written as soon as it is known, and those that are in the file aren't measured again:
it can be stopped and started at any time. Let nothing else run meanwhile. Columns:

    tok/s      tokens a second while decoding: measured, predicted
    error      predicted by measured, less one
    tpot       ms between two tokens of a sequence
    T_a T_e    ms of a layer on an attention and on an expert node: measured, predicted
    T_c        ms of one direction

A machine that others use as well is quicker at one time and slower at another. So calibrate and
measure several times, each into a file of its own. --table shows medians over all files that it is
given, of errors too, and

    spread     how far a round's own rate is from the median, in the mean: what the machine is off
               from itself

Configurations with more processes than cores are apart: processes that wait for a core are none of
the plan's terms.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from checkpoints import SHAPES, ensure_checkpoint
from generation import generate
from measures import difference, hardware
from peers.measurement import Load as Requests
from rich.console import Console
from rich.table import Table

from megainfer import LLM
from megainfer.calibration.toy import TOY, write_model
from megainfer.config import EngineConfig
from megainfer.launch.expectation import expectation_of
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan
from megainfer.model_folder.deployment import plan_deployment
from megainfer.planner.hardware import Device, load_devices
from megainfer.planner.live.terms import Load, Terms
from megainfer.planner.live.work import NOW, NodeWork, Window, measured

ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "colocated": {"colocated": True},
    "1A1E m=1": {"attn_gpus": 1, "ffn_gpus": 1, "micro_batches": 1},
    "1A1E m=2": {"attn_gpus": 1, "ffn_gpus": 1, "micro_batches": 2},
    "1A1E m=3": {"attn_gpus": 1, "ffn_gpus": 1, "micro_batches": 3},
    "2A1E m=2": {"attn_gpus": 2, "ffn_gpus": 1, "micro_batches": 2},
    "1A2E m=2": {"attn_gpus": 1, "ffn_gpus": 2, "micro_batches": 2},
    "2A2E m=2": {"attn_gpus": 2, "ffn_gpus": 2, "micro_batches": 2},
}
PRECISIONS: dict[str, dict[str, str]] = {
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "expert_dtype": "int8", "attention_dtype": "int8"},
}
SHAPES_OF_LOAD = ((1, 64), (1, 4096), (8, 512), (8, 2048), (32, 256), (64, 64), (64, 256))
"""(sequences, tokens of context of each)"""
FEW = ((8, 512), (32, 256))
"""Those of arrangements beyond the first three."""
MEDIAN_BOUND, MOST_BOUND = 0.10, 0.25


@dataclass(frozen=True)
class Case:
    """One configuration."""

    arrangement: str
    precision: str
    batch: int
    context: int

    @property
    def name(self) -> str:
        return f"{self.arrangement}, {self.precision}, {self.batch} x {self.context}"


@dataclass(frozen=True)
class Result:
    """Tokens a second, and seconds. fits: there is a core for each process."""

    case: Case
    fits: bool
    rate: float
    expected_rate: float
    measured: Terms | None
    expected: Terms

    @property
    def error(self) -> float:
        return self.expected_rate / self.rate - 1


@dataclass(frozen=True)
class Repeated:
    """A case that was measured in several rounds, each with a calibration of its own."""

    rounds: tuple[Result, ...]

    @property
    def case(self) -> Case:
        return self.rounds[0].case

    @property
    def fits(self) -> bool:
        return self.rounds[0].fits

    @property
    def rate(self) -> float:
        return median(result.rate for result in self.rounds)

    @property
    def expected_rate(self) -> float:
        return median(result.expected_rate for result in self.rounds)

    @property
    def error(self) -> float:
        return median(result.error for result in self.rounds)

    @property
    def spread(self) -> float:
        """Of the machine itself: how far a round's rate is from the median, in the mean."""
        return fmean(abs(result.rate / self.rate - 1) for result in self.rounds)

    @property
    def measured(self) -> Terms | None:
        return medians_of([each.measured for each in self.rounds if each.measured is not None])

    @property
    def expected(self) -> Terms:
        expected = medians_of([each.expected for each in self.rounds])
        assert expected is not None
        return expected


def repeated(results: Iterable[Result]) -> list[Repeated]:
    """By case, in the order in which they came first."""
    by_case: dict[Case, list[Result]] = {}
    for result in results:
        by_case.setdefault(result.case, []).append(result)
    return [Repeated(tuple(own)) for own in by_case.values()]


def cases(args: argparse.Namespace) -> list[Case]:
    """Engine by engine."""
    return [
        Case(arrangement, precision, batch, context)
        for precision in args.precision
        for arrangement in args.arrangement
        for batch, context in loads_of(arrangement, args.load)
    ]


def loads_of(
    arrangement: str, given: Sequence[tuple[int, int]] | None
) -> Sequence[tuple[int, int]]:
    first = [*ARRANGEMENTS][:3]
    return given or (SHAPES_OF_LOAD if arrangement in first else FEW)


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """model: the folder. devices: by name. name: which machine of them. tokens: that are timed."""

    model: Path
    devices: Mapping[str, Device]
    name: str | None
    tokens: int
    rounds: int

    def options(self, own: Sequence[Case]) -> dict[str, Any]:
        """Of the engine that has all of these cases."""
        case = own[0]
        longest = max(each.context for each in own) + self.tokens + 1
        return {
            "model": str(self.model),
            "max_model_len": longest,
            "max_num_seqs": max(each.batch for each in own),
            **ARRANGEMENTS[case.arrangement],
            **PRECISIONS[case.precision],
        }

    def run(self, own: Sequence[Case]) -> Iterator[Result]:
        """Cases of one engine."""
        options = self.options(own)
        plan = plan_deployment(EngineConfig(**options), read_machine()).plan
        with LLM(**options, progress=False) as llm:
            for case in own:
                yield self.result(case, plan, llm)

    def result(self, case: Case, plan: Plan, llm: LLM) -> Result:
        prompts = Requests(case.batch, case.context, self.tokens).prompts(plan.spec.vocab_size, 1)
        generate(llm, prompts, 1)  # fills the prefix cache
        ones, all_of_them, windows = list[float](), list[float](), list[Terms]()
        for _ in range(self.rounds):
            looks = [llm.stats()]
            ones.append(generate(llm, prompts, 1))
            looks.append(llm.stats())
            all_of_them.append(generate(llm, prompts, self.tokens))
            looks.append(llm.stats())
            window = window_of(looks, all_of_them[-1] - ones[-1])
            if (found := measured(window)) is not None:
                windows.append(found.terms)
        seconds = median(all_of_them) - median(ones)
        terms = expectation_of(plan, self.devices, self.name).terms(
            load_of(case, plan, self.tokens)
        )
        return Result(
            case,
            plan.config.colocated or len(plan.cores) <= len(read_machine().cores),
            case.batch * (self.tokens - 1) / seconds,
            case.batch / terms.token,
            medians_of(windows),
            terms,
        )


def load_of(case: Case, plan: Plan, tokens: int) -> Load:
    """As many micro-batches and attention nodes as there are sequences for."""
    attention = min(plan.num_attention, case.batch)
    m = min(plan.micro_batches or 1, case.batch // attention)
    return Load(
        rows=case.batch / attention / m,
        prefill_rows=0.0,
        context=case.context + tokens / 2,
        micro_batches=m,
        attention=attention,
        experts=plan.num_expert,
        layers=len(plan.spec.moe_layers),
    )


def window_of(looks: Sequence[Mapping[str, Mapping[str, Any]]], seconds: float) -> Window:
    """What decoding alone has counted. looks: at the nodes' counters, before and after a run with
    one token, and after one with all."""
    before, between, after = looks
    works: dict[str, list[NodeWork]] = {"attention": [], "expert": []}
    for name, counters in after.items():
        one, every = difference(before[name], between[name]), difference(between[name], counters)
        grown = {counter: value - one.get(counter, 0.0) for counter, value in every.items()}
        now = {counter: float(counters.get(counter, 0)) for counter in NOW}
        works[name.split()[0]].append(NodeWork(grown, now))
    return Window(seconds, tuple(works["attention"]), tuple(works["expert"]))


def medians_of(windows: Sequence[Terms]) -> Terms | None:
    if not windows:
        return None
    columns = zip(*(asdict(terms).values() for terms in windows), strict=True)
    return Terms(*map(median, columns))


def measure(args: argparse.Namespace, bench: Bench, known: Sequence[Result]) -> Iterator[Result]:
    """Those that aren't known, as they come."""
    done = {result.case for result in known}
    wanted = [case for case in cases(args) if case not in done]
    engines = dict.fromkeys((case.arrangement, case.precision) for case in wanted)
    for arrangement, precision in engines:
        own = [c for c in wanted if (c.arrangement, c.precision) == (arrangement, precision)]
        yield from bench.run(own)


# --- results -------------------------------------------------------------------------------------


def read_results(path: Path) -> list[Result]:
    if not path.exists():
        return []
    return [_result(json.loads(line)) for line in path.read_text().splitlines()]


def _result(found: dict[str, Any]) -> Result:
    terms = found["measured"]
    return Result(
        Case(**found["case"]),
        found["fits"],
        found["rate"],
        found["expected_rate"],
        None if terms is None else Terms(**terms),
        Terms(**found["expected"]),
    )


HEADINGS = ("configuration", "tok/s", "expected", "error", "spread", "tpot", "T_a", "T_e", "T_c")


def table_of(results: Sequence[Repeated], title: str) -> Table:
    table = Table(title=title)
    for heading in (
        "configuration",
        "tok/s",
        "expected",
        "error",
        "spread",
        "tpot",
        "T_a",
        "T_e",
        "T_c",
    ):
        table.add_column(heading, justify="left" if heading == "configuration" else "right")
    for result in results:
        table.add_row(*_row(result))
    return table


def _row(result: Repeated) -> list[str]:
    case, found, expected = result.case, result.measured, result.expected

    def pair(term: str) -> str:
        was = "–" if found is None else f"{getattr(found, term) * 1e3:.2f}"
        return f"{was} / {getattr(expected, term) * 1e3:.2f}"

    tpot = f"{case.batch / result.rate * 1e3:.1f} / {expected.token * 1e3:.1f}"
    return [
        case.name,
        f"{result.rate:.1f}",
        f"{result.expected_rate:.1f}",
        f"{result.error:+.0%}",
        f"{result.spread:.0%}",
        tpot,
        *map(pair, ("attention", "experts", "transfer")),
    ]


def markdown(results: Sequence[Repeated]) -> Iterator[str]:
    """For docs/planner.md."""
    yield "| configuration | tokens/s | expected | error | spread | ms between tokens, expected |"
    yield "|---|---|---|---|---|---|"
    for result in results:
        yield f"| {' | '.join(_row(result)[:6])} |"


def summary(results: Sequence[Repeated]) -> str:
    """Of those that fit."""
    errors = sorted(abs(result.error) for result in results)
    met = median(errors) < MEDIAN_BOUND and errors[-1] < MOST_BOUND
    return (
        f"{len(errors)} configurations: median error {median(errors):.1%}, largest "
        f"{errors[-1]:.1%}; asked for: under {MEDIAN_BOUND:.0%}, none over {MOST_BOUND:.0%}: "
        f"{'met' if met else 'not met'}"
    )


def report(results: Sequence[Repeated], as_markdown: bool) -> None:
    console = Console(highlight=False, width=max(140, Console().width))
    console.print(hardware())
    for fits, title in ((True, "a core for each process"), (False, "more processes than cores")):
        own = [result for result in results if result.fits is fits]
        if not own:
            continue
        if as_markdown:
            print("\n".join(markdown(own)))
        else:
            console.print(table_of(own, title))
        if fits:
            console.print(summary(own))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hardware", type=Path, help="of megainfer calibrate")
    parser.add_argument("--hardware-name", help="which machine of that file this is")
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, help="JSON, a result a line"
    )
    parser.add_argument("--table", action="store_true", help="only show what was measured")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument(
        "--model", default="1B", help=f"a folder, toy, or one of {', '.join(SHAPES)}"
    )
    parser.add_argument("--folder", type=Path, help="where a checkpoint of a named shape is kept")
    parser.add_argument("--arrangement", nargs="+", choices=ARRANGEMENTS, default=[*ARRANGEMENTS])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=[*PRECISIONS])
    parser.add_argument("--load", nargs="+", type=_load, metavar="BATCHxCONTEXT")
    parser.add_argument("--tokens", type=int, default=33, help="of which all but one are timed")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not args.table and (args.hardware is None or len(args.results) > 1):
        parser.error("to measure, give --hardware and one file of --results; else --table")
    return args


def _load(text: str) -> tuple[int, int]:
    batch, context = text.split("x")
    return int(batch), int(context)


def main() -> None:
    args = parse()
    known = [result for path in args.results for result in read_results(path)]
    if not args.table:
        (path,) = args.results
        with tempfile.TemporaryDirectory() as scratch:
            model = _model(args, args.folder or Path(scratch))
            devices = load_devices(args.hardware)
            bench = Bench(model, devices, args.hardware_name, args.tokens, args.rounds)
            for result in measure(args, bench, known):
                known.append(result)
                with path.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
                print(*_row(Repeated((result,))), sep="  ", flush=True)
    if known:
        report(repeated(known), args.markdown)


def _model(args: argparse.Namespace, folder: Path) -> Path:
    if args.model == "toy":
        return write_model(TOY, folder / "toy")
    return ensure_checkpoint(args.model, folder) if args.model in SHAPES else Path(args.model)


if __name__ == "__main__":
    main()
