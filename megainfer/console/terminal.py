"""What `megainfer serve` shows a person while it starts, and when it is ready."""

import logging
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)

from megainfer.launch.plan import Plan

logger = logging.getLogger("megainfer")


class ModelProgress:
    """How far preparing the model is; shows nothing for one that is there already."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._stage = ""

    def __call__(self, stage: str, fraction: float) -> None:
        if not self._console.is_terminal:
            if stage != self._stage:
                self._console.print(stage)
            self._stage = stage
            return
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(stage, total=1.0)
        self._bar.update(self._task, description=stage, completed=fraction)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._bar.stop()


class TerminalObserver:
    """A bar over the bytes of weights on a terminal, a line a stage elsewhere.

    It redraws only when told something: a supervisor that forks must not have a drawing thread.
    asks_for_key: whether the commands that it proposes need a key.
    """

    def __init__(
        self, console: Console, plan: Plan, url: str, model_name: str, asks_for_key: bool = False
    ) -> None:
        self._console = console
        self._plan = plan
        self._url = url
        self._model_name = model_name
        self._asks_for_key = asks_for_key
        self._started = monotonic()
        self._loaded: dict[str, tuple[int, int]] = {}
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def stage(self, text: str) -> None:
        self._end_bar()
        if text == "loading weights" and self._console.is_terminal:
            self._begin_bar(text)
        else:
            self._console.print(f"[dim]{monotonic() - self._started:5.1f} s[/dim]  {text}")

    def loading(self, name: str, done: int, total: int) -> None:
        self._loaded[name] = (done, total)
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                completed=sum(done for done, _ in self._loaded.values()),
                total=sum(total for _, total in self._loaded.values()),
            )
            self._bar.refresh()

    def ready(self, micro_batches: int, startup: Mapping[str, float]) -> None:
        self._end_bar()
        plan = self._plan
        kind = (
            "one colocated process"
            if plan.config.colocated
            else f"{plan.num_attention} attention and {plan.num_expert} expert "
            f"process{'es' * (plan.num_expert > 1)}"
        )
        plural = "es" * (micro_batches > 1)
        self._console.print(
            f"\n[bold green]Ready[/bold green] in {sum(startup.values()):.1f} s "
            f"({_by_stage(startup)}) at [bold]{escape(self._url)}[/bold]: "
            f"{escape(self._model_name)}, {kind}, {micro_batches} micro-batch{plural}.",
            soft_wrap=True,
        )
        commands = f"  {self._chat_command()}\n\n  {self._curl_command()}\n"
        self._console.print("\nTry it in a browser, at the same address, or in another terminal:\n")
        self._console.print(commands, soft_wrap=True, markup=False)
        if self._asks_for_key:
            self._console.print("KEY is one of this server's keys.\n")
        self._console.print("Ctrl-C ends it.")

    def ended(self, error: str | None) -> None:
        self._hide_bar()  # or the terminal would be left without a cursor
        if error is None:
            self._console.print("Stopping.")
        else:
            logger.error(error)

    def _chat_command(self) -> str:
        key = " --api-key KEY" * self._asks_for_key
        return f"{program_name()} chat --url {self._url}{key}"

    def _curl_command(self) -> str:
        body = (
            '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64}'
        )
        key = "-H 'Authorization: Bearer KEY' " * self._asks_for_key
        return (
            f"curl {self._url}/v1/chat/completions {key}-H 'Content-Type: application/json' "
            f"-d {shlex.quote(body)}"
        )

    def _begin_bar(self, text: str) -> None:
        self._bar = Progress(
            TextColumn(text),
            BarColumn(),
            DownloadColumn(True),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(text, total=None)
        self._bar.start()

    def _end_bar(self) -> None:
        if self._hide_bar():
            total = sum(total for _, total in self._loaded.values())
            self._console.print(
                f"[dim]{monotonic() - self._started:5.1f} s[/dim]  loaded {total / 1e9:.2f} GB"
            )

    def _hide_bar(self) -> bool:
        """Whether there was one."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
        return bar is not None


def _by_stage(startup: Mapping[str, float]) -> str:
    """`libraries 2.1 s, weights 0.4 s`"""
    return ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in startup.items())


def program_name() -> str:
    """How the person who started us can start us again from the same place."""
    if shutil.which("megainfer"):
        return "megainfer"
    program = Path(sys.argv[0])
    try:
        return str(program.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(program)
