"""A grammar that needs a deep stack is refused before a node compiles it, whose death that were."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scripted_server import WAIT_SECONDS, write_tokenizer

TRIED = """
import asyncio, select, sys
from pathlib import Path
from megainfer.attention_node.compiling import Compiling
from megainfer.errors import RequestError
from megainfer.messages.requests import Submit
from megainfer.structured import grammar as grammars
from megainfer.structured.checker import GrammarChecker
from megainfer.structured.compiler import GrammarCompiler

folder = Path(sys.argv[1])

def chain(links):
    defs = {
        f"{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{i + 1}"}}}
        for i in range(links)
    }
    schema = {"$defs": {**defs, f"{links}": True}, "$ref": "#/$defs/0"}
    return grammars.json_schema(schema, "schema")

async def checked(links):
    checker = GrammarChecker(folder, 400, [2])
    try:
        await checker.check(chain(links), "schema")
    except RequestError as error:
        return str(error)
    finally:
        await checker.close()

def compiled(links):
    compiling = Compiling(lambda: GrammarCompiler(folder, 400, [2], memory=2**24))
    compiling.start(Submit("r", [1], 1.0, 1.0, -1, 1, 1, [], grammar=chain(links)), 0.0)
    select.select([compiling], [], [])
    (done,) = compiling.finished()
    compiling.close()
    return type(done.outcome).__name__

print(asyncio.run(checked(1500)))
print(asyncio.run(checked(600)), compiled(1200))
"""


@pytest.mark.parametrize("stack", [resource.RLIM_INFINITY, 8 * 2**20], ids=["unlimited", "8 MiB"])
def test_what_is_admitted_has_room_on_a_nodes_stack(tmp_path: Path, stack: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if hard != resource.RLIM_INFINITY:  # then no node here can have more, either
        stack = hard if stack == resource.RLIM_INFINITY else min(stack, hard)
    done = subprocess.run(
        [sys.executable, "-c", TRIED, str(write_tokenizer(tmp_path))],
        capture_output=True,
        text=True,
        timeout=6 * WAIT_SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (stack, hard)),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "schema: compiling this json_schema takes too much time or memory; simplify it",
        "None TokenMatcher",
    ]
