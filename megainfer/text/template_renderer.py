"""Chats to texts by the model's own templates, in a process that may die of them."""

import json

from megainfer.errors import RequestError
from megainfer.helper_process import Helper, HelperDied, HelperProcess
from megainfer.sharing.rests import Rests
from megainfer.text.chat import Chat
from megainfer.text.template_worker import TEXT
from megainfer.text.tokenizer import Tokenizer

CPU_SECONDS = 2.0
"""For one chat; usual ones take a thousandth."""
RENDER_SECONDS = 20.0
"""For the same, on the clock: a machine may have others to serve."""
MAX_WAITING = 1024
"""Of all clients; of one half of what others leave."""


class TemplateRenderer:
    """Renders one chat at a time, by turns of clients; the process starts with the first, or with
    `prepare`.

    cpu_seconds: what one chat may take. rests: of whose chats take long.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        cpu_seconds: float = CPU_SECONDS,
        rests: Rests | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        templates = {
            name: (template.source, template.special_tokens)
            for name, template in tokenizer.chat_templates.items()
        }
        hello = json.dumps(templates).encode()
        helper = Helper("megainfer.text.template_worker", [str(cpu_seconds)], hello)
        self._helper = HelperProcess(helper, MAX_WAITING, "chats", rests)

    async def prepare(self) -> None:
        """Start the process if there are templates."""
        if self._tokenizer.chat_templates:
            await self._helper.prepare()

    async def render(self, chat: Chat, client: str = "") -> str | None:
        """The chat's text, for `Tokenizer.encode_chat`; None where it has none before that. Who is
        cancelled while it waits isn't rendered any more.

        Raises RequestError when the model has no template, or it refuses, fails or costs too much;
        Overloaded when too many wait.
        """
        if not self._tokenizer.has_templates:
            return None
        name = self._tokenizer.template_name(chat)
        arguments = (chat.messages, chat.tools, chat.opens_an_answer, chat.variables)
        try:
            question = json.dumps((name, arguments)).encode()
            told = await self._helper.ask(question, RENDER_SECONDS, client)
        except (TypeError, ValueError) as error:  # what a program gave, where clients send JSON
            raise RequestError(f"a chat is made of JSON values: {error}", "messages") from error
        except HelperDied as error:
            message = f"the model's chat template takes too much time or memory: {error}"
            raise RequestError(message, "messages") from error
        text = told[1:].decode("utf-8", "surrogatepass")
        if told[:1] == TEXT:
            return text
        param, _, reason = text.partition("\0")
        raise RequestError(reason, param or None)

    async def close(self) -> None:
        """End the process."""
        await self._helper.close()
