"""Claude Code and Codex themselves, over a model that calls their shell ten times."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.text.tokenizer import Tokenizer
from tests.clients.documented import NAME, documented, documented_command
from tests.clients.environment import NodeEnvironment
from tests.support.scripted_agent import TEMPLATE, ScriptedAgent
from tests.support.scripted_server import RunningServer, byte_level_backend, write_tokenizer

TURNS = 10
CONTEXT = 200_000  # characters, nearly: the tokenizer is small, and their prompts aren't
CLAUDE_CODE, CODEX = "@anthropic-ai/claude-code@2", "@openai/codex@0"
SHELLS: dict[str, Callable[[str], Any]] = {
    "Bash": lambda command: {"command": command, "description": "Says it"},
    "exec_command": lambda command: {"cmd": command},
    "shell_command": lambda command: {"command": command},
    "shell": lambda command: {"command": ["bash", "-lc", command]},
}


def call(turn: int, prompt: str) -> tuple[str, Any]:
    """A command, for the shell that the prompt tells of."""
    name = next(name for name in SHELLS if f'"name": "{name}"' in prompt)
    return name, SHELLS[name](f"echo said-{turn}")


def has_shell(prompt: str) -> bool:
    return any(f'"name": "{name}"' in prompt for name in SHELLS)


@contextmanager
def working(folder: Path) -> Iterator[tuple[RunningServer, ScriptedAgent]]:
    files = write_tokenizer(folder, byte_level_backend(), chat_template=TEMPLATE)
    tokenizer = Tokenizer.load(files)
    ends = GenerationDefaults((2,))
    with RunningServer(tokenizer, ends, context=CONTEXT, names=(NAME,)) as server:
        agent = ScriptedAgent(tokenizer, TURNS, call, has_shell)
        server.node.script = agent.script
        yield server, agent


def check(agent: ScriptedAgent, output: str) -> None:
    assert "All done." in output
    results = re.findall(r"<\|im_start\|>tool\n(.*?)<\|im_end\|>", agent.prompts[-1], re.DOTALL)
    assert [re.findall(r"said-\d+", text) for text in results] == [
        [f"said-{turn}"] for turn in range(TURNS)
    ]
    assert len(agent.cached) == TURNS
    assert all(again == seen for again, seen in agent.cached), agent.cached


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_claude_code(environments: Path, tmp_path: Path) -> None:
    node = NodeEnvironment(environments, [CLAUDE_CODE])
    with working(tmp_path) as (server, agent):
        (tmp_path / "work").mkdir()
        words = documented_command("Claude Code", server.url)
        told = dict(word.split("=", 1) for word in words if "=" in word)
        home = {"HOME": str(tmp_path), "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
        env = {**told, **home}
        options = words[words.index("claude") + 1 :]
        args = ("-p", "Count with echo.", "--allowedTools", "Bash", *options)
        done = node.run_program(".bin/claude", *args, cwd=tmp_path / "work", env=env)
    check(agent, done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_codex(environments: Path, tmp_path: Path) -> None:
    node = NodeEnvironment(environments, [CODEX])
    with working(tmp_path) as (server, agent):
        (tmp_path / "work").mkdir()
        (tmp_path / "config.toml").write_text(documented("Codex", server.url))
        free = ("--dangerously-bypass-approvals-and-sandbox", "--skip-git-repo-check")
        env = {"HOME": str(tmp_path), "CODEX_HOME": str(tmp_path)}
        args = ("exec", *free, "Count with echo.")
        done = node.run_program(".bin/codex", *args, cwd=tmp_path / "work", env=env)
    check(agent, done.stdout)
