"""What trainers ask of the instance that they sample from: other weights, a pause, its end.

Under the names that reinforcement-learning frameworks already call: SGLang's and vLLM's.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from megainfer.errors import ConfigError, MegaInferError, ModelError, Overloaded, RequestError
from megainfer.launch.new_weights import CopiedWeights, check_version, copied_weights
from megainfer.launch.plan import Plan
from megainfer.messages.from_child import UpdateWeights
from megainfer.messages.pausing import PauseMode, PauseSet, SetPause
from megainfer.messages.to_child import WeightsUpdated
from megainfer.topology import FOLDERS_OWN
from megainfer.weight_group.member import Member
from megainfer.weight_group.wishes import BroadcastWeights, Group
from server.http.errors import ErrorReport
from server.openai.protocol import Body
from server.operate.broadcasts import BroadcastRequest

ANSWER_SECONDS = 3700.0
"""More than the supervisor takes at most to answer."""

PAUSES = {
    "abort": PauseMode.ABORT,
    "wait": PauseMode.WAIT,
    "keep": PauseMode.KEEP,
    "retract": PauseMode.KEEP,
    "in_place": PauseMode.KEEP,
}
"""By vLLM's names and SGLang's. Its `retract` and `in_place` differ in what becomes of the KV cache
when weights change: here contexts are always computed again then."""

Wish = UpdateWeights | SetPause
Told = WeightsUpdated | PauseSet


class DiskRequest(Body):
    """SGLang's. model_path: a folder or a safetensors file. weight_version: the weights' name,
    their number if left out. abort_all_requests: else requests go on with the new weights.
    load_format, is_async, flush_cache and others of its fields change nothing: the prefix cache is
    always emptied."""

    model_path: str
    weight_version: str | None = None
    abort_all_requests: bool = False
    keep_pause: bool = False


class PauseRequest(Body):
    """SGLang's."""

    mode: Literal["abort", "retract", "in_place"] = "abort"


class ContinueRequest(Body):
    """SGLang's, whose fields change nothing here."""


class Rollouts:
    """ask: tells the supervisor. first_ticket: tickets of several API servers differ. plan: of the
    instance; None where there is none to change, as over a scripted node."""

    def __init__(
        self, ask: Callable[[Wish], object], plan: Plan | None, first_ticket: int = 0
    ) -> None:
        self._ask = ask
        self._plan = plan
        self._numbers = itertools.count(first_ticket)
        self._waiting: dict[int, asyncio.Future[Told]] = {}
        self._member: Member | None = None
        self.paused = False
        self.version = FOLDERS_OWN.name

    def hear(self, told: Told) -> None:
        """The supervisor's answer, or how it is."""
        if isinstance(told, PauseSet):
            self.paused = told.paused
        answer = None if told.ticket is None else self._waiting.get(told.ticket)
        if answer is not None and not answer.done():
            answer.set_result(told)

    async def update_from_disk(self, body: DiskRequest) -> str:
        """The name of the weights that all nodes compute with now. Raises MegaInferError saying why
        the old ones serve on."""
        self._existing()
        check_version(body.weight_version)
        if body.abort_all_requests:
            await self.pause("abort")
        try:
            return await self._update(body.model_path, body.weight_version)
        finally:
            if body.abort_all_requests and not body.keep_pause:
                await self.resume()

    async def join(self, group: Group) -> None:
        """Take part in a trainer's group; another one is left. Raises ConfigError."""
        self._existing()
        await self.leave()
        self._member = member = Member(group)
        await member.join()

    async def leave(self) -> None:
        """Nothing happens where there is none."""
        member, self._member = self._member, None
        if member is not None:
            await member.leave()

    async def update_from_group(self, body: BroadcastRequest) -> str:
        """As `update_from_disk`, with what rank 0 of the group broadcasts now."""
        self._existing()
        check_version(body.weight_version)
        weights = BroadcastWeights.of(body.names, body.dtypes, body.shapes)
        member = self._member
        if member is None or member.group.name != body.group_name:
            raise ConfigError(
                f"this API server is in no group {body.group_name!r:.80}: "
                "POST /init_weights_update_group or /init_weight_transfer_engine first"
            )
        if body.abort_all_requests:
            await self.pause("abort")
        try:
            return await self._update(await member.receive(weights), body.weight_version)
        finally:
            if body.abort_all_requests:
                await self.resume()

    async def _update(self, source: str, version: str | None) -> str:
        copying = _Copying(self._existing(), source)
        try:
            weights = await asyncio.to_thread(copying.begin)
            wish = UpdateWeights(next(self._numbers), version, weights.files, weights.quantization)
            updated = await self._told(wish)
        finally:
            await asyncio.to_thread(copying.end)
        assert isinstance(updated, WeightsUpdated)
        return updated.version

    async def pause(self, mode: str, clear_cache: bool = False) -> None:
        """Returns when generation stands still. Raises RequestError."""
        if mode not in PAUSES:
            raise RequestError(f"mode must be one of {', '.join(PAUSES)}, not {mode!r:.40}", "mode")
        clears = clear_cache and PAUSES[mode] is not PauseMode.KEEP
        await self._told(SetPause(next(self._numbers), PAUSES[mode], clears))

    async def resume(self) -> None:
        """Go on; nothing happens where it does so already."""
        await self._told(SetPause(next(self._numbers), None))

    def _existing(self) -> Plan:
        if self._plan is None:
            raise RequestError("there are no nodes here that could do so")
        return self._plan

    async def _told(self, wish: Wish) -> Told:
        self._existing()
        answer: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._waiting[wish.ticket] = answer
        try:
            if self._ask(wish) is False:
                raise Overloaded("the supervisor doesn't listen just now; try again in a moment")
            async with asyncio.timeout(ANSWER_SECONDS):
                told = await answer
        except TimeoutError:
            raise Overloaded(f"it was not over after {ANSWER_SECONDS:g} s") from None
        finally:
            del self._waiting[wish.ticket]
        if told.error is not None:
            raise RequestError(told.error)
        return told


class _Copying:
    """`copied_weights` in two calls, each in whichever thread."""

    def __init__(self, plan: Plan, source: str) -> None:
        self._context = copied_weights(plan, source)
        self._open = False

    def begin(self) -> CopiedWeights:
        weights = self._context.__enter__()
        self._open = True
        return weights

    def end(self) -> None:
        if self._open:
            self._context.__exit__(None, None, None)


def refusal(error: MegaInferError) -> dict[str, Any]:
    """As SGLang says that weights were not changed, and as all other errors are told."""
    told = {"success": False, "message": str(error), "num_paused_requests": 0}
    return {**told, "error": ErrorReport(400, str(error)).fields()}


Refusals = (ConfigError, ModelError, RequestError)
"""Whoever asked can mend it."""


@contextmanager
def refusing() -> Iterator[None]:
    """What whoever asked can mend is answered as such a request is elsewhere."""
    try:
        yield
    except (ConfigError, ModelError) as error:
        raise RequestError(str(error)) from error
