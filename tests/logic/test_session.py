"""Two ends of a conversation between hosts, without sockets: who is believed, and what is not."""

import struct

import pytest

from megainfer.errors import ProtocolError
from megainfer.hosts.session import MAX_BODY_BYTES, VERSION, Session

TOKEN = b"a token that is long enough to be one"
PREFIX_BYTES = 44


def carry(source: Session, target: Session, piece: int = 1 << 20) -> list[bytes]:
    """What one has to say to the other, in pieces of so many bytes."""
    bodies = []
    while source.outgoing:
        data = bytes(source.outgoing[:piece])
        del source.outgoing[:piece]
        bodies += target.feed(data)
    return bodies


def opened() -> tuple[Session, Session]:
    caller, listener = Session(TOKEN, calls=True), Session(TOKEN, calls=False)
    for _ in range(2):
        carry(listener, caller)
        carry(caller, listener)
    assert caller.is_open
    assert listener.is_open
    return caller, listener


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_both_prove_themselves_and_hear_each_other_in_whatever_pieces(piece: int) -> None:
    caller, listener = Session(TOKEN, calls=True), Session(TOKEN, calls=False)
    for _ in range(2):
        carry(listener, caller, piece)
        carry(caller, listener, piece)
    bodies = [b"", b"one", bytes(100_000)]
    for body in bodies:
        caller.seal(body)
        listener.seal(body[::-1])
    assert carry(caller, listener, piece if piece > 1 else 999) == bodies
    assert carry(listener, caller, piece if piece > 1 else 999) == [b[::-1] for b in bodies]


def test_a_caller_with_another_token_is_refused_and_told_so() -> None:
    caller, listener = Session(b"another", calls=True), Session(TOKEN, calls=False)
    carry(listener, caller)
    with pytest.raises(ProtocolError, match="not proved that it has this token"):
        carry(caller, listener)
    assert not listener.is_open
    with pytest.raises(ProtocolError, match="it refuses this token"):
        carry(listener, caller)
    assert not caller.is_open


def test_a_listener_with_another_token_is_not_believed() -> None:
    """One that says yes to whoever comes."""
    caller, listener = Session(TOKEN, calls=True), Session(TOKEN, calls=False)
    carry(listener, caller)
    with pytest.raises(ProtocolError, match="not proved"):
        caller.feed(b"\0" + bytes(32))


def test_a_proof_that_was_overheard_is_none_in_another_session() -> None:
    caller, listener = Session(TOKEN, calls=True), Session(TOKEN, calls=False)
    carry(listener, caller)
    overheard = bytes(caller.outgoing)
    assert carry(caller, listener) == []
    assert listener.is_open
    with pytest.raises(ProtocolError, match="not proved"):
        Session(TOKEN, calls=False).feed(overheard)


def test_what_is_sent_back_proves_nothing() -> None:
    listener = Session(TOKEN, calls=False)
    own = bytes(listener.outgoing)
    with pytest.raises(ProtocolError, match="not proved"):
        listener.feed(own + bytes(32))


def test_another_version_is_named_by_both() -> None:
    caller, listener = Session(TOKEN, calls=True), Session(TOKEN, calls=False)
    listener.outgoing[8:12] = struct.pack("<I", VERSION + 1)
    text = f"version {VERSION + 1} between hosts, this is {VERSION}"
    with pytest.raises(ProtocolError, match=text):
        carry(listener, caller)
    caller.outgoing[8:12] = struct.pack("<I", VERSION + 1)
    with pytest.raises(ProtocolError, match=text):
        carry(caller, listener)


def test_whoever_speaks_something_else_is_sent_away_at_once() -> None:
    with pytest.raises(ProtocolError, match="begins with b'GET / HT'"):
        Session(TOKEN, calls=False).feed(b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize("place", [0, 4, 10, -1])
def test_a_frame_that_was_changed_is_not_taken(place: int) -> None:
    caller, listener = opened()
    caller.seal(b"something to be done")
    caller.outgoing[place] ^= 1 if place else 4  # a length that is still whole comes out shorter
    with pytest.raises(ProtocolError, match="changed on its way"):
        carry(caller, listener)


@pytest.mark.parametrize("said", ["twice", "back", "out of turn"])
def test_a_frame_counts_once_in_its_order_and_direction(said: str) -> None:
    caller, listener = opened()
    caller.seal(b"first")
    first = bytes(caller.outgoing)
    assert carry(caller, listener) == [b"first"]
    caller.seal(b"second")
    second = bytes(caller.outgoing)
    caller.seal(b"third")
    third = bytes(caller.outgoing[len(second) :])
    target, frame = {
        "twice": (listener, first),
        "back": (caller, first),
        "out of turn": (listener, third),
    }[said]
    with pytest.raises(ProtocolError, match="changed on its way"):
        target.feed(frame)


def test_nothing_is_gathered_of_a_frame_that_is_too_long() -> None:
    caller, listener = opened()
    with pytest.raises(ProtocolError, match="at most"):
        listener.feed(struct.pack("<I", MAX_BODY_BYTES + 1))
    with pytest.raises(ProtocolError, match="at most"):
        caller.seal(bytes(MAX_BODY_BYTES + 1))
