"""A tiny model with all that clients need: a tokenizer, a chat template that knows tools."""

from pathlib import Path

from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import write_tokenizer

TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }} in <tool_call></tool_call>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 1024


def write_model(folder: Path) -> Path:
    """Its words are random; its end token is that of its tokenizer."""
    write_checkpoint("qwen3_moe", "gqa", folder, vocab_size=400, max_position_embeddings=CONTEXT)
    return write_tokenizer(
        folder, chat_template=TEMPLATE, tokenizer_class="PreTrainedTokenizerFast"
    )
