"""Conversations of ten turns as Claude Code and Codex have them: each goes on, and each turn begins
with all that the model has seen and said before."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.text.tokenizer import Tokenizer
from tests.support.scripted_agent import BLOCK, TEMPLATE, ScriptedAgent
from tests.support.scripted_server import RunningServer, byte_level_backend, write_tokenizer

TURNS = 10
TEXT = {"type": "string"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("agents")
    return Tokenizer.load(write_tokenizer(folder, byte_level_backend(), chat_template=TEMPLATE))


@pytest.fixture(scope="module")
def server(tokenizer) -> Iterator[RunningServer]:
    with RunningServer(tokenizer, GenerationDefaults((2,)), context=16_384) as server:
        yield server


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


# --- Claude Code ----------------------------------------------------------------------------------

CLAUDE_TOOLS = [
    {
        "name": "Bash",
        "description": "Runs a command.",
        "input_schema": schema(command=TEXT, timeout={"type": "number"}),
    },
    {
        "name": "Read",
        "input_schema": schema(file_path=TEXT),
        "cache_control": {"type": "ephemeral"},
    },
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
]
WORK = {"type": "ephemeral"}


def claude_body(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one request: another billing line in each, and the mark of what to cache on the last."""
    *before, last = messages
    marked = [{**block, "cache_control": WORK} for block in last["content"]]
    nonce = (
        f"cc_version=2.1.197.{secrets.token_hex(2)}; cc_entrypoint=cli; cch={secrets.token_hex(3)};"
    )
    return {
        "model": "tiny",
        "max_tokens": 32_000,
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: {nonce}"},
            {"type": "text", "text": "You are an agent.", "cache_control": WORK},
            {"type": "text", "text": "Be brief.", "cache_control": WORK},
        ],
        "messages": [*before, {**last, "content": marked}],
        "tools": CLAUDE_TOOLS,
        "thinking": {"type": "adaptive"},
        "metadata": {"user_id": json.dumps({"session_id": "s"})},
    }


def test_claude_code_goes_on(server, tokenizer) -> None:
    def call(turn: int, prompt: str) -> tuple[str, Any]:
        if turn % 2:
            return "Read", {"file_path": f"/é{turn}"}
        return "Bash", {"command": f'echo "{turn}"\n', "timeout": turn}

    agent = ScriptedAgent(tokenizer, TURNS, call)
    server.node.script = agent.script
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Ten steps, please."}]},
        {"role": "system", "content": "Agents that there are: none."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "<system-reminder>Hm.</system-reminder>"}],
        },
    ]
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        for turn in range(TURNS + 1):
            with client.messages.stream(**claude_body(messages)) as stream:
                whole = stream.get_final_message()
            thought, said, *uses = whole.content
            assert thought.thinking.startswith(("I need", "That was"))
            assert whole.stop_reason == ("tool_use" if turn < TURNS else "end_turn")
            if turn:
                read = whole.usage.cache_read_input_tokens
                assert read == agent.cached[-1][1] // BLOCK * BLOCK
            messages.append(
                {"role": "assistant", "content": [b.model_dump() for b in whole.content]}
            )
            results = [
                {
                    "type": "tool_result",
                    "tool_use_id": use.id,
                    "content": [{"type": "text", "text": f"result {turn}"}] if turn % 2 else "é",
                    "is_error": turn == 3,
                }
                for use in uses
            ]
            reminder = [{"type": "text", "text": "Mind the tasks."}] if turn == 5 else []
            messages.append({"role": "user", "content": [*results, *reminder]})
    assert said.text == "All done."
    assert len(agent.cached) == TURNS
    assert all(again == seen for again, seen in agent.cached)
    assert "x-anthropic-billing-header" not in agent.prompts[-1]


# --- Codex ----------------------------------------------------------------------------------------

