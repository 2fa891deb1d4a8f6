"""Whole numbers as people write them: 4k, 4K, 1M."""

import re

from megainfer.errors import ConfigError

_FACTORS: dict[str, int] = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}


def whole_number(text: str) -> int:
    """A small letter counts in thousands, a capital one in 1024s. Raises ConfigError.

    >>> whole_number("4k"), whole_number("4K"), whole_number("25.6k")
    (4000, 4096, 25600)
    """
    match = re.fullmatch(r"(-?[0-9][0-9_]{0,17})(\.[0-9]{1,12})?([kmgtKMGT]?)", str(text).strip())
    if match is None:
        raise ConfigError(f"a whole number such as 4096, 4k (4000) or 4K (4096), not {text!r}")
    whole, fraction, suffix = match[1], match[2] or "", match[3]
    factor = _FACTORS[suffix]
    if not fraction:
        return int(whole) * factor
    digits = len(fraction) - 1
    scaled = int(whole + fraction[1:]) * factor
    if suffix.isupper() or scaled % 10**digits:
        raise ConfigError(
            f"{text!r} is no whole number; a fraction goes with k, m, g or t only (1.5k is 1500)"
        )
    return int(scaled // 10**digits)
