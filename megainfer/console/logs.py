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


def name_logs(name: str) -> None:
    """From now on this process's lines say whose they are: others write to the same output."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(
            logging.Formatter(FORMAT.replace("%(message)s", f"{name}: %(message)s"))
        )
