"""Problems as token ids."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from megainfer.errors import ConfigError, RequestError
from megainfer.rl.data.problem import Problem
from megainfer.text.chat import Chat
from megainfer.text.template_renderer import TemplateRenderer
from megainfer.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompts:
    """Problems with their token ids. too_long: how many others were left out."""

    problems: Sequence[Problem]
    token_ids: Sequence[tuple[int, ...]]
    too_long: int = 0

    def __len__(self) -> int:
        return len(self.problems)

    def digest(self) -> str:
        """Of all prompts' tokens and all answers, in their order: where it is the same, a run that
        goes on sees what it would have seen."""
        digest = blake2b(digest_size=16)
        for problem, token_ids in zip(self.problems, self.token_ids, strict=True):
            digest.update(
                f"{token_ids} {len(problem.answer)} {problem.answer} ".encode(
                    errors="surrogatepass"
                )
            )
        return digest.hexdigest()


def encode_problems(problems: Sequence[Problem], tokenizer: Tokenizer, most: int) -> Prompts:
    """Texts as they are, chats through the model's template, ready for an answer.

    most: tokens; problems with more are left out. Raises ConfigError, which names the place of a
    problem that can't be encoded, or says that none is left.
    """
    ids = asyncio.run(_encode_all(problems, tokenizer))
    kept = [(p, tuple(i)) for p, i in zip(problems, ids, strict=True) if len(i) <= most]
    if not kept:
        raise ConfigError(
            f"all {len(problems)} problems have more than {most} tokens; raise "
            "--data.max-prompt-tokens"
        )
    return Prompts([p for p, _ in kept], [i for _, i in kept], len(problems) - len(kept))


async def _encode_all(problems: Sequence[Problem], tokenizer: Tokenizer) -> list[list[int]]:
    renderer = TemplateRenderer(tokenizer)
    try:
        return [await _encode(problem, tokenizer, renderer) for problem in problems]
    finally:
        await renderer.close()


async def _encode(problem: Problem, tokenizer: Tokenizer, renderer: TemplateRenderer) -> list[int]:
    try:
        if isinstance(problem.prompt, str):
            ids = tokenizer.encode(problem.prompt)
        else:
            chat = Chat(problem.prompt)
            ids = tokenizer.encode_chat(chat, await renderer.render(chat)).ids
    except RequestError as error:
        raise ConfigError(f"{problem.place}: {error}") from error
    if not ids:
        raise ConfigError(f"{problem.place}: the prompt has no token")
    return ids
