"""Offline use from a program that runs an asyncio event loop of its own."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from megainfer.frontend.outputs import RequestOutput
from megainfer.llm import LLM
from megainfer.sampling import SamplingParams
from megainfer.text.given_prompts import GivenPrompt
from megainfer.weight_group.wishes import BroadcastWeights, Group

if TYPE_CHECKING:
    from torch import Tensor


class AsyncLLM:
    """`LLM` for asyncio; use it as an asynchronous context manager.

        async with AsyncLLM("path/to/model") as llm:
            async for output in llm.generate("Hello", SamplingParams(max_tokens=32)):
                print(output.outputs[0].text)

    Arguments are those of `LLM`. Any number of requests may run at once. Entering raises what
    making an `LLM` raises; leaving ends what still runs.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self._made = {"model": model, **options}
        self._llm: LLM | None = None

    @property
    def llm(self) -> LLM:
        """The instance, for what isn't asynchronous (its tokenizer, its counters)."""
        if self._llm is None:
            raise RuntimeError("an AsyncLLM is used inside of `async with`")
        return self._llm

    async def __aenter__(self) -> Self:
        self._llm = await asyncio.to_thread(lambda: LLM(**self._made))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.llm.shutdown)

    async def generate(
        self,
        prompt: GivenPrompt,
        sampling_params: SamplingParams | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """What there is of the answer so far, whenever there is more; the last has `finished`.

        Who is slower than the model misses steps in between, not text: each output holds all. A
        task that is cancelled, or an iterator that is closed (`aclosing`), aborts the request.
        Raises RequestError, NodeDied.
        """
        latest = _Latest(asyncio.get_running_loop())
        stream = self.llm.stream(prompt, sampling_params, priority)
        work = asyncio.run_coroutine_threadsafe(latest.follow(stream), self.llm.loop)
        try:
            while (output := await latest.take()) is not None:
                yield output
        finally:
            work.cancel()  # which aborts what still runs

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """`generate` of a conversation, through the model's chat template."""
        ids = await asyncio.to_thread(self.llm.chat_prompt, messages)
        async with aclosing(self.generate(ids, sampling_params, priority)) as outputs:
            async for output in outputs:
                yield output

    async def join_weight_group(self, group: Group) -> None:
        """See `LLM.join_weight_group`."""
        await asyncio.to_thread(self.llm.join_weight_group, group)

    async def leave_weight_group(self) -> None:
        """See `LLM.leave_weight_group`."""
        await asyncio.to_thread(self.llm.leave_weight_group)

    async def update_weights(
        self,
        source: "str | Path | Mapping[str, Tensor] | BroadcastWeights",
        *,
        version: str | None = None,
    ) -> str:
        """See `LLM.update_weights`; requests go on meanwhile."""
        return await asyncio.to_thread(self.llm.update_weights, source, version=version)

    async def pause(self, mode: str = "keep", clear_cache: bool = False) -> None:
        """See `LLM.pause`."""
        await asyncio.to_thread(self.llm.pause, mode, clear_cache)

    async def resume(self) -> None:
        """See `LLM.resume`."""
        await asyncio.to_thread(self.llm.resume)


class _Latest:
    """Hands the newest of what one event loop makes to another, and what ends it."""

    def __init__(self, reader: asyncio.AbstractEventLoop) -> None:
        self._reader = reader
        self._changed = asyncio.Event()
        self._output: RequestOutput | None = None
        self._error: BaseException | None = None
        self._ended = False

    async def follow(self, outputs: AsyncIterator[RequestOutput]) -> None:
        """On the loop that makes them."""
        error: BaseException | None = None
        try:
            async for output in outputs:
                self._reader.call_soon_threadsafe(self._put, output)
        except Exception as failed:  # on another loop: whoever reads has to hear of it
            error = failed
        self._reader.call_soon_threadsafe(self._end, error)

    async def take(self) -> RequestOutput | None:
        """The newest that wasn't taken yet; None at the end."""
        while self._output is None and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        output, self._output = self._output, None
        if output is None and self._error is not None:
            raise self._error
        return output

    def _put(self, output: RequestOutput) -> None:
        self._output = output
        self._changed.set()

    def _end(self, error: BaseException | None) -> None:
        self._error, self._ended = error, True
        self._changed.set()