GRAMMAR = 'start: "*** Begin Patch" LF /(.|\\n)*/'
CODEX_TOOLS = [
    {
        "type": "function",
        "name": "exec_command",
        "description": "Runs a command.",
        "strict": False,
        "parameters": schema(cmd=TEXT),
    },
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edits files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR},
    },
    {"type": "local_shell"},
    {
        "type": "namespace",
        "name": "agents",
        "description": "Others.",
        "tools": [{"type": "function", "name": "spawn", "parameters": schema(task=TEXT)}],
    },
    {"type": "web_search", "external_web_access": False},
]
PATCH = '*** Begin Patch\n*** Add File: é\n+"x"\n*** End Patch'
CALLS = (
    ("exec_command", {"cmd": 'ls \\ "a"'}),
    ("apply_patch", {"input": PATCH}),
    ("local_shell", {"command": ["echo", "é"], "timeout_ms": 9}),
    ("agents__spawn", {"task": "look"}),
)


def codex_body(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": "tiny",
        "instructions": "You are a coding agent.",
        "input": items,
        "tools": CODEX_TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "extra_body": {"client_metadata": {"session_id": "s"}},
    }


def said(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def as_codex_keeps_it(item: Any) -> dict[str, Any]:
    """Thoughts in the open aren't sent back, only those that are sealed."""
    kept = item.model_dump(exclude_none=True)
    return {k: v for k, v in kept.items() if not (item.type == "reasoning" and k == "content")}


def output_of(item: Any, turn: int) -> dict[str, Any]:
    kind = "custom_tool_call_output" if item.type == "custom_tool_call" else "function_call_output"
    return {"type": kind, "call_id": item.call_id, "output": f"result {turn}"}


def test_codex_goes_on(server, tokenizer) -> None:
    agent = ScriptedAgent(tokenizer, TURNS, lambda turn, prompt: CALLS[turn % len(CALLS)])
    server.node.script = agent.script
    items = [said("developer", "Ask nobody."), said("user", "<cwd>/</cwd>"), said("user", "Go.")]
    kinds = []
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for turn in range(TURNS + 1):
            events = list(client.responses.create(**codex_body(items), stream=True))
            whole = events[-1].response
            assert events[-1].type == "response.completed"
            done = [event.item for event in events if event.type == "response.output_item.done"]
            assert [item.model_dump() for item in done] == [i.model_dump() for i in whole.output]
            calls = [item for item in whole.output if hasattr(item, "call_id")]
            kinds += [item.type for item in calls]
            if turn:
                read = whole.usage.input_tokens_details.cached_tokens
                assert read == agent.cached[-1][1] // BLOCK * BLOCK
            items += [as_codex_keeps_it(item) for item in whole.output]
            items += [output_of(item, turn) for item in calls]
    assert whole.output_text == "All done."
    each = ["function_call", "custom_tool_call", "local_shell_call", "function_call"]
    assert kinds == [each[turn % len(each)] for turn in range(TURNS)]
    assert len(agent.cached) == TURNS
    assert all(again == seen for again, seen in agent.cached)


def test_codex_has_each_call_in_its_own_words(server, tokenizer) -> None:
    agent = ScriptedAgent(tokenizer, len(CALLS), lambda turn, prompt: CALLS[turn])
    server.node.script = agent.script
    items, calls = [said("user", "Go.")], []
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for turn in range(len(CALLS)):
            made = client.responses.create(**codex_body(items))
            calls += [item for item in made.output if hasattr(item, "call_id")]
            items += [as_codex_keeps_it(item) for item in made.output]
            items.append(output_of(calls[-1], turn))
    run, patch, shell, spawn = calls
    assert (run.name, json.loads(run.arguments)) == CALLS[0]
    assert (patch.name, patch.input) == ("apply_patch", PATCH)
    assert (shell.action.command, shell.action.timeout_ms) == (["echo", "é"], 9)
    assert (spawn.name, spawn.namespace, json.loads(spawn.arguments)) == (
        *("spawn", "agents"),
        {"task": "look"},
    )
    told = agent.prompts[0]
    assert GRAMMAR.partition('"')[0] in told
    assert "web_search" not in told
