"""What a process gets from the supervisor that forks it."""

from dataclasses import dataclass

from megainfer.launch.control import ParentLink
from megainfer.launch.heartbeat import Page


@dataclass(frozen=True, slots=True)
class Station:
    """link: to the supervisor. page: for its heartbeat. incarnation: how many processes this node
    has been before."""

    link: ParentLink
    page: Page
    incarnation: int = 0
