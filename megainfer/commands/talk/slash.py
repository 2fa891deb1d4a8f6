"""The commands of a conversation: lines that begin with a slash."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, auto
from typing import Protocol

from megainfer.commands.talk.settings import Settings
from megainfer.errors import ConfigError

KEYS = """\
Enter sends; Alt-Enter or Ctrl-J begins a new line. What is pasted stays together.
Up and Down go through what was said. Ctrl-C stops an answer, and leaves where
nothing is typed, as Ctrl-D does."""


class Then(Enum):
    """What follows a command."""

    GO_ON = auto()
    LEAVE = auto()


class Talking(Protocol):
    """What commands change."""

    settings: Settings

    def reset(self) -> None: ...

    def take_back(self) -> str | None: ...


@dataclass(frozen=True)
class Outcome:
    """told: what to show. ask: a message to send."""

    told: str = ""
    then: Then = Then.GO_ON
    ask: str | None = None


def _help(client: Talking, rest: str) -> Outcome:
    lines = [f"  {command.usage:<22} {command.help}" for command in COMMANDS.values()]
    return Outcome("\n".join([*lines, "", KEYS]))


def _quit(client: Talking, rest: str) -> Outcome:
    return Outcome(then=Then.LEAVE)


def _reset(client: Talking, rest: str) -> Outcome:
    client.reset()
    return Outcome("The conversation starts anew.")


def _regen(client: Talking, rest: str) -> Outcome:
    message = client.take_back()
    return Outcome("There is nothing to answer again." if message is None else "", ask=message)


def _set(client: Talking, rest: str) -> Outcome:
    name, _, value = rest.replace("=", " ").partition(" ")
    if not name:
        return Outcome(client.settings.describe())
    if not value.strip():
        return Outcome(f"/set {name} needs a value; `default` leaves it to the model.")
    try:
        client.settings.change(name, value.strip())
    except ConfigError as error:
        return Outcome(f"{error}.")
    return Outcome(f"{name} is {value.strip()} from now on.")


def _system(client: Talking, rest: str) -> Outcome:
    if not hasattr(client, "system"):
        return Outcome("A text to be continued has no system prompt.")
    if not rest:
        return Outcome(f"The system prompt: {client.system or 'none'}")
    client.system = None if rest == "-" else rest
    return Outcome("There is no system prompt any more." if rest == "-" else "It is set.")


@dataclass(frozen=True)
class Command:
    usage: str
    help: str
    run: Callable[[Talking, str], Outcome]


COMMANDS = {
    "/help": Command("/help", "this list", _help),
    "/system": Command("/system [TEXT|-]", "show, set or drop the system prompt", _system),
    "/set": Command("/set [NAME VALUE]", "show or change temperature, max_tokens, ...", _set),
    "/regen": Command("/regen", "answer the latest message again", _regen),
    "/reset": Command("/reset", "forget the conversation", _reset),
    "/quit": Command("/quit", "leave", _quit),
}
ALIASES = {"/exit": "/quit", "/bye": "/quit", "/clear": "/reset", "/new": "/reset", "/?": "/help"}


def run_command(client: Talking, line: str) -> Outcome:
    """Of a line that begins with a slash."""
    name, _, rest = line.partition(" ")
    name = ALIASES.get(name, name)
    if name in COMMANDS:
        return COMMANDS[name].run(client, rest.strip())
    near = get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
    hint = f"did you mean {near[0]}?" if near else "/help lists them."
    return Outcome(f"There is no command {name}; {hint}")
