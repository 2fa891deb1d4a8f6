"""What a model folder's tokenizer files say together, against transformers: random folders."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from megainfer.errors import MegaInferError
from megainfer.text.tokenizer import Tokenizer
from tests.support.rendered import rendered_by
from tests.support.scripted_server import SENTENCES
from tests.support.tokenizer_folders import FolderMaker

TEXTS = [
    *SENTENCES,
    "",
    " x",
    "<|im_start|>a <|im_end|> b",
    "abcd <s> a b </s>",
    "The fox <x> jumps <y>",
    "a  b , c ! don't",
]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <b>wörld</b> 😀"},
]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def compare(folder: Path) -> str:
    """Raises AssertionError where they differ; else what came of it."""
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    try:
        ours = Tokenizer.load(folder)
    except MegaInferError:
        return "refused"
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, special) == ids, (text, special)
        ids = theirs.encode(f"{text}<new><new2>")
        for skip in (True, False):
            shown = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip) == shown, (ids, skip)
    for tools in (None, [TOOL]):
        shown = _chat(
            partial(
                theirs.apply_chat_template,
                MESSAGES,
                tools=tools,
                tokenize=False,
                add_generation_prompt=True,
            )
        )
        assert _chat(partial(rendered_by, ours, MESSAGES, tools)) == shown
    return "equal"


def _chat(render: Callable[[], object]) -> str | None:
    """None where there is no template."""
    try:
        return str(render())
    except (MegaInferError, ValueError):
        return None


def compare_all(tmp_path: Path, seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        FolderMaker(Random(seed), folder).fill()
        try:
            seen[compare(folder)] += 1
        except AssertionError as error:
            raise AssertionError(f"folder {seed}: {error}") from error
    return seen


def test_random_folders_mean_what_transformers_says(tmp_path: Path) -> None:
    assert compare_all(tmp_path, range(40))["equal"] >= 38


@pytest.mark.slow
def test_many_random_folders_mean_what_transformers_says(tmp_path: Path) -> None:
    assert compare_all(tmp_path, range(1000, 2000))["equal"] >= 950
