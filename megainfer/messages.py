"""All that processes say to each other outside of M2N, on one screen.

Two conversations, both msgpack of tagged structs, never pickle:

- front end <-> attention node, over ZeroMQ (`ToNode`, `FromNode`): requests down, tokens up.
- supervisor <-> each of its children, over a socket pair (`ToChild`, `FromChild`).
"""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import msgspec

from megainfer.instruments.stage_clock import Span
from megainfer.structured.grammar import Grammar
from megainfer.topology import Membership, Placement


class Role(StrEnum):
    ATTENTION = "attention"
    EXPERT = "expert"
    SERVER = "server"


class FinishReason(StrEnum):
    STOP = "stop"  # an end token, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of every message; the tag is the class's name."""


# --- front end -> attention node ---------------------------------------------------------------


class Submit(Message, frozen=True):
    """One sequence to generate, or several of one prompt; see `each_of`."""

    request_id: str
    prompt: list[int]
    temperature: float
    top_p: float
    top_k: int
    seed: int  # always set: the front end draws one where the client gave none
    max_tokens: int  # always set: at most what the context leaves
    stop_token_ids: list[int]  # the model's end tokens among them, unless ignore_eos
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    min_p: float = 0.0
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] = []  # all, where it is empty
    bad_words: list[list[int]] = []  # none of them empty
    priority: int = 0  # smaller is served first
    grammar: Grammar | None = None  # what the text must look like
    output: list[int] = []  # tokens that another node made of it before it died; it goes on there
    max_queue_seconds: float | None = None  # of waiting for its first step; None: without end
    cache_salt: str = ""  # whose blocks of the prefix cache may be used: those of the same salt
    client: str = ""  # whose it is: turns are kept by it
    siblings: list[tuple[str, int]] = []  # further sequences of this prompt: ids and seeds

    @property
    def is_penalised(self) -> bool:
        """Whether its tokens so far change its logits."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties != (0.0, 0.0, 1.0)

    @property
    def edits_logits(self) -> bool:
        """Whether it changes its logits in any way before a token is chosen."""
        wishes = (self.min_tokens, self.logit_bias, self.allowed_token_ids, self.bad_words)
        return self.is_penalised or any(wishes) or self.grammar is not None


def each_of(submit: Submit) -> Iterator[Submit]:
    """Its sequences, one a message: a prompt is sent once, however many answers it is to have."""
    if not submit.siblings:
        yield submit
        return
    yield msgspec.structs.replace(submit, siblings=[])
    for request_id, seed in submit.siblings:
        yield msgspec.structs.replace(submit, request_id=request_id, seed=seed, siblings=[])


class Abort(Message, frozen=True):
    """Stop working for this request; unknown ids are ignored (it may just have finished)."""

    request_id: str


class Reset(Message, frozen=True):
    """Drop every cached prefix that no request uses (for tests and benchmarks)."""


ToNode = Submit | Abort | Reset


def node_identity(node: int, incarnation: int = 0) -> bytes:
    """The ZeroMQ identity with which an attention node connects to the front ends."""
    return f"attn-{node}-{incarnation}".encode()


def read_identity(identity: bytes) -> tuple[int, int] | None:
    """(node, incarnation) of a `node_identity`; None for anything else.

    >>> read_identity(node_identity(3, 1)), read_identity(b"attn-3")
    ((3, 1), None)
    """
    match = _IDENTITY.fullmatch(identity)
    return None if match is None else (int(match[1]), int(match[2]))


_IDENTITY = re.compile(rb"attn-(\d{1,9})-(\d{1,9})")


# --- attention node -> front end ---------------------------------------------------------------


class NodeReady(Message, frozen=True):
    """Sent once to each front end by an attention node that can take requests."""

    node: int
    max_model_len: int
    max_num_seqs: int
    incarnation: int = 0


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position.

    values: token id -> log-probability of the best ones, best first, and of the position's own
    token, last if it isn't among them. rank: of the own token; 1 is the best.
    """

    values: dict[int, float]
    rank: int


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One sampled token of one request, or its end; or a part of its `prompt_logprobs`, the rest of
    which comes with the first token."""

    request_id: str
    token_ids: list[int]  # usually one; empty only when the request ends without a new token
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0  # prompt tokens served from the prefix cache; set on the first event
    logprobs: list[TokenLogprobs] | None = None  # one a token
    prompt_logprobs: list[TokenLogprobs] | None = None  # of prompt tokens but the first; so too
    queued_seconds: float = 0.0  # from arrival at the node to admission; set on the first event


class Tokens(Message, frozen=True):
    """What one step of one micro-batch produced."""

    node: int
    events: list[TokenEvent]


class RequestFailed(Message, frozen=True):
    """This request ended in an error; `client_error` says whose fault it was.

    overloaded: it waited for too long; trying again later may help.
    """

    node: int
    request_id: str
    message: str
    client_error: bool = False
    overloaded: bool = False


FromNode = NodeReady | Tokens | RequestFailed

# --- supervisor -> child ------------------------------------------------------------------------


class Start(Message, frozen=True):
    """Open the port, with M2N slots for so many micro-batches, and say Opened."""

    micro_batches: int


class Measure(Message, frozen=True):
    """All have met: measure transfers between the nodes of this membership, and say Connected."""

    membership: Membership


class Serve(Message, frozen=True):
    """Be ready to serve, and say Ready; what is served first is told by the first Enter.

    micro_batches: m, at most what there are slots for. first: where an attention node chooses how
    many of them it uses, how many to begin with; else None, and it uses all.
    """

    micro_batches: int
    first: int | None = None


class Enter(Message, frozen=True):
    """Another membership: what is in flight between nodes is abandoned and computed again in it,
    and new requests go to its attention nodes."""

    membership: Membership


class Started(Message, frozen=True):
    """To the API server: everybody is ready. seconds: of each stage of the start, in order."""

    seconds: dict[str, float]


class NodeDown(Message, frozen=True):
    """To every front end: this incarnation of a node has died, or was given up and killed. From a
    front end: it has given this one up, which is to be started again.

    incarnation: counts the processes that this node has been, from 0.
    """

    role: Role
    node: int
    message: str
    incarnation: int = 0


class NodeGone(Message, frozen=True):
    """To every front end: this node is none of the instance's any more."""

    role: Role
    node: int


