"""The options of the commands that talk to a running server."""

from dataclasses import dataclass
from typing import Annotated

from typer import Option

SERVER, ANSWER = "Server", "Answer"


@dataclass(frozen=True)
class ClientOptions:
    """Whom to ask, and how; what isn't given is the server's to choose."""

    url: Annotated[str, Option(rich_help_panel=SERVER, help="Where the server is.")] = (
        "http://127.0.0.1:8000"
    )
    model: Annotated[
        str | None,
        Option(rich_help_panel=SERVER, help="Its name there.", show_default="the first served"),
    ] = None
    api_key: Annotated[
        str | None,
        Option(rich_help_panel=SERVER, envvar="OPENAI_API_KEY", help="Sent as a bearer token."),
    ] = None
    max_tokens: Annotated[
        int | None, Option(rich_help_panel=ANSWER, help="Longest answer, in tokens.")
    ] = None
    temperature: Annotated[float | None, Option(rich_help_panel=ANSWER, help="0 is greedy.")] = None
    top_p: Annotated[
        float | None, Option(rich_help_panel=ANSWER, help="Share of the likeliest tokens.")
    ] = None
    seed: Annotated[
        int | None, Option(rich_help_panel=ANSWER, help="Makes sampling repeatable.")
    ] = None

    def fields(self) -> dict[str, int | float | None]:
        """Of each request."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
