"""What both ends of a handover agree on, and how it is said.

    the node that asks                          the node that gives
        PROOF                 <->   CHALLENGE, PROOF    as on M2N, for another purpose
        EXPERTS, a form       -->                       how it computes with experts
        EXPERTS               <--                       the same, or REFUSAL
        STORE, several        <->   STORE, several      torch makes two groups, see `pair_store`
        EXPERT, which         -->
        GIVEN                 <--                       a digest; nothing where it hasn't that one
        the expert            <--                       over one of the groups

The last three again for each expert. Frames are those of M2N's handshakes, each within its time.
"""

import hashlib
import socket
import struct
from dataclasses import dataclass
from time import monotonic

import msgspec
import torch
from torch import Tensor

from megainfer.compute.experts import LayerExperts
from megainfer.launch.plan import Plan
from megainfer.m2n.dist.proof import checked_key
from megainfer.m2n.host.handshake import Channel
from megainfer.tls.peers import PeerTls
from megainfer.tls.stream import TlsSocket

PURPOSE = b"megainfer experts 1 "
"""Of proofs: none that is made here is one on M2N."""
ANSWER_SECONDS = 10.0
"""For each expert, and for its payload."""
IDLE_SECONDS = 120.0
"""Between two experts, after which the connection is ended by who gives; who asks has parted with
it by then."""
BUSY = b"busy"
DIGEST_BYTES = 32
WHICH = struct.Struct("<II")
"""Layer, and the global id of one of its experts."""


@dataclass(frozen=True, slots=True)
class HandoverTerms:
    """key: that both prove to have. host: the address that groups listen at. weights: number of
    the version that is computed with."""

    key: bytes
    host: str
    weights: int
    tls: PeerTls | None = None

    @classmethod
    def of(cls, plan: Plan, weights: int) -> "HandoverTerms":
        """Of this instance."""
        key = checked_key(plan.m2n_key)
        tls = None if plan.m2n_tls is None else PeerTls(plan.m2n_tls)
        return cls(key, plan.config.m2n_host, weights, tls)

    def secured(self, connection: socket.socket, calls: bool) -> socket.socket:
        """As `m2n.dist.handshake.Terms.secured`."""
        return connection if self.tls is None else TlsSocket(connection, self.tls.end(calls))

    def form_of(self, layer: LayerExperts) -> bytes:
        """What has to be the same on both ends, for the bytes of an expert to mean the same."""
        return msgspec.msgpack.encode([layer.form, layer.copied_bytes, self.weights])


def within(connection: socket.socket, seconds: float, peer: str) -> Channel:
    """The connection for what has to be said in so many seconds."""
    return Channel(connection, monotonic() + seconds, peer)


def new_buffer(size: int) -> Tensor:
    """uint8 [size] that groups may fill."""
    with torch.inference_mode(False):
        return torch.empty(size, dtype=torch.uint8)


def digest_of(stored: Tensor) -> bytes:
    """Of an expert's bytes. Said on the control connection, which proves who says it."""
    return hashlib.blake2b(stored.numpy().data, digest_size=DIGEST_BYTES).digest()