class FrontEndUp(Message, frozen=True):
    """To an attention node: connect to this front end. incarnation: as in NodeDown."""

    server: int
    incarnation: int


class FrontEndDown(Message, frozen=True):
    """To an attention node: this front end is gone, and so are its requests."""

    server: int
    incarnation: int


class Meet(Message, frozen=True):
    """To an attention node: meet this incarnation of an expert node, and say Met."""

    expert: int
    incarnation: int


class Prepare(Message, frozen=True):
    """To an expert node: read what it holds by this placement and has not loaded, while it serves,
    and say Prepared; an Enter with it is told only then. Takes the place of an earlier one, to
    which no answer comes any more. ticket: counts them."""

    ticket: int
    placement: Placement


class GetStats(Message, frozen=True):
    """Ask every node for its counters. The API server and an owner may ask the supervisor."""

    ticket: int


class KeepSpans(Message, frozen=True):
    """Have every node keep its latest `count` spans of work from now on; 0: none. May be asked as
    GetStats may."""

    count: int


class GetSpans(Message, frozen=True):
    """Ask a process for the spans that its nodes have kept; they keep them no longer. May be asked
    as GetStats may."""

    ticket: int


class Resized(Message, frozen=True):
    """The answer to Resize, Release or Renew: it is done, after so many seconds, or why it isn't.

    attention, experts: the nodes that are wanted now.
    """

    ticket: int
    attention: list[int]
    experts: list[int]
    seconds: float
    error: str | None = None


class Reload(Message, frozen=True):
    """To an API server: these keys and limits count from now on (ServingOptions, QueueLimits)."""

    api_keys: tuple[str, ...]
    admin_keys: tuple[str, ...]
    queued: int | None
    queue_seconds: float | None
    total_seconds: float | None
    recovery_seconds: float


class Event(msgspec.Struct, frozen=True, array_like=True):
    """What happened to nodes, in words for whoever watches them. at: seconds since 1970."""

    at: float
    text: str


class Away(msgspec.Struct, frozen=True):
    """A process that was lost and isn't back. since: seconds since 1970. returning: another one has
    been started in its place."""

    since: float
    returning: bool = False


class Chronicle(Message, frozen=True):
    """To every API server, each time that it has changed: it takes the place of the one before, so
    that all tell the same, and one that was started later does too.

    events: the latest, oldest first. away: by the node's name. restarts: of each node and API
    server that was started again, so many times; those among them that have left are left out.
    """

    events: list[Event] = []
    away: dict[str, Away] = {}
    restarts: dict[str, int] = {}


