"""Server-sent events."""

import json
from typing import Any


def events(text: str) -> list[Any]:
    """The data of each event, as JSON; a [DONE] at the end is left out."""
    assert text.endswith("\n\n")
    data = [
        line.removeprefix("data: ")
        for event in text.removesuffix("\n\n").split("\n\n")
        for line in event.split("\n")
        if line.startswith("data: ")
    ]
    return [json.loads(one) for one in (data[:-1] if data[-1] == "[DONE]" else data)]
