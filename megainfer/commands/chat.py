"""`megainfer chat`."""

from typing import Annotated

from typer import Option


def chat(
    url: Annotated[str, Option(help="Where the server is.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, Option(help="Served name; the first if left out.")] = None,
    system: Annotated[str | None, Option(help="System prompt.")] = None,
    max_tokens: Annotated[int | None, Option(help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, Option(help="0 is greedy.")] = None,
) -> None:
    """Chat with a running server in the terminal."""
    from megainfer.commands.conversation import run_chat

    run_chat(url, model, system, temperature=temperature, max_tokens=max_tokens)
