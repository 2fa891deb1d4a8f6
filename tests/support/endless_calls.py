"""Texts that a model, or a client by a grammar, can make it go on with without end: what reads them
again with each token takes longer and longer."""

ENDLESS: tuple[tuple[str, str, str], ...] = (
    ("hermes", "<tool_call>", "{ \n"),
    ("hermes", '<tool_call>{"name": "f", "arguments": ', '{"": "</tool_call>'),
    ("openai", "<|channel|>analysis to=", "x"),
    ("openai", "", "<|channel|>"),
    ("qwen3_coder", "<function=f><parameter=x>", "</parameter>"),
    ("glm45", "<tool_call>f<arg_key>", "x<"),
    ("deepseek_v31", "<｜tool▁call▁begin｜>", "f "),
    ("pythonic", "[f(x=", "'"),
    ("llama3_json", "", '\n{"name": '),
)
"""A notation, how a text begins, and what is repeated after it."""
