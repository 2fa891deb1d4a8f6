"""The files of a model folder that a GGUF file's tokenizer and templates become."""

import json
from pathlib import Path
from typing import Any

from megainfer.errors import ModelError
from megainfer.gguf.metadata import Metadata
from megainfer.text.gguf.build import build_tokenizer
from megainfer.text.gguf.parts import chat_templates, read_parts


def write_tokenizer(metadata: Metadata, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat templates; nothing of a file without
    a tokenizer. Raises ModelError."""
    parts = read_parts(metadata)
    if parts is None:
        return
    build_tokenizer(parts).save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        f"{role}_token": parts.tokens[token] for role, token in parts.roles.items()
    }
    config["clean_up_tokenization_spaces"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, source in chat_templates(metadata).items():
        _template_file(name, metadata, folder).write_text(source)


def _template_file(name: str, metadata: Metadata, folder: Path) -> Path:
    if name == "default":
        return folder / "chat_template.jinja"
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ModelError(f"{metadata.path} has a chat template called {name!r:.80}")
    others = folder / "additional_chat_templates"
    others.mkdir(exist_ok=True)
    return others / f"{name}.jinja"
