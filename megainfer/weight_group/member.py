"""An instance's place in a trainer's group. No torch: the receiver has that."""

import os

import msgspec

from megainfer.errors import CheckpointError, ConfigError, MegaInferError
from megainfer.helper_process import Helper, HelperDied, HelperProcess
from megainfer.weight_group.wishes import BroadcastWeights, Group, Join, Said

RECEIVE_SECONDS = 600.0
"""How long all tensors together may take."""


class Member:
    """Of the group, from `join` on until `leave`, or until something has failed: where a broadcast
    broke off, nobody knows what comes next. On one event loop."""

    def __init__(self, group: Group) -> None:
        helper = Helper(
            "megainfer.weight_group.receiver",
            (),
            hello=msgspec.json.encode(Join(os.getpid(), group)),
            greeted=_check_joined,
        )
        self.group = group
        self.failed = False
        self._process = HelperProcess(helper, 1, "broadcasts")

    async def join(self) -> None:
        """Returns when all have joined. Raises ConfigError."""
        try:
            await self._process.prepare()
        except MegaInferError as error:
            self.failed = True
            raise ConfigError(f"can't join the group {self.group.name!r}: {error}") from error

    async def receive(self, weights: BroadcastWeights) -> str:
        """Where they are once all have come, until `receive` or `leave` is called the next time.
        Raises CheckpointError; the group is of no use then."""
        self.check()
        try:
            said = _read(await self._process.ask(msgspec.json.encode(weights), RECEIVE_SECONDS))
        except HelperDied as died:
            said = Said(error=str(died))
        except BaseException:
            await self.leave()
            raise
        if said.path is None:
            await self.leave()
            raise CheckpointError(
                f"the broadcast of weights failed: {said.error}; join a group again"
            )
        return said.path

    def check(self) -> None:
        """Raises ConfigError where the group is of no use any more."""
        if self.failed:
            raise ConfigError("the group that was to bring weights has ended; join one again")

    async def leave(self) -> None:
        """Can be called twice."""
        self.failed = True
        await self._process.close()


def _read(frame: bytes) -> Said:
    return msgspec.json.decode(frame, type=Said)


def _check_joined(frame: bytes) -> None:
    if (error := _read(frame).error) is not None:
        raise ConfigError(error)
