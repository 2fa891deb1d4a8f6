"""A conversation in the terminal, one message a line of a pipe, or a single question."""

import sys
import unicodedata
from collections.abc import Generator
from contextlib import closing, suppress
from typing import Protocol, TextIO

from rich.console import Console

from megainfer.errors import MegaInferError

PROMPT = "\n\001\033[1;32m\002you ▸\001\033[0m\002 "  # \001 and \002: no width, for line editing
HELP = "/reset forgets the conversation, /exit leaves; Ctrl-C stops an answer."


class Answerer(Protocol):
    """A server's model, to which one can say something."""

    url: str
    model: str

    def ask(self, message: str, /) -> Generator[str, None, None]: ...

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
            _write_answer(client, quick, stdout)
        elif stdin.isatty():
            _converse(client, stdout)
        else:
            _answer_lines(client, stdin, stdout)


def _answer_lines(client: Answerer, stdin: TextIO, stdout: TextIO) -> None:
    for line in stdin:
        message = line.strip()
        if message == "/exit":
            return
        if message == "/reset":
            client.reset()
        elif message:
            _write_answer(client, message, stdout)


def _converse(client: Answerer, stdout: TextIO) -> None:
    with suppress(ImportError):  # line editing for input(); not every Python has it
        import readline  # noqa: F401

    console = Console(file=stdout)
    console.print(f"[bold]{client.model}[/bold] at {client.url}. {HELP}", highlight=False)
    while (message := _read_message()) is not None:
        if message == "/reset":
            client.reset()
            console.print("[dim]The conversation starts anew.[/dim]")
        elif message.startswith("/"):
            console.print(f"There is no command {message!r}. {HELP}", markup=False)
        elif message:
            _converse_once(client, message, console, stdout)


def _converse_once(client: Answerer, message: str, console: Console, stdout: TextIO) -> None:
    try:
        _write_answer(client, message, stdout)
    except KeyboardInterrupt:
        console.print("\n[dim]stopped[/dim]")
    except MegaInferError as error:
        # On a line of its own, also after an answer that broke off.
        console.print(f"\nError: {error}", style="red", markup=False, highlight=False)


def _read_message() -> str | None:
    """The next message; None at the end: Ctrl-C or Ctrl-D at the prompt, or /exit."""
    try:
        message = input(PROMPT).strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if message == "/exit" else message


def _write_answer(client: Answerer, message: str, stdout: TextIO) -> None:
    """Write an answer as it comes. An interrupt closes the connection, which stops the server."""
    with closing(client.ask(message)) as pieces:
        for piece in pieces:
            stdout.write(printable(piece))
            stdout.flush()
    stdout.write("\n")
    stdout.flush()


def printable(text: str) -> str:
    """Without control characters, with which a model could steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
