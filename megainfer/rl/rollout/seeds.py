"""Seeds of answers, each a function of what it is for."""

from hashlib import blake2b


def seed_of(run: int, purpose: str, number: int) -> int:
    """A seed below 2**63; whoever asks again has it again, so a run can be resumed."""
    text = f"{run}, {purpose}, {number}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1
