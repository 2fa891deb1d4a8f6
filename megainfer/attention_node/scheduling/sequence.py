"""One sequence on an attention node: its tokens, its blocks, and how far it has come."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from megainfer.attention_node.sampling.allowed_tokens import AllowedTokens
from megainfer.attention_node.sampling.history import TokenHistory
from megainfer.attention_node.scheduling.block_manager import block_digest, root_digest
from megainfer.messages.requests import FinishReason, Submit, TokenLogprobs

if TYPE_CHECKING:
    from megainfer.structured.matcher import TokenMatcher

ARRIVALS = 2**48  # more than will ever come, twice over


class Status(Enum):
    WAITING = "waiting"  # holds no block: new, or preempted and to be computed again
    RUNNING = "running"
    STALLED = "stalled"  # a step of it was abandoned: goes on when its others have ended too
    ABORTING = "aborting"  # leaves when the last step in flight that holds it ends
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Sequence:
    """State is changed by the scheduler alone; the model reads `token_ids` and `block_ids`.

    ```
    0 ......... num_computed ......... num_scheduled ......... len(token_ids)
     KV committed            in flight                to be scheduled
    ```
    """

    submit: Submit
    arrival: int  # smaller is older
    block_size: int
    arrived_at: float = 0.0  # seconds of the scheduler's clock
    queued_seconds: float | None = None  # from arrival to admission; None before the first
    matcher: "TokenMatcher | None" = None  # follows the output where a grammar was asked for
    token_ids: list[int] = field(init=False)  # the prompt, then what was sampled, here or elsewhere
    block_ids: list[int] = field(default_factory=list)  # block of tokens [i * block_size, ...)
    state_slot: int | None = None  # of its recurrent state, while it has blocks
    num_computed: int = 0  # tokens whose keys and values are committed: their steps ended
    num_scheduled: int = 0  # and those of steps in flight
    in_flight: list[int] = field(default_factory=list)  # numbers of those steps, ascending
    status: Status = Status.WAITING
    micro_batch: int | None = None  # where it decodes; None while any micro-batch may take it
    cached_tokens: int = 0  # prompt tokens found in the prefix cache when first admitted
    stale_tokens: int = 0  # whose keys and values are of earlier weights, since its admission
    preemptions: int = 0
    spoiled: bool = False  # its keys and values are no numbers: they are nobody else's to use
    finish_reason: FinishReason | None = None
    order: int = field(init=False)  # of service: by priority, then by arrival
    edits_logits: bool = field(init=False)
    history: TokenHistory | None = field(init=False)  # where it is penalised for its tokens
    listed: AllowedTokens | None = field(init=False)  # where no others are allowed
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # as far as it has come
    routed_told: int = 0  # tokens whose experts the front end knows, where it wants to
    _digests: list[bytes] = field(default_factory=list)
    _stop_token_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids = [*self.submit.prompt, *self.submit.output]
        self._stop_token_ids = frozenset(self.submit.stop_token_ids)
        # One that another node has begun comes before newcomers, as a preempted one does.
        ahead = ARRIVALS // 2 if self.submit.output else 0
        self.order = self.submit.priority * ARRIVALS + self.arrival - ahead
        self.edits_logits = self.submit.edits_logits
        self.history = _history(self.submit)
        listed = self.submit.allowed_token_ids
        self.listed = AllowedTokens(listed) if listed else None

    @property
    def request_id(self) -> str:
        return self.submit.request_id

    @property
    def num_outputs(self) -> int:
        return len(self.token_ids) - len(self.submit.prompt)

    @property
    def num_unscheduled(self) -> int:
        """Known tokens that no step has taken yet."""
        return len(self.token_ids) - self.num_scheduled

    @property
    def capacity(self) -> int:
        """Tokens that its blocks can hold."""
        return len(self.block_ids) * self.block_size

    @property
    def num_missing_blocks(self) -> int:
        """Blocks that it still needs to hold all its known tokens."""
        return max(0, -((self.capacity - len(self.token_ids)) // self.block_size))

    @property
    def is_at_rest(self) -> bool:
        return not self.in_flight

    @property
    def is_decoding(self) -> bool:
        """All but its newest token are committed: the next step needs one row of it."""
        return not self.in_flight and len(self.token_ids) - self.num_scheduled == 1

    @property
    def adds_tokens(self) -> bool:
        """Its context is computed, or in flight: it takes one row a step from now on."""
        return len(self.token_ids) - self.num_scheduled <= 1

    def note_admission(self, now: float) -> None:
        """It has blocks from now on; only the first time counts."""
        if self.queued_seconds is None:
            self.queued_seconds = now - self.arrived_at

    def has_waited_too_long(self, now: float) -> bool:
        """The limit is for the first admission; a preempted one waits as long as it must."""
        limit = self.submit.max_queue_seconds
        return self.queued_seconds is None and limit is not None and now - self.arrived_at > limit

    @property
    def unscored(self) -> range:
        """Positions of the prompt whose log-probabilities are still to come: each gives those of
        the token after it, so the last has none."""
        last = len(self.submit.prompt) - 1 if self._wants_scores else 0
        return range(len(self.prompt_logprobs), last)

    def take_scores(self) -> list[TokenLogprobs] | None:
        """The prompt's log-probabilities where they are wanted, once: with the first output."""
        if not self._wants_scores:
            return None
        scores, self.prompt_logprobs = self.prompt_logprobs, []
        return scores

    @property
    def _wants_scores(self) -> bool:
        return self.submit.prompt_logprobs is not None and not self.num_outputs

    def digest(self, index: int) -> bytes:
        """The digest of block `index`, whose tokens must all be known."""
        while len(self._digests) <= index:
            start = len(self._digests) * self.block_size
            token_ids = self.token_ids[start : start + self.block_size]
            assert len(token_ids) == self.block_size, f"{self.request_id}: block {index} not full"
            parent = self._digests[-1] if self._digests else root_digest(self.submit.cache_salt)
            self._digests.append(block_digest(parent, token_ids))
        return self._digests[index]

    def prefix_digests(self) -> Iterator[bytes]:
        """Digests of the full blocks before the last token, which must always be computed."""
        return (self.digest(i) for i in range((len(self.token_ids) - 1) // self.block_size))

    def reason_to_finish(self, max_model_len: int) -> FinishReason | None:
        """Whether the token just appended is the last one, and why."""
        if self.token_ids[-1] in self._stop_token_ids:
            return FinishReason.STOP
        if self.num_outputs >= self.submit.max_tokens or len(self.token_ids) >= max_model_len:
            return FinishReason.LENGTH
        return None


def _history(submit: Submit) -> TokenHistory | None:
    if not submit.is_penalised:
        return None
    return TokenHistory(len(submit.prompt), with_prompt=submit.repetition_penalty != 1)
