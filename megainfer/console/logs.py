"""How log lines look, and which there are."""

import logging
import sys

from megainfer.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s %(levelname)s %(message)s"
LOUD_LIBRARIES = ("asyncio", "httpcore", "httpx", "urllib3")
"""What they do step by step is nobody's question who debugs a server."""


def set_up_logs(level: str) -> None:
    """Lines go to standard output, from this one of LEVELS on, with their time. Raises ConfigError
    for another level."""
    if level not in LEVELS:
        raise ConfigError(f"--log-level must be {', '.join(LEVELS)}, not {level!r}")
    logging.basicConfig(level=level.upper(), format=FORMAT, stream=sys.stdout)
    for name in LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