class Drain(Message, frozen=True):
    """To the API server: refuse new requests, let those admitted finish, then say Drained."""


class Stop(Message, frozen=True):
    """End in order; the child exits within the bound that the supervisor keeps."""


# --- child -> supervisor ------------------------------------------------------------------------


class LoadProgress(Message, frozen=True):
    """Loading: bytes of weights that are in place, of all that this process loads; or pieces of
    another stage of its start."""

    stage: str
    done: int
    total: int


class Loaded(Message, frozen=True):
    """Weights are in place; stage times (rows, seconds) were profiled for the choice of m."""

    stage_seconds: list[tuple[int, float]] = []


class Opened(Message, frozen=True):
    """The port is open: peers can be met."""


class Connected(Message, frozen=True):
    """Transfers were measured; attention nodes tell them, for the choice of m.

    transfer_seconds: (rows, seconds one way). waking_seconds: by how much it takes longer to a node
    that has gone to sleep.
    """

    transfer_seconds: list[tuple[int, float]] = []
    waking_seconds: float = 0.0


class Met(Message, frozen=True):
    """From an attention node: what one dispatches reaches the other from now on."""

    expert: int
    incarnation: int


class LinkLost(Message, frozen=True):
    """From an attention node: the connection to this incarnation of an expert node has ended."""

    expert: int
    incarnation: int


class Prepared(Message, frozen=True):
    """From an expert node: it could enter the placement of this Prepare. error: why it can't."""

    ticket: int
    error: str | None = None


class Ready(Message, frozen=True):
    """Able to serve."""


class Entered(Message, frozen=True):
    """This node takes part in the membership of this epoch from now on."""

    epoch: int


class Drained(Message, frozen=True):
    """From the API server: no request is left."""


class Stats(Message, frozen=True):
    """Counters since the start, by the node's name; their meaning stands where they are counted.

    ticket: of the GetStats that this answers; None: told unasked, as a node does once a second for
    as long as its loop goes round.
    """

    ticket: int | None
    counters: dict[str, dict[str, Any]]


class Spans(Message, frozen=True):
    """Some of a node's spans, oldest first: few enough for one message of the control link.

    last: this process has no more to send for the ticket.
    """

    ticket: int
    node: str
    spans: list[Span]
    last: bool


class Resize(Message, frozen=True):
    """From a front end: so many attention and expert nodes are wanted; None: as there are."""

    ticket: int
    attention: int | None = None
    experts: int | None = None


class Release(Message, frozen=True):
    """From a front end: this node isn't wanted any more; what it has goes to the others."""

    ticket: int
    role: Role
    node: int


class Renew(Message, frozen=True):
    """From a front end: start this node again, or each node, one after the other."""

    ticket: int
    role: Role | None = None
    node: int | None = None


class Fatal(Message, frozen=True):
    """The child is about to exit because of this."""

    message: str


ToChild = (
    Start
    | Measure
    | Serve
    | Enter
    | Started
    | NodeDown
    | NodeGone
    | FrontEndUp
    | FrontEndDown
    | Meet
    | Prepare
    | GetStats
    | KeepSpans
    | GetSpans
    | Drain
    | Resized
    | Reload
    | Chronicle
    | Stop
    | Stats
    | Spans
)
FromChild = (
    LoadProgress
    | Loaded
    | Opened
    | Connected
    | Met
    | LinkLost
    | Ready
    | Entered
    | Prepared
    | Drained
    | Stats
    | Spans
    | Fatal
    | GetStats
    | KeepSpans
    | GetSpans
    | Enter
    | NodeDown
    | NodeGone
    | Resize
    | Release
    | Renew
    | Resized
)


def encode(message: Message) -> bytes:
    """msgpack bytes of any message."""
    return msgspec.msgpack.encode(message)


to_node_decoder: "msgspec.msgpack.Decoder[ToNode]" = msgspec.msgpack.Decoder(ToNode)
from_node_decoder: "msgspec.msgpack.Decoder[FromNode]" = msgspec.msgpack.Decoder(FromNode)
to_child_decoder: "msgspec.msgpack.Decoder[ToChild]" = msgspec.msgpack.Decoder(ToChild)
from_child_decoder: "msgspec.msgpack.Decoder[FromChild]" = msgspec.msgpack.Decoder(FromChild)
