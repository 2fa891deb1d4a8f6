"""An answer of an `AsyncLLM` during which something happens."""

import asyncio

from megainfer import AsyncLLM, SamplingParams
from megainfer.frontend.outputs import RequestOutput


class LongAnswer:
    """`begun` when there are some tokens of it."""

    def __init__(self, llm: AsyncLLM, prompt: list[int], params: SamplingParams) -> None:
        self.begun = asyncio.Event()
        self._outputs = llm.generate(prompt, params)

    async def run(self) -> RequestOutput:
        async for output in self._outputs:
            if len(output.outputs[0].token_ids) > 3:
                self.begun.set()
        return output
