"""`megainfer complete`."""

from typing import Annotated

from typer import Option

from megainfer.commands.client_options import ClientOptions
from megainfer.commands.options import takes_options

EPILOG = """[bold]Examples[/bold]

[cyan]megainfer complete -q "The capital of France is" --max-tokens 8 --temperature 0[/cyan]

[cyan]megainfer complete --url http://host:8000 < prompts.txt[/cyan]"""


@takes_options
def complete(
    client: ClientOptions,
    quick: Annotated[
        str | None, Option("--quick", "-q", help="Complete this alone, and exit.")
    ] = None,
) -> None:
    """Have a running server continue texts as they are.

    No chat template is put around them. From a pipe each line is a text of its own.
    """
    from megainfer.commands.completion_client import CompletionClient
    from megainfer.commands.conversation import converse

    converse(CompletionClient(client.url, client.model, client.api_key, **client.fields()), quick)
