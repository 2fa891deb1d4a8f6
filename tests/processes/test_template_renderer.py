"""Templates are another's program: they run in a process of their own, within bounds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from megainfer.errors import Overloaded, RequestError
from megainfer.text.chat import Chat
from megainfer.text.chat_template import ChatTemplate
from megainfer.text.template_renderer import TemplateRenderer
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from tests.support.rendered import rendered_by
from tests.support.scripted_server import CHAT_TEMPLATE, byte_level_backend
from tests.support.template_bombs import BOMBS, QUICK

BACKEND = byte_level_backend()
CHAT = Chat([{"role": "user", "content": "The fox \ud800 \x00 ü"}])
SHORT = 0.5  # CPU seconds
AT_WORK = ("nested loops", "doubling by ~", "lipsum")
"""Those that cost nothing until they run."""


def tokenizer_with(source: str, **others: str) -> Tokenizer:
    sources = {"default": source, **others}
    templates = {name: ChatTemplate(text, {"eos": "!"}) for name, text in sources.items()}
    return Tokenizer(FastBackend(BACKEND), templates)


@asynccontextmanager
async def renderer(tokenizer: Tokenizer, **options: float) -> AsyncIterator[TemplateRenderer]:
    made = TemplateRenderer(tokenizer, **options)
    try:
        yield made
    finally:
        await made.close()


def rendered(tokenizer: Tokenizer, *chats: Chat, **options: float) -> list[str | BaseException]:
    async def run() -> list[str | BaseException]:
        async with renderer(tokenizer, **options) as made:
            return await asyncio.gather(*map(made.render, chats), return_exceptions=True)

    return asyncio.run(run())


def test_it_gives_what_the_template_makes():
    tokenizer = tokenizer_with(CHAT_TEMPLATE + "{{ eos }}{{ big }}", tool_use="{{ tools[0].name }}")
    chats = [
        CHAT,
        Chat(CHAT.messages, variables={"big": 2**99, "eos": "?"}, opens_an_answer=False),
        Chat(CHAT.messages, [{"name": "f"}]),
    ]
    expected = [
        rendered_by(tokenizer, c.messages, c.tools, c.opens_an_answer, c.variables) for c in chats
    ]
    assert rendered(tokenizer, *chats) == expected
    assert expected[2] == "f"


def test_its_errors_are_the_templates():
    tokenizer = tokenizer_with("{{ raise_exception('roles must alternate') }}")
    taken = Chat(CHAT.messages, variables={"messages": []})
    refused, reserved = rendered(tokenizer, CHAT, taken)
    assert "roles must alternate" in str(refused)
    assert [e.param for e in (refused, reserved)] == ["messages", "chat_template_kwargs"]
    (missing,) = rendered(Tokenizer(FastBackend(BACKEND), {}), CHAT)
    assert "no chat template" in str(missing)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in BOMBS]
)
def test_a_bomb_ends_itself_and_nobody_else(name):
    """The event loop goes on, and whoever comes next is served: by a new process, if need be."""
    tokenizer = tokenizer_with("{% if messages[0].role == 'bomb' %}" + BOMBS[name] + "{% endif %}")
    bomb = Chat([{"role": "bomb", "content": ""}])

    async def run() -> tuple[object, object]:
        async with renderer(tokenizer, cpu_seconds=SHORT) as made:
            first = asyncio.create_task(made.render(bomb))
            second = asyncio.create_task(made.render(CHAT))
            (outcome,) = await asyncio.gather(first, return_exceptions=True)
            return outcome, (await asyncio.gather(second, return_exceptions=True))[0]

    outcome, next_one = asyncio.run(run())
    assert isinstance(outcome, str | RequestError), outcome
    if name in QUICK:
        assert isinstance(outcome, RequestError)
    # Where constants are computed when it is compiled, or that fails, it is nobody's template.
    assert next_one == "" or (name not in AT_WORK and isinstance(next_one, RequestError))


def test_who_leaves_costs_the_others_no_process():
    tokenizer = tokenizer_with(CHAT_TEMPLATE)

    async def run() -> tuple[int, int]:
        async with renderer(tokenizer) as made:
            await made.prepare()
            process = made._helper._process
            leaving = asyncio.create_task(made.render(CHAT))
            await asyncio.sleep(0)
            leaving.cancel()
            assert await made.render(CHAT) == rendered_by(tokenizer, CHAT.messages)
            return process.pid, made._helper._process.pid

    before, after = asyncio.run(run())
    assert before == after


def test_too_many_wait(monkeypatch):
    monkeypatch.setattr("megainfer.text.template_renderer.MAX_WAITING", 4)
    outcomes = rendered(tokenizer_with("x"), *[CHAT] * 4)
    assert outcomes[:3] == ["x", "x", "x"]  # one at a time, and of one client half may wait
    assert isinstance(outcomes[3], Overloaded)


def test_clients_take_turns():
    """Who has brought many chats doesn't have another one wait for all of them."""

    async def run() -> list[str]:
        order: list[str] = []
        async with renderer(tokenizer_with(CHAT_TEMPLATE)) as made:

            async def render(client: str) -> None:
                await made.render(CHAT, client)
                order.append(client)

            await asyncio.gather(*map(render, ["many"] * 50 + ["one"]))
        return order

    assert asyncio.run(run()).index("one") <= 2


def test_a_chat_that_nobody_waits_for_is_not_rendered():
    tokenizer = tokenizer_with(CHAT_TEMPLATE)

    async def run() -> tuple[bool, bool]:
        async with renderer(tokenizer) as made:
            begun = made._helper.put(b"{", 60.0, "first")
            while not begun.begun:
                await asyncio.sleep(0)
            waiting = made._helper.put(b"{", 60.0, "second")
            leaving = asyncio.create_task(made.render(CHAT, "third"))
            await asyncio.sleep(0)
            for leave in (begun.withdraw, waiting.withdraw, leaving.cancel):
                leave()
            await asyncio.gather(waiting.answer, leaving, return_exceptions=True)
            assert not begun.answer.done(), "what has begun is brought to its end"
            await asyncio.gather(begun.answer, return_exceptions=True)
            await asyncio.sleep(0)
            return begun.answer.cancelled(), bool(made._helper._asking)

    assert asyncio.run(run()) == (False, False)
