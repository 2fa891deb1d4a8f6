"""How both ends of a connection show that they have the instance's key, without saying it.

    who has connected                            who listens
                             <--   CHALLENGE     nonce of 32 bytes
    PROOF  nonce, HMAC       -->                 compares
    compares                 <--   PROOF         HMAC

Each HMAC (SHA-256, RFC 2104) is over what the connection is for, its side's name and both nonces,
so that none can be sent back to whoever made it, or used again, or elsewhere. Nothing else is said
to somebody who has not proved itself. On M2N attention nodes connect, and expert nodes listen.
"""

import hmac
import secrets

from megainfer.errors import ConfigError
from megainfer.m2n.host.handshake import Channel, Frame, Side

NONCE_BYTES = 32
DIGEST_BYTES = 32
LEAST_KEY_CHARACTERS = 32
M2N = b"megainfer m2n 3 "
"""What a connection is for."""


def checked_key(key: str) -> bytes:
    """The key as bytes. Raises ConfigError where it could be guessed."""
    if len(key) < LEAST_KEY_CHARACTERS:
        raise ConfigError(
            f"the road 'dist' needs a key of at least {LEAST_KEY_CHARACTERS} characters, such as "
            f"secrets.token_hex(32) makes, not one of {len(key)}"
        )
    return key.encode()


def demand_proof(channel: Channel, key: bytes, purpose: bytes = M2N) -> None:
    """The listener's part. Raises ProtocolError where the other has another key."""
    ours = secrets.token_bytes(NONCE_BYTES)
    channel.send(Frame.CHALLENGE, ours)
    answer, _ = channel.receive(Frame.PROOF, NONCE_BYTES + DIGEST_BYTES)
    theirs, digest = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
    _compare(channel, digest, _digest(key, purpose, Side.ATTENTION, ours + theirs))
    channel.send(Frame.PROOF, _digest(key, purpose, Side.EXPERT, ours + theirs))


def give_proof(channel: Channel, key: bytes, purpose: bytes = M2N) -> None:
    """The part of who has connected, as `demand_proof`."""
    theirs, _ = channel.receive(Frame.CHALLENGE, NONCE_BYTES)
    ours = secrets.token_bytes(NONCE_BYTES)
    channel.send(Frame.PROOF, ours + _digest(key, purpose, Side.ATTENTION, theirs + ours))
    digest, _ = channel.receive(Frame.PROOF, DIGEST_BYTES)
    _compare(channel, digest, _digest(key, purpose, Side.EXPERT, theirs + ours))


def _digest(key: bytes, purpose: bytes, side: Side, nonces: bytes) -> bytes:
    return hmac.digest(key, purpose + side.name.encode() + nonces, "sha256")


def _compare(channel: Channel, found: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(found, expected):
        channel.refuse("it has not proved that it has this instance's key")
