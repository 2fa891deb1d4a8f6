"""The header in which a command sends its key."""

from megainfer.errors import ConfigError


def bearer(flag: str, key: str | None) -> dict[str, str]:
    """No header without a key. Raises ConfigError, which names the flag and doesn't show the key,
    where it can't travel in a header."""
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{flag}: a key must be visible ASCII characters, as keys of servers are; this one has "
            "others, perhaps a line end"
        )
    return {"Authorization": f"Bearer {key}"}
