"""The files of weights that were brought in while it served: held open, so that they stay."""

import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack

from megainfer.errors import ConfigError
from megainfer.messages.weights import WeightFiles
from megainfer.models.quantization import QuantizationSpec
from megainfer.topology import WeightVersion


class WeightVault:
    """By version; whoever has brought them may close and forget them."""

    def __init__(self) -> None:
        self._held: dict[int, ExitStack] = {}

    def take(
        self,
        version: WeightVersion,
        files: Sequence[str],
        quantization: QuantizationSpec | None,
    ) -> WeightFiles:
        """Hold these files; the paths in what is returned are for nodes to open.

        Raises ConfigError where one can't be opened.
        """
        own: list[str] = []
        with ExitStack() as stack:
            for path in files:
                try:
                    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise ConfigError(f"{path} can't be opened: {error.strerror}") from error
                stack.callback(os.close, file)
                own.append(f"/proc/{os.getpid()}/fd/{file}")
            self._held[version.number] = stack.pop_all()
        return WeightFiles(version, tuple(own), quantization)

    def keep(self, numbers: Collection[int]) -> None:
        """Only these versions are needed any more."""
        for number in self._held.keys() - set(numbers):
            self._held.pop(number).close()

    def close(self) -> None:
        """Hold none; in a child too, which would keep old ones alive."""
        self.keep(())
