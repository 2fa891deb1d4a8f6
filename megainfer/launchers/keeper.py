"""Agents on the supervisor's own machine, and the process that keeps them: one that is killed is
started again, under its name.

It is forked from the supervisor's process, ends with it, and its agents with it.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from time import sleep
from typing import NoReturn

from megainfer.agent.agent import Agent, AgentWish
from megainfer.console.logs import name_logs
from megainfer.errors import MegaInferError
from megainfer.helper_frames import die_with
from megainfer.launch.machine import read_machine
from megainfer.launchers.process import LauncherProcess
from megainfer.launchers.words import Failed, Said, say
from megainfer.supervise.child import Closable, fork_process
from megainfer.supervise.forking.libraries import load_libraries

log = logging.getLogger("megainfer")

RESTART_SECONDS = 1.0
"""Before an agent that was killed is started again."""
FAILED = 2
"""An agent's exit status where it says itself why it ends."""


def start_keeper(wishes: Sequence[AgentWish], close: Sequence[Closable]) -> LauncherProcess:
    """Agents of these wishes, with even shares of the cores and the memory that this process may
    use. close: what only the supervisor may hold."""
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = fork_process()
    if pid == 0:
        os.close(reader)
        _run_keeper(wishes, close, writer, parent)
    os.close(writer)
    return LauncherProcess("the process that keeps agents here", pid, reader)


def _run_keeper(
    wishes: Sequence[AgentWish], close: Sequence[Closable], pipe: int, parent: int
) -> NoReturn:
    """Never returns into the supervisor's code."""
    code = 1
    try:
        die_with(parent)
        os.setpgid(0, 0)  # the terminal's Ctrl-C is for the supervisor, who dismisses agents
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for held in close:
            held.close()
        code = _Keeper(wishes, pipe).run()
    except Exception as error:  # the process boundary: the supervisor must hear of it
        traceback.print_exc()
        say(pipe, Failed(f"agents here can't be kept: {type(error).__name__}: {error}"))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Keeper:
    def __init__(self, wishes: Sequence[AgentWish], pipe: int) -> None:
        self._wishes = [_shared(wish, index, len(wishes)) for index, wish in enumerate(wishes)]
        self._pipe = pipe
        self._agents: dict[int, int] = {}  # by process id, which of them it is

    def run(self) -> int:
        """Until all have been dismissed, or one says why it can't go on; the exit status."""
        load_libraries()  # once for all
        for index in range(len(self._wishes)):
            self._start(index)
        while self._agents:
            pid, status = os.waitpid(-1, 0)  # this process itself ends with the supervisor
            index = self._agents.pop(pid)
            if (code := os.waitstatus_to_exitcode(status)) == FAILED:
                return FAILED  # it has said why
            if code:
                self._restart(index, code)
        return 0

    def _restart(self, index: int, code: int) -> None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed ({code})"
        name = self._wishes[index].name
        say(self._pipe, Said(f"the agent of host {name} {how}; it is started again"))
        sleep(RESTART_SECONDS)
        self._start(index)

    def _start(self, index: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        keeper = os.getpid()
        pid = fork_process()
        if pid == 0:
            self._be_agent(index, keeper)
        self._agents[pid] = index

    def _be_agent(self, index: int, keeper: int) -> NoReturn:
        """In its process; never returns into the keeper's code."""
        wish, code = self._wishes[index], 1
        try:
            die_with(keeper)
            name_logs(f"the agent of host {wish.name}")
            os.sched_setaffinity(0, cores_of(index, len(self._wishes)))
            code = Agent(wish, lambda text: log.debug("%s", text)).run()
        except MegaInferError as error:
            say(self._pipe, Failed(f"the agent of host {wish.name} has ended: {error}"))
            code = FAILED
        except Exception:  # the process boundary: its trace is all that would be left of it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def cores_of(index: int, count: int) -> list[int]:
    """Of so many agents, those of one; all have all where there are fewer cores."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[index::count] if len(cores) >= count else cores


def _shared(wish: AgentWish, index: int, count: int) -> AgentWish:
    """Of so many alike, this one's part of memory and GPUs."""
    if count == 1:
        return wish
    machine = read_machine()
    memory = machine.available_memory if wish.memory is None else wish.memory
    gpus = range(len(machine.gpus)) if wish.gpus is None else wish.gpus
    return replace(wish, memory=memory // count, gpus=tuple(gpus[index::count]))
