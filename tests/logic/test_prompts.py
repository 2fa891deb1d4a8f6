"""The forms in which prompts are given offline."""

import pytest

from megainfer.errors import RequestError
from megainfer.text.given_prompts import as_prompts


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ["a"]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        (["a", [1, 2]], ["a", [1, 2]]),
        ({"prompt": "a"}, ["a"]),
        ({"prompt_token_ids": [1, 2]}, [[1, 2]]),
        ({"prompt": "a", "prompt_token_ids": None, "multi_modal_data": {}}, ["a"]),
        ({"prompt": "a", "prompt_token_ids": [1]}, [[1]]),
        ([{"prompt": "a"}, {"prompt_token_ids": (1,)}, "b"], ["a", [1], "b"]),
        ([], []),
    ],
)
def test_every_form_is_a_text_or_ids(given: object, prompts: list[object]) -> None:
    found = as_prompts(given)  # type: ignore[arg-type]
    assert [p if isinstance(p, str) else list(p) for p in found] == prompts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "a prompt is a text or a list of token ids, not 7"),
        (["a", 7], "not 7"),
        ({}, "has prompt or prompt_token_ids"),
        ({"text": "a"}, "text isn't served"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, "multi_modal_data isn't served"),
        ({"prompt": {"prompt": "a"}}, "has prompt or prompt_token_ids"),
    ],
)
def test_what_is_no_prompt_is_named(given: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        as_prompts(given)  # type: ignore[arg-type]
