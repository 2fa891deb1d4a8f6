"""From loaded weights to a node that can serve: the part of a start that all nodes have alike."""

from collections.abc import Callable

from megainfer.errors import NodeDied
from megainfer.launch.control import ParentLink
from megainfer.messages.from_child import Connected, Opened
from megainfer.messages.to_child import Measure, Meet, Serve, Start, Stop
from megainfer.topology import Membership

START_TIMEOUT_SECONDS = 3600.0
"""Others may still be loading; a supervisor that dies meanwhile is noticed at once."""


def await_start(link: ParentLink) -> int:
    """For how many micro-batches there are to be slots."""
    return link.expect(Start, START_TIMEOUT_SECONDS).micro_batches


def await_serve(
    link: ParentLink,
    meet: Callable[[Meet], None],
    measure: Callable[[Membership], Connected],
    opened: Opened = Opened(),  # noqa: B008  # frozen
) -> Serve:
    """The port is open, as `opened` tells: do as the supervisor says, until it says how to serve.

    Raises NodeDied when it is gone, or says nothing for long.
    """
    link.send(opened)
    while True:
        message = link.receive(START_TIMEOUT_SECONDS)
        match message:
            case Meet():
                meet(message)
            case Measure(membership=membership):
                link.send(measure(membership))
            case Serve():
                return message
            case Stop():
                raise NodeDied("it was told to stop before it served")
            case None:
                raise NodeDied(f"nobody said how to serve within {START_TIMEOUT_SECONDS:g} s")
