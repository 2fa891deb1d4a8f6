"""`AsyncLLM`: many requests of one event loop, streams that grow, and those that are given up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from megainfer import AsyncLLM, SamplingParams
from megainfer.errors import ModelError, RequestError
from megainfer.frontend.outputs import RequestOutput
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import write_tokenizer

MAX_LEN = 2048
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=MAX_LEN - 10, ignore_eos=True)
WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"vocab_size": 360, "max_position_embeddings": MAX_LEN}
    return write_tokenizer(
        write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model"), **shape)
    )


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[AsyncLLM]:
    async with asyncio.timeout(4 * WAIT_SECONDS):
        async with AsyncLLM(str(folder), micro_batches=1) as llm:
            yield llm


async def collected(outputs: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
    return [output async for output in outputs]


async def until_idle(llm: AsyncLLM) -> None:
    """Until no request is on its way any more."""
    async with asyncio.timeout(WAIT_SECONDS):
        while llm.llm.engine.outstanding:
            await asyncio.sleep(0.001)


def test_streams_grow_and_end_as_the_offline_answers_do(folder: Path) -> None:
    async def main() -> None:
        async with started(folder) as llm:
            prompts = ["Hello", {"prompt": "Hello world"}, {"prompt_token_ids": [5, 6, 7]}, [9, 9]]
            every = await asyncio.gather(
                *(collected(llm.generate(prompt, PARAMS)) for prompt in prompts)
            )
            whole = await asyncio.to_thread(llm.llm.generate, prompts, PARAMS, use_tqdm=False)
            for outputs, expected in zip(every, whole, strict=True):
                assert outputs[-1].outputs == expected.outputs
                assert [output.finished for output in outputs[:-1]] == [False] * (len(outputs) - 1)
                assert outputs[-1].finished
                texts = [output.outputs[0].text for output in outputs]
                assert all(after.startswith(before) for before, after in pairwise(texts))
                lengths = [len(output.outputs[0].token_ids) for output in outputs]
                assert lengths == sorted(set(lengths))
            assert outputs[0].outputs[0].finish_reason is None
            assert outputs[-1].outputs[0].finish_reason == "length"
            messages = [{"role": "user", "content": "Hi"}]
            chat = await collected(llm.chat(messages, PARAMS))
            (expected,) = await asyncio.to_thread(llm.llm.chat, messages, PARAMS, use_tqdm=False)
            assert chat[-1].outputs == expected.outputs
            both = await asyncio.to_thread(
                llm.llm.chat, [messages, messages], PARAMS, use_tqdm=False
            )
            assert [answer.outputs for answer in both] == [expected.outputs] * 2

            several = SamplingParams(n=3, max_tokens=5, temperature=1, seed=4, ignore_eos=True)
            last = (await collected(llm.generate("Hello", several)))[-1]
            assert [len(answer.token_ids) for answer in last.outputs] == [5, 5, 5]

            with pytest.raises(RequestError, match=r"multi_modal_data isn't served"):
                await collected(llm.generate({"prompt": "x", "multi_modal_data": {"image": 1}}))
            with pytest.raises(RequestError, match="maximum context length"):
                await collected(llm.generate([1] * (MAX_LEN + 1), PARAMS))
            await given_up(llm)

    asyncio.run(main())


async def given_up(llm: AsyncLLM) -> None:
    """By closing the iterator, by cancelling the task, and by leaving the loop."""
    async with aclosing(llm.generate("Hello", LONG)) as outputs:
        async for output in outputs:
            assert not output.finished
            break
    await until_idle(llm)

    seen = asyncio.Event()

    async def read() -> None:
        async for _ in llm.generate("Hello", LONG):
            seen.set()

    reading = asyncio.create_task(read())
    await seen.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until_idle(llm)
    assert (await collected(llm.generate("Hello", PARAMS)))[-1].finished, "it goes on"


def test_what_can_not_be_is_said_on_entering(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncLLM(str(tmp_path)):
            pass

    with pytest.raises(ModelError, match=r"holds no config\.json"):
        asyncio.run(main())
    with pytest.raises(RuntimeError, match="async with"):
        _ = AsyncLLM(str(tmp_path)).llm
