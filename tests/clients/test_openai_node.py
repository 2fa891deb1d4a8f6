"""OpenAI's own library for JavaScript, under Node."""

import json

import pytest

from tests.clients.documented import documented
from tests.clients.environment import NodeEnvironment

MORE = """
const model = "my-model", prompt = "Hello", messages = [{ role: "user", content: "Hello world" }];
const ask = (more) => client.chat.completions.create(
  { model, messages, max_tokens: 12, temperature: 0, ...more });
const whole = await ask({ logprobs: true, top_logprobs: 2 });
let streamed = "", usage = null;
for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const several = await ask({ n: 2, temperature: 1, seed: 1 });
const completion = await client.completions.create({ model, prompt, max_tokens: 4, echo: true });
const parameters = {
  type: "object", properties: { warm: { type: "boolean" } }, required: ["warm"],
  additionalProperties: false,
};
const called = await ask({
  max_tokens: 80, tools: [{ type: "function", function: { name: "weather", parameters } }],
  tool_choice: { type: "function", function: { name: "weather" } },
});
const errors = [];
for (const wrong of [{ model: "gpt-4o" }, { temperature: -1 }]) {
  try { await ask(wrong); } catch (error) { errors.push([error.constructor.name, error.param]); }
}
const models = [];
for await (const card of client.models.list()) models.push(card.id);
console.log(JSON.stringify({
  whole: whole.choices[0], streamed, usage, several: several.choices.length,
  completion: completion.choices[0].text, errors, models,
  arguments: JSON.parse(called.choices[0].message.tool_calls[0].function.arguments),
}));
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_library_for_node(served, environments) -> None:
    node = NodeEnvironment(environments, ["openai@^7"])
    script = documented("OpenAI for Node", served.url)
    said = json.loads(node.run(script + MORE).stdout.splitlines()[-1])
    assert said["whole"]["message"]["content"] == said["streamed"]
    assert len(said["whole"]["logprobs"]["content"]) == said["usage"]["completion_tokens"] == 12
    assert said["several"] == 2
    assert said["completion"].startswith("Hello")
    assert isinstance(said["arguments"]["warm"], bool)
    assert said["errors"] == [["NotFoundError", "model"], ["BadRequestError", "temperature"]]
    assert said["models"] == ["my-model"]
