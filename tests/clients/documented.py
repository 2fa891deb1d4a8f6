"""What docs/clients.md tells people to write, so that exactly that is tested."""

import re
import shlex
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
URL = "http://127.0.0.1:8000"
NAME = "my-model"
BLOCK = re.compile(r"```\w+\n(.*?)```", re.DOTALL)


def documented(title: str, server_url: str) -> str:
    """The first block of code under a heading, with the URL of a server that runs."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (section,) = [text for text in sections if text.startswith(f"{title}\n")]
    block = BLOCK.search(section)
    assert block, f"{title} shows no code"
    assert URL in block[1], f"{title} doesn't say where the server is"
    return block[1].replace(URL, server_url)


def run_documented(title: str, server_url: str) -> dict[str, object]:
    """Run that block of Python; the names that it leaves."""
    names: dict[str, object] = {}
    exec(documented(title, server_url), names)
    return names


def documented_command(title: str, server_url: str) -> list[str]:
    """That block as the words of a command."""
    return shlex.split(documented(title, server_url).replace("\\\n", " "))
