#!/usr/bin/env python3
"""Whether two checkouts give bit for bit the same tokens and log-probabilities.

    python scripts/compare_checkouts.py OLD NEW
    python scripts/compare_checkouts.py OLD NEW --python OLD/.venv/bin/python --json out.json

Both must have their C++ parts built, and by the same compiler: bits depend on the machine and on
what was compiled for it, so both run here, one after the other. It writes small random checkpoints
of several families, and starts each under several topologies and precisions. All requests are sent
at once, and then once more: who shares a batch with whom, and what the prefix cache has kept, must
make no difference either. Exits with 1 at any difference and names the first of each row, with 2
where a checkout gave no answers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from comparison.differences import count_logprobs, count_tokens, differences
from comparison.fixed_requests import FixedRequest, fixed_requests
from comparison.models import CONTEXT, FAMILIES, write_model
from rich.console import Console
from rich.table import Table

SCRIPTS = Path(__file__).resolve().parent
COMMON = {
    "kernels": "cpu",
    "max_model_len": CONTEXT,
    "max_num_batched_tokens": 96,  # so that longer prompts take several steps
}
ROOM = 32 << 20
"""Bytes of KV cache for all requests together."""
LITTLE_ROOM = 512 << 10
"""So few that running requests are preempted."""
TOPOLOGIES: Mapping[str, Mapping[str, Any]] = {
    "1 x 1, m=2, float32": {
        "micro_batches": 2,
        "dtype": "float32",
        "kv_cache_memory": LITTLE_ROOM,
    },
    "2 x 3, m=3, bfloat16, int8 experts": {
        "attn_gpus": 2,
        "ffn_gpus": 3,
        "micro_batches": 3,
        "dtype": "bfloat16",
        "expert_dtype": "int8",
        "kv_cache_memory": ROOM,
    },
    "colocated, bfloat16, int8 attention": {
        "colocated": True,
        "micro_batches": 1,
        "dtype": "bfloat16",
        "attention_dtype": "int8",
        "kv_cache_memory": ROOM,
    },
}
Passes = list[list[dict[str, Any]]]


class NoAnswers(Exception):
    """A checkout failed, or took too long."""


@dataclass(frozen=True)
class Run:
    """What a checkout is to answer. options: of `LLM`."""

    checkout: str
    model: str
    options: Mapping[str, Any]
    requests: list[FixedRequest]


@dataclass(frozen=True)
class Row:
    """One family in one topology. first: the first difference."""

    family: str
    topology: str
    requests: int
    tokens: int
    logprobs: int
    differences: int
    first: str | None


@dataclass(frozen=True)
class Comparison:
    """old, new: checkouts. limit: seconds for one family in one topology."""

    old: Path
    new: Path
    python: str
    limit: float
    requests: list[FixedRequest] = field(default_factory=fixed_requests)

    def rows(self) -> Iterator[Row]:
        """Raises NoAnswers."""
        with tempfile.TemporaryDirectory() as scratch:
            for family in FAMILIES:
                model = write_model(family, Path(scratch) / family)
                for topology in TOPOLOGIES:
                    print(f"{family}, {topology}", file=sys.stderr, flush=True)
                    yield self.row(model, topology)

    def row(self, model: Path, topology: str) -> Row:
        """model: a folder with the family's name. Raises NoAnswers."""
        old, new = (self._answers(each, model, topology) for each in (self.old, self.new))
        found = self._differences(old, new)
        everything = [answer for answers in old for answer in answers]
        return Row(
            family=model.name,
            topology=topology,
            requests=len(everything),
            tokens=count_tokens(everything),
            logprobs=count_logprobs(everything),
            differences=len(found),
            first=found[0] if found else None,
        )

    def _answers(self, checkout: Path, model: Path, topology: str) -> Passes:
        run = Run(str(checkout), str(model), {**COMMON, **TOPOLOGIES[topology]}, self.requests)
        with tempfile.TemporaryDirectory() as scratch:
            order, answers = Path(scratch) / "order.json", Path(scratch) / "answers.json"
            order.write_text(json.dumps(asdict(run)))
            try:
                self._start(checkout, order, answers)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise NoAnswers(f"{checkout}, {model.name}, {topology}: {error}") from error
            passes: Passes = json.loads(answers.read_text())
        return passes

    def _start(self, checkout: Path, order: Path, answers: Path) -> None:
        subprocess.run(
            [self.python, "-m", "comparison.generate", str(order), str(answers)],
            # Python puts the current folder first on its path, so it must not be a checkout.
            cwd=order.parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(SCRIPTS)])},
            timeout=self.limit,
            check=True,
        )

    def _differences(self, old: Passes, new: Passes) -> list[str]:
        return [
            f"pass {number}, request {index} ({request.kind}), {difference}"
            for number, (before, after) in enumerate(zip(old, new, strict=True), start=1)
            for index, (request, one, other) in enumerate(
                zip(self.requests, before, after, strict=True)
            )
            for difference in differences(one, other)
        ]


def report(console: Console, rows: list[Row]) -> None:
    table = Table()
    for title in ("family", "topology", "requests", "tokens", "log-probabilities", "differences"):
        table.add_column(title, justify="right")
    for row in rows:
        counts = (row.requests, row.tokens, row.logprobs, row.differences)
        table.add_row(row.family, row.topology, *map(str, counts))
    console.print(table)
    for row in rows:
        if row.first is not None:
            console.print(f"{row.family}, {row.topology}: {row.first}", soft_wrap=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--python", default=sys.executable, help="for both; default: this one")
    parser.add_argument("--limit", type=float, default=600, help="seconds for each start")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    args = parser.parse_args()
    for checkout in (args.old, args.new):
        if not (checkout / "megainfer" / "__init__.py").exists():
            parser.error(f"{checkout} is no checkout: it has no megainfer/__init__.py")
    return args


def main() -> None:
    args = parse()
    comparison = Comparison(args.old.resolve(), args.new.resolve(), args.python, args.limit)
    try:
        rows = list(comparison.rows())
    except NoAnswers as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    report(Console(highlight=False, width=max(120, Console().width)), rows)
    if args.json:
        results = [asdict(row) for row in rows]
        document = {"old": str(args.old), "new": str(args.new), "results": results}
        args.json.write_text(json.dumps(document, indent=1))
    sys.exit(any(row.differences for row in rows))


if __name__ == "__main__":
    main()
