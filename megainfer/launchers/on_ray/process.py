"""The process of Ray's driver, started from the supervisor's, which has nothing of Ray in it: Ray's
threads and forked nodes don't mix."""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import IO

import msgspec

from megainfer.errors import ConfigError
from megainfer.launchers.on_ray.wish import RayStart, RayWish
from megainfer.launchers.process import LauncherProcess

DRIVER = "megainfer.launchers.on_ray.driver"


def check_ray() -> None:
    """Raises ConfigError where Ray isn't installed."""
    if find_spec("ray") is None:
        raise ConfigError(
            "--launcher ray needs Ray, the same version as the cluster's: pip install "
            "'megainfer[ray]'"
        )


class RayProcess(LauncherProcess):
    """In a session of its own: the terminal's Ctrl-C is for the supervisor."""

    def __init__(self, wish: RayWish) -> None:
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", DRIVER, str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[writer],
                start_new_session=True,
            )
        finally:
            os.close(writer)
        name = f"the driver of Ray (--ray-address {wish.address})"
        super().__init__(name, self._process.pid, reader)
        self._tell(wish)

    def start(self, start: RayStart) -> None:
        """From now on agents join."""
        self._tell(start)

    def close(self) -> None:
        super().close()
        self._stdin.close()

    def _tell(self, what: msgspec.Struct) -> None:
        """Few bytes, which the pipe has room for."""
        try:
            self._stdin.write(msgspec.json.encode(what) + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            pass  # `check` tells why it has ended

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None, "it is a pipe"
        return self._process.stdin
