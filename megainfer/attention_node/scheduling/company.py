"""Who else is served: beside whom a client's prompts are computed in small pieces."""

from collections.abc import Iterable

LINGER_STEPS = 64
"""For so many steps a client still counts that has nothing here any more."""


class Company:
    """Clients that had something short to compute lately: a next token, or a prompt of few rows.

    One that asks again as soon as it is answered has nothing here for a moment. What is composed in
    that moment is what its next request waits for, so it counts for some steps more.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}  # the last step in which each had something

    def see(self, clients: Iterable[str], step: int) -> None:
        """These have something short while this step is composed."""
        self._seen.update(dict.fromkeys(clients, step))
        self._seen = {c: last for c, last in self._seen.items() if step - last <= LINGER_STEPS}

    def has_others(self, client: str) -> bool:
        """Whether any client but this one counts."""
        return any(other != client for other in self._seen)
