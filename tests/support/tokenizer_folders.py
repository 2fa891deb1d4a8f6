"""Folders whose tokenizer files say random things, as published checkpoints' do."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.support.scripted_server import byte_level_backend, sentencepiece_backend

Json = dict[str, Any]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ image_token }}{{ tools }}"
)
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
SPECIAL = (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<s>", "</s>", "<unk>"])
FLAGS: Json = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)


class FolderMaker:
    """Fills one folder."""

    def __init__(self, random: Random, folder: Path) -> None:
        self._random = random
        self._folder = folder
        kind = random.randrange(2)
        self._backend: Tokenizer = (byte_level_backend, sentencepiece_backend)[kind]()
        self._special = SPECIAL[kind]

    def fill(self) -> None:
        self._tokenizer()
        config = {**self._flags(), **self._named(), **self._lists(), **self._by_id()}
        if self._chance(0.6):
            config["chat_template"] = self._template()
        self._write("tokenizer_config.json", config)
        if self._chance(0.4):
            self._write("special_tokens_map.json", self._older())
        if self._chance(0.2):
            self._write("added_tokens.json", self._added())
        self._templates()

    def _tokenizer(self) -> None:
        backend, special = self._backend, self._special
        if self._chance(0.4):
            ids = [(text, backend.token_to_id(text)) for text in special]
            backend.post_processor = TemplateProcessing(
                single=f"{special[0]} $A {special[1]}" if self._chance(0.3) else f"{special[0]} $A",
                special_tokens=ids,
            )
        if self._chance(0.3):
            backend.add_tokens([AddedToken("<x>", lstrip=self._chance(0.5))])
        if self._chance(0.2):
            backend.add_special_tokens([AddedToken("<y>")])
        backend.save(str(self._folder / "tokenizer.json"))

    def _flags(self) -> Json:
        options: dict[str, Callable[[], Any]] = {
            "add_bos_token": lambda: self._chance(0.5),
            "add_eos_token": lambda: self._chance(0.5),
            "add_prefix_space": lambda: self._chance(0.5),
            "clean_up_tokenization_spaces": lambda: self._chance(0.5),
            "split_special_tokens": lambda: self._chance(0.5),
            "legacy": lambda: self._chance(0.5),
            "model_max_length": lambda: self._random.choice([8, 1e30]),
            "padding_side": lambda: "left",
        }
        return {name: made() for name, made in options.items() if self._chance(0.3)}

    def _named(self) -> Json:
        made: Json = {}
        for name in NAMED:
            if self._chance(0.5):
                text = self._random.choice([*self._special, "<x>", "The", "a"])
                made[name] = self._random.choice([text, self._object(text), None])
        return made

    def _lists(self) -> Json:
        made: Json = {}
        if self._chance(0.3):
            listed = [["<x>"], ["The", "<z>"], [self._object("<y>")]]
            made["additional_special_tokens"] = self._random.choice(listed)
        if self._chance(0.2):
            extra = [{"image_token": "<x>"}, ["<x>", "<y>"]]
            made["extra_special_tokens"] = self._random.choice(extra)
        return made

    def _by_id(self) -> Json:
        entries: Json = {}
        if self._chance(0.3):
            for text in (*self._special, "<x>"):
                if (token := self._backend.token_to_id(text)) is not None:
                    entries[str(token)] = self._entry(text, self._chance(0.7))
        if self._chance(0.2):  # one that tokenizer.json lacks
            entries[str(self._backend.get_vocab_size())] = self._entry("<new>", self._chance(0.5))
        return {"added_tokens_decoder": entries} if entries else {}

    def _older(self) -> Json:
        made: Json = {}
        for name in NAMED:
            if self._chance(0.5):
                text = self._random.choice(self._special)
                made[name] = self._random.choice([text, self._object(text)])
        if self._chance(0.3):
            made["additional_special_tokens"] = ["The"]
        return made

    def _added(self) -> Json:
        if self._chance(0.5):
            return {"<new2>": self._backend.get_vocab_size()}
        return {text: self._backend.token_to_id(text) for text in self._special}

    def _template(self) -> Any:
        names = self._random.choice([("default",), ("default", "tool_use"), ("rag", "default")])
        if names == ("default",):
            return f"{TEMPLATE}1"
        return [{"name": name, "template": TEMPLATE + name} for name in names]

    def _templates(self) -> None:
        if self._chance(0.3):
            (self._folder / "chat_template.jinja").write_text(f"{TEMPLATE}file")
        if self._chance(0.2):
            (self._folder / "additional_chat_templates").mkdir()
            path = self._folder / "additional_chat_templates" / "tool_use.jinja"
            path.write_text(f"{TEMPLATE}folder")

    def _object(self, text: str) -> Json:
        return {"__type": "AddedToken", "content": text, "special": True, **FLAGS}

    def _entry(self, text: str, special: bool) -> Json:
        return {"content": text, "special": special, **FLAGS}

    def _write(self, name: str, content: Json) -> None:
        (self._folder / name).write_text(json.dumps(content))

    def _chance(self, share: float) -> bool:
        return self._random.random() < share
