"""Who moves a node's messages into slots and out of them."""

from collections.abc import Callable
from typing import NamedTuple

from megainfer.errors import ConfigError
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted import native_library
from megainfer.m2n.slotted.mail import AttentionMail, ExpertMail, Memory
from megainfer.m2n.slotted.native_mail import NativeAttentionMail, NativeExpertMail
from megainfer.m2n.slotted.plain_mail import PlainAttentionMail, PlainExpertMail


class Mover(NamedTuple):
    """One implementation of both ends' mail."""

    attention: Callable[[Seat, Memory], AttentionMail]
    expert: Callable[[Seat, Memory], ExpertMail]


MOVERS = {
    "plain": Mover(PlainAttentionMail.over, PlainExpertMail.over),
    "native": Mover(NativeAttentionMail, NativeExpertMail),
}
"""By name; the peers of a node may have others than it has."""


def choose_mover(wish: str | None) -> Mover:
    """The one wished for; without a wish, the fastest that was built.

    Raises ConfigError when there is none of that name.
    """
    name = wish or ("native" if native_library.is_built() else "plain")
    if name not in MOVERS:
        raise ConfigError(f"M2N has no mover {name!r}; it has: {', '.join(MOVERS)}")
    return MOVERS[name]
