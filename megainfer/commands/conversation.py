"""A conversation in the terminal, one message a line of a pipe, or a single question."""

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Protocol, TextIO

from rich.console import Console

from megainfer.commands.talk.answer import Figures, Piece
from megainfer.commands.talk.printer import Printer, printer_for
from megainfer.commands.talk.settings import Settings
from megainfer.commands.talk.slash import Then, run_command
from megainfer.errors import MegaInferError

ONLY_THOUGHTS = "the answer ended while the model was thinking; --max-tokens gives it more room"


class Answerer(Protocol):
    """A server's model, to which one can say something."""

    url: str
    model: str
    settings: Settings
    figures: Figures

    def ask(self, message: str, /) -> Generator[Piece, None, None]: ...

    def take_back(self) -> str | None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


def converse(
    client: Answerer,
    quick: str | None = None,
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
) -> None:
    """Ask the `quick` question, or talk until the input ends; the client is closed then.

    On a terminal errors are shown and the conversation goes on. Raises MegaInferError for any
    failed answer where input is piped or there is only one question.
    """
    stdin, stdout = stdin or sys.stdin, stdout or sys.stdout
    with closing(client):
        if quick is not None:
            _answer(client, quick, stdout)
        elif stdin.isatty() and stdout.isatty():
            from megainfer.commands.talk.editor import Editor

            talk(client, Editor().read, stdout)
        else:
            _answer_lines(client, stdin, stdout)


def _answer_lines(client: Answerer, stdin: TextIO, stdout: TextIO) -> None:
    for line in stdin:
        message = line.strip()
        if not message.startswith("/"):
            if message:
                _answer(client, message, stdout)
            continue
        outcome = run_command(client, message)
        if outcome.then is Then.LEAVE:
            return
        if outcome.ask is not None:
            _answer(client, outcome.ask, stdout)
        elif outcome.told:
            print(outcome.told, file=sys.stderr)


def _answer(client: Answerer, message: str, stdout: TextIO) -> None:
    """Write one answer as it comes, and only it."""
    spoken = _write(client, message, printer_for(stdout))
    if not spoken and client.figures.pieces:
        print(ONLY_THOUGHTS, file=sys.stderr)


def talk(client: Answerer, read: Callable[[], str | None], stdout: TextIO) -> None:
    """Answer messages until there is none. read: the next one, or a command."""
    console = Console(file=stdout, highlight=False)
    console.print(f"[bold]{client.model}[/bold] at {client.url}. /help says what there is.")
    while (message := read()) is not None:
        if message.startswith("/"):
            outcome = run_command(client, message)
            if outcome.then is Then.LEAVE:
                return
            if outcome.told:
                console.print(outcome.told, style="dim", markup=False)
            message = outcome.ask or ""
        if message:
            _talk_once(client, message, console, stdout)


def _talk_once(client: Answerer, message: str, console: Console, stdout: TextIO) -> None:
    from megainfer.commands.talk.editor import interrupts_are_heard, nothing_is_echoed

    stopped = False
    try:
        with nothing_is_echoed(), interrupts_are_heard():
            _write(client, message, printer_for(stdout))
    except KeyboardInterrupt:
        stopped = True
    except MegaInferError as error:
        console.print(f"Error: {error}", style="red", markup=False)
        return
    console.print(client.figures.describe(stopped), style="dim", markup=False)


def _write(client: Answerer, message: str, printer: Printer) -> bool:
    """Write an answer as it comes; whether there was more of it than thoughts. An interrupt closes
    the connection, which stops the server."""
    spoken = False
    printer.begin()
    try:
        with closing(client.ask(message)) as pieces:
            for piece in pieces:
                spoken = spoken or not piece.reasoning
                printer.push(piece)
    finally:
        printer.end()
    return spoken
