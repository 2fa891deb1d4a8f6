"""The token with which a model's tokenizer ends a text, without loading the tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from megainfer.errors import ModelError
from megainfer.small_file import MAX_JSON_BYTES, read_small
from megainfer.text.json_file import read_json_object


class _Added(msgspec.Struct):
    id: int
    content: str


class _Fast(msgspec.Struct):
    """Of a tokenizer.json, which is large, only this."""

    added_tokens: list[_Added] = []


def read_end_token(folder: Path) -> int | None:
    """The id of the tokenizer's eos_token; None where it has none that is an added token.

    Where tokenizer_config.json doesn't declare tokens by id, special_tokens_map.json goes before
    it, as in `declared`; either stands in for the other.

    Raises ModelError when a file isn't what it should be.
    """
    config = read_json_object(folder / "tokenizer_config.json")
    said = [config, read_json_object(folder / "special_tokens_map.json")]
    if "added_tokens_decoder" not in config:
        said.reverse()
    text = next((text for file in said if (text := _text_of(file.get("eos_token")))), None)
    if text is None:
        return None
    ids = _read_added(folder / "tokenizer.json") | _declared(config)
    return ids.get(text)


def _text_of(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _declared(config: Mapping[str, Any]) -> dict[str, int]:
    entries = config.get("added_tokens_decoder")
    if not isinstance(entries, dict):
        return {}
    texts = {token: _text_of(entry) for token, entry in entries.items() if token.isdecimal()}
    return {text: int(token) for token, text in texts.items() if text is not None}


def _read_added(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    try:
        found = msgspec.json.decode(read_small(path, MAX_JSON_BYTES), type=_Fast)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} isn't a tokenizer: {error}") from error
    return {token.content: token.id for token in found.added_tokens}
