"""`megainfer serve` whose processes do to themselves what a board asks for.

    CHAOS_BOARD=folder python -m tests.support.chaos.serve serve path/to/model ...

CHAOS_GPUS: so many GPUs, which are pretended (`gpus`).

CHAOS_RESTARTS, such as 20/1: how often a node may be started again in so many seconds. The
product's own bound, five times in five minutes, would end an instance on which fault after fault is
tried.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from megainfer.launch.plan import Plan
from megainfer.launch.station import NodeTask, Station
from megainfer.messages.message import Role
from megainfer.supervise.family import Family
from megainfer.supervise.forking import node as node_processes
from megainfer.supervise.restarts import Restarts
from tests.support.chaos.gpus import pretend_gpus
from tests.support.chaos.inside import sabotage, sabotage_supervisor
from tests.support.chaos.orders import Board

BOARD = "CHAOS_BOARD"
RESTARTS = "CHAOS_RESTARTS"
GPUS = "CHAOS_GPUS"


def main() -> None:
    board = Board(Path(os.environ[BOARD]))
    _wrap_children(board)
    sabotage_supervisor(board)
    most, _, window = os.environ[RESTARTS].partition("/")
    bound_restarts(Restarts(most=int(most), window=float(window)))
    if gpus := int(os.environ.get(GPUS, "0")):
        pretend_gpus(gpus)
    from megainfer.cli import main as megainfer

    megainfer()


def _wrap_children(board: Board) -> None:
    start_server, main_of = Family.start, node_processes.main_of

    def start(
        family: Family, role: Role, node: int, main: Callable[[Station], None], *rest: Any
    ) -> Any:
        return start_server(family, role, node, partial(_life, board, role, node, main), *rest)

    def wrapped(plan: Plan, task: NodeTask, seat: Any) -> Callable[[Station], None]:
        return partial(_life, board, task.role, task.node, main_of(plan, task, seat))

    Family.start = start  # type: ignore[method-assign]
    node_processes.main_of = wrapped


def _life(
    board: Board, role: Role, node: int, main: Callable[[Station], None], station: Station
) -> None:
    sabotage(board, role, node, station)
    main(station)


def bound_restarts(restarts: Restarts) -> None:
    from megainfer.commands import serve

    serve.Supervisor = partial(serve.Supervisor, restarts=restarts)  # type: ignore[misc, assignment]


if __name__ == "__main__":
    main()
