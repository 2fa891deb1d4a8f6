"""Front end and attention node, over ZeroMQ: requests down, tokens up."""

import re
from collections.abc import Iterator
from enum import StrEnum

import msgspec
from msgspec import field

from megainfer.messages.message import Message
from megainfer.messages.routed_experts import RoutedExperts
from megainfer.structured.grammar import Grammar
from megainfer.topology import FOLDERS_OWN


class FinishReason(StrEnum):
    STOP = "stop"  # an end token, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"


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
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: list[int] = field(default_factory=list)  # all, where it is empty
    bad_words: list[list[int]] = field(default_factory=list)  # none of them empty
    priority: int = 0  # smaller is served first
    grammar: Grammar | None = None  # what the text must look like
    output: list[int] = field(
        default_factory=list
    )  # tokens that another node made of it before it died; it goes on there
    max_queue_seconds: float | None = None  # of waiting for its first step; None: without end
    processed_logprobs: bool = False  # of what is drawn from, not the model's own
    routed_experts: bool = False  # whether `TokenEvent.routed` is wanted
    stale_prefix: bool = False  # whether blocks that earlier weights filled may be used
    cache_salt: str = ""  # whose blocks of the prefix cache may be used: those of the same salt
    client: str = ""  # whose it is: turns are kept by it
    siblings: list[tuple[str, int]] = field(
        default_factory=list
    )  # further sequences of this prompt: ids and seeds

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
    """One sampled token of one request, or its end; or a part of its `prompt_logprobs` or `routed`,
    the rest of which comes with the first token."""

    request_id: str
    token_ids: list[int]  # usually one; empty only when the request ends without a new token
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0  # prompt tokens served from the prefix cache; set on the first event
    logprobs: list[TokenLogprobs] | None = None  # one a token
    prompt_logprobs: list[TokenLogprobs] | None = None  # of prompt tokens but the first; so too
    queued_seconds: float = 0.0  # from arrival at the node to admission; set on the first event
    weights: str = FOLDERS_OWN.name  # the name of those that the tokens were computed with
    routed: RoutedExperts | None = None  # of all tokens before this one that weren't told yet
    stale_tokens: int = 0  # before it, whose keys and values earlier weights have computed


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
to_node_decoder: "msgspec.msgpack.Decoder[ToNode]" = msgspec.msgpack.Decoder(ToNode)
from_node_decoder: "msgspec.msgpack.Decoder[FromNode]" = msgspec.msgpack.Decoder(FromNode)
