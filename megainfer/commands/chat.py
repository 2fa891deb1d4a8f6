"""`megainfer chat`."""

from typing import Annotated

from typer import Option

from megainfer.commands.client_options import ANSWER, ClientOptions
from megainfer.commands.options import takes_options

EPILOG = """[bold]Examples[/bold]

[cyan]megainfer chat --system "Be brief."[/cyan]

[cyan]megainfer chat -q "What is a mixture of experts?"[/cyan]

[cyan]megainfer chat --url http://host:8000 < questions.txt[/cyan]"""


@takes_options
def chat(
    client: ClientOptions,
    quick: Annotated[
        str | None, Option("--quick", "-q", help="Ask this alone, print the answer and exit.")
    ] = None,
    system: Annotated[str | None, Option(rich_help_panel=ANSWER, help="System prompt.")] = None,
) -> None:
    """Chat with a running server in the terminal.

    From a pipe each line is a message of one conversation.
    """
    from megainfer.commands.chat_client import ChatClient
    from megainfer.commands.conversation import converse

    converse(ChatClient(client.url, client.model, system, client.api_key, **client.fields()), quick)
