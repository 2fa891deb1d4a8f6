"""Where folders that MegaInfer makes itself are kept."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/megainfer`, or `~/.cache/megainfer`; a relative one doesn't count (XDG)."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "megainfer"
