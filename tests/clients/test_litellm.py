"""litellm, in an environment of its own: it wants an older openai than we test with."""

import json
from pathlib import Path

import pytest

from tests.clients.documented import documented

REQUIREMENTS = ["litellm>=1.80,<2", "mcp>=2,<3"]  # without mcp it fails at a call of a tool
MORE = """
import asyncio, json, litellm
def ask(call=litellm.completion, **more):
    return call(model="openai/my-model", api_base=base, api_key="none", num_retries=0,
                **{"messages": [{"role": "user", "content": "Hello world"}], "max_tokens": 12,
                   "temperature": 0, **more})
whole = ask()
parts = list(ask(stream=True, stream_options={"include_usage": True}))
streamed = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
text = litellm.text_completion(model="text-completion-openai/my-model", api_base=base,
                               api_key="none", prompt="Hello", max_tokens=4)
parameters = {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"],
              "additionalProperties": False}
tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
named = {"type": "function", "function": {"name": "weather"}}
called = ask(tools=[tool], tool_choice=named, max_tokens=80)
try:
    ask(temperature=-1)
except litellm.BadRequestError as error:
    refused = str(error)
later = asyncio.run(ask(litellm.acompletion))
print(json.dumps({
    "whole": whole.choices[0].message.content, "streamed": streamed,
    "later": later.choices[0].message.content, "tokens": whole.usage.completion_tokens,
    "text": text.choices[0].text, "refused": refused,
    "arguments": json.loads(called.choices[0].message.tool_calls[0].function.arguments),
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_litellm(served, python_environment, tmp_path: Path) -> None:
    script = documented("LiteLLM", served.url) + f"\nbase = {served.url + '/v1'!r}\n" + MORE
    (tmp_path / "script.py").write_text(script)
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it asks the network for prices
    done = python_environment.run("python", "script.py", cwd=tmp_path, env=local)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["whole"] == said["streamed"] == said["later"]
    assert said["tokens"] == 12
    assert said["text"]
    assert "temperature" in said["refused"]
    assert isinstance(said["arguments"]["warm"], bool)
