"""What requests may cost: bytes and work, each and all together. Pure arithmetic.

Every bound follows from the model's context unless it was given.
"""

from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.sharing.shares import Shares

SEQUENCES, MEMORY = "sequences in flight", "bytes of requests' memory"
"""What clients share."""
MAX_OUTSTANDING = 4096  # sequences in flight; one more is refused

CHARACTERS_A_TOKEN = 16
"""That a text may have for each token of the context: real ones have four or five."""
LEAST_CHARACTERS = 2**14
MIB = 2**20
MOST_BODY_BYTES = 32 * MIB
A_CHARACTER_IN_JSON = 6
"""Bytes, at most, where it is escaped."""
JSON_VALUES, JSON_WORK = 600_000, 400_000
"""Of one body; see `server.http.body`. About 50 ms, in which nobody else is heard."""
REQUEST_MEMORY = 2**30
SHARE = 0.5
ENCODING_BYTES = 100
"""That a tokenizer takes for a character while it encodes a text."""


def client_shares(memory: int, share: float, servers: int = 1) -> Shares:
    """Of the clients of one of so many API servers; memory: bytes for all requests of all. See
    `Shares`."""
    totals = {SEQUENCES: MAX_OUTSTANDING // servers, MEMORY: memory // servers}
    return Shares(totals, share)


@dataclass(frozen=True, slots=True)
class BudgetOptions:
    """A wish; None: what follows from the model. prompt_characters: of one text. body_bytes: of one
    request. request_memory: bytes that all requests in flight may hold, in the API server and on
    attention nodes. client_share: of
    what others leave of anything, how much one client may have. isolates_caches: whether a client
    finds only its own prompts in the prefix cache. Raises ConfigError."""

    prompt_characters: int | None = None
    body_bytes: int | None = None
    request_memory: int = REQUEST_MEMORY
    client_share: float = SHARE
    isolates_caches: bool = False

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--max-prompt-characters", self.prompt_characters, 1),
            ("--max-body-bytes", self.body_bytes, 1024),
            ("--request-memory", self.request_memory, MIB),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{flag} must be at least {least}, not {value}")
        if not 0 < self.client_share <= 1:
            raise ConfigError(
                f"--client-share must be above 0 and at most 1, not {self.client_share}"
            )


@dataclass(frozen=True, slots=True)
class Budgets:
    """What holds; see `BudgetOptions`. json_values: values in one body."""

    prompt_characters: int
    body_bytes: int
    json_values: int
    request_memory: int = REQUEST_MEMORY
    client_share: float = SHARE
    isolates_caches: bool = False

    @classmethod
    def of(cls, options: BudgetOptions, max_model_len: int) -> "Budgets":
        """The wish for a model of such a context, in tokens."""
        characters = options.prompt_characters
        if characters is None:
            characters = max(CHARACTERS_A_TOKEN * max_model_len, LEAST_CHARACTERS)
        body = options.body_bytes
        if body is None:
            body = min(MIB + A_CHARACTER_IN_JSON * characters, MOST_BODY_BYTES)
        return cls(
            characters,
            body,
            max(JSON_VALUES, 2 * max_model_len),
            options.request_memory,
            options.client_share,
            options.isolates_caches,
        )

    @property
    def encoding_memory(self) -> int:
        """Bytes for the texts that are encoded at a time."""
        return 2 * ENCODING_BYTES * self.prompt_characters
