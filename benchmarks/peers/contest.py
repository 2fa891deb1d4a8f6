"""Engines in turn, round after round, and what became of each."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

from peers.entrants import Entrant
from peers.measurement import Load, Result, Round, result_of
from peers.process_group import EngineFailed

WARM_UP_TOKENS = 4
WARM_UP_SEED = -2


class Engine(Protocol):
    """A process that is ready, and stopped whenever it isn't `running`."""

    def running(self) -> AbstractContextManager[None]: ...
    def run(self, load: Load, seed: int) -> Round: ...
    def close(self) -> None: ...


@dataclass
class Outcome:
    """Medians by load, or as far as it came before it failed."""

    entrant: Entrant
    results: dict[Load, Result] = field(default_factory=dict)
    failure: str | None = None


class Contest:
    """All entrants under all loads.

    start: makes an entrant a running engine. resident: how many engines are kept at a time; with
    more entrants than that, every round starts each of them anew.
    """

    def __init__(self, start: Callable[[Entrant], Engine], loads: Sequence[Load], resident: int):
        self._start, self._loads, self._resident = start, loads, resident
        self._rounds: dict[str, dict[Load, list[Round]]] = {}
        self._failures: dict[str, str] = {}

    def run(self, entrants: Sequence[Entrant], rounds: int) -> list[Outcome]:
        names = [entrant.name for entrant in entrants]
        self._rounds = {name: {load: [] for load in self._loads} for name in names}
        self._failures = {}
        if len(entrants) <= self._resident:
            self._interleave(entrants, rounds)
        else:
            self._visit(entrants, rounds)
        return [self._outcome(entrant) for entrant in entrants]

    def _interleave(self, entrants: Sequence[Entrant], rounds: int) -> None:
        with ExitStack() as stack:
            engines = {e.name: engine for e in entrants for engine in self._started(e, stack)}
            for load in self._loads:
                for number in range(rounds):
                    for name, engine in engines.items():
                        self._turn(name, engine, load, number)

    def _visit(self, entrants: Sequence[Entrant], rounds: int) -> None:
        for number in range(rounds):
            for entrant in entrants:
                with ExitStack() as stack:
                    for engine in self._started(entrant, stack):
                        for load in self._loads:
                            self._turn(entrant.name, engine, load, number)

    def _started(self, entrant: Entrant, stack: ExitStack) -> Iterator[Engine]:
        """The engine, warmed up, unless it failed."""
        if entrant.name in self._failures:
            return
        try:
            engine = self._start(entrant)
            stack.callback(engine.close)
            with engine.running():
                for load in self._loads:
                    few = min(WARM_UP_TOKENS, load.output_tokens)
                    engine.run(replace(load, output_tokens=few), WARM_UP_SEED)
            _tell(f"{entrant.name}, {entrant.precision}: ready")
            yield engine
        except EngineFailed as error:
            self._fail(entrant.name, error)

    def _turn(self, name: str, engine: Engine, load: Load, number: int) -> None:
        if name in self._failures:
            return
        try:
            with engine.running():
                result = engine.run(load, 2 * number)
        except EngineFailed as error:
            self._fail(name, error)
        else:
            self._rounds[name][load].append(result)
            _tell(f"{name}: round {number + 1} of {load.concurrency}: {result.seconds:.2f} s")

    def _fail(self, name: str, error: EngineFailed) -> None:
        self._failures[name] = str(error)
        _tell(f"{name}: {error}")

    def _outcome(self, entrant: Entrant) -> Outcome:
        found = self._rounds[entrant.name]
        results = {load: result_of(load, rounds) for load, rounds in found.items() if rounds}
        return Outcome(entrant, results, self._failures.get(entrant.name))


def _tell(what: str) -> None:
    """Progress: a comparison may take an hour."""
    print(what, file=sys.stderr, flush=True)


def best(
    outcomes: Sequence[Outcome], load: Load, rate: str, wanted: Callable[[Entrant], bool]
) -> tuple[str, float] | None:
    """Whose median of this field is the highest under this load, and that median."""
    found = [
        (outcome.entrant.name, getattr(outcome.results[load], rate))
        for outcome in outcomes
        if load in outcome.results and wanted(outcome.entrant)
    ]
    told = [(name, value) for name, value in found if value is not None]
    return max(told, key=lambda item: item[1], default=None)
