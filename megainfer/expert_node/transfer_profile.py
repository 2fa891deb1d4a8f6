"""An expert node's part in measuring T_c (`attention_node.transfer_profile`)."""

from time import monotonic

from megainfer.errors import NodeDied
from megainfer.m2n.mailbox import Dispatch, ExpertPort, Rest

TIMEOUT_SECONDS = 30.0


def answer_transfers(port: ExpertPort, num_attention: int) -> None:
    """Reply at once to whatever attention nodes send, until each of them has said that it rests.

    Raises NodeDied when one is gone before, or nothing comes for long.
    """
    measuring = set(range(num_attention))
    deadline = monotonic() + TIMEOUT_SECONDS
    while measuring:
        messages = port.receive()
        for message in messages:
            _answer(port, message)
        measuring -= {message.source for message in messages if isinstance(message, Rest)}
        if messages:
            deadline = monotonic() + TIMEOUT_SECONDS
        elif (lost := port.lost_peers() & measuring) or monotonic() > deadline:
            who = sorted(lost or measuring)
            raise NodeDied(f"attention nodes {who} went silent while they measured transfers")
        else:
            port.wait(deadline - monotonic())


def _answer(port: ExpertPort, message: Dispatch | Rest) -> None:
    if isinstance(message, Dispatch):
        port.reply_buffer(message).zero_()
        port.reply(message)
