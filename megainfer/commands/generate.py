"""`megainfer generate`."""

import sys
from dataclasses import replace
from typing import Annotated

from typer import Argument, Option

from megainfer.commands.engine_options import EngineOptions, ModelOption
from megainfer.commands.options import takes_options

EPILOG = """[bold]Examples[/bold]

[cyan]megainfer generate "Why is the sky blue?" "And the sea?"[/cyan]

[cyan]megainfer generate --raw --max-tokens 16 "Once upon a time"[/cyan]"""


@takes_options
def generate(
    engine: EngineOptions,
    prompts: Annotated[list[str], Argument(help="One or more prompts.")],
    model: ModelOption = None,
    max_tokens: Annotated[int, Option(help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, Option(help="Makes sampling repeatable.")] = None,
    as_chat: Annotated[
        bool, Option("--chat/--raw", help="Put each prompt into the chat template.")
    ] = True,
) -> None:
    """Generate answers to prompts offline, without a server."""
    config = engine.config(model)
    from megainfer.llm import LLM

    with LLM.of(config) as llm:
        own = llm.get_default_sampling_params()
        params = replace(own, max_tokens=max_tokens, temperature=temperature, seed=seed)
        wanted: list[str | list[int]] = list(prompts)
        if as_chat:
            wanted = [llm.chat_prompt([{"role": "user", "content": text}]) for text in prompts]
        for result in llm.generate(wanted, params, progress=sys.stdout.isatty()):
            print(result.outputs[0].text.strip())
