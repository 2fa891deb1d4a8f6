"""Prompts of `bench serve`: their lengths, what is kept of a file, and who turns text to tokens."""

import json
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from megainfer.bench.datasets import RandomPrompts, custom, sharegpt
from megainfer.bench.server_facts import ServerInfo
from megainfer.bench.text_codec import ServerCodec
from megainfer.commands.bench.prompt_source import make_samples
from megainfer.commands.bench.serve_options import PromptOptions
from megainfer.errors import ConfigError, MegaInferError, ModelError


class Letters:
    """A token a letter; "ab" is one token, so that random text shrinks when it is read again."""

    ALPHABET = (*"abcdefgh", "ab")

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            piece = "ab" if text.startswith("ab") else text[0]
            ids.append(self.ALPHABET.index(piece))
            text = text[len(piece) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.ALPHABET[token] for token in ids)


def random(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_random_prompts_have_the_lengths_asked_for_and_share_their_prefix() -> None:
    prompts = RandomPrompts(50, input_tokens=20, output_tokens=10, range_ratio=0.25, prefix=6)
    samples = prompts.samples(400, random(), None)
    lengths = {len(sample.prompt) for sample in samples}
    assert lengths == set(range(6 + 15, 6 + 25 + 1))
    assert {sample.output_tokens for sample in samples} == set(range(7, 13 + 1))  # 7.5 to 12.5
    assert all(sample.prompt_tokens == len(sample.prompt) for sample in samples)
    assert len({tuple(sample.prompt[:6]) for sample in samples}) == 1
    assert len({tuple(sample.prompt) for sample in samples}) == 400
    assert {token for sample in samples for token in sample.prompt} == set(range(50))


def test_a_seed_makes_the_same_prompts() -> None:
    prompts = RandomPrompts(50, 8, 8)
    assert prompts.samples(3, random(1), None) == prompts.samples(3, random(1), None)
    assert prompts.samples(3, random(1), None) != prompts.samples(3, random(2), None)


def test_random_text_has_its_number_of_tokens_when_it_is_read() -> None:
    codec = Letters()
    for sample in RandomPrompts(9, 30, 4).samples(20, random(), codec):
        assert isinstance(sample.prompt, str)
        assert len(codec.encode(sample.prompt)) == 30


@pytest.mark.parametrize("wish", [{"range_ratio": 1.0}, {"range_ratio": -0.1}, {"prefix": -1}])
def test_impossible_lengths_are_refused(wish: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--random"):
        RandomPrompts(50, **wish)  # type: ignore[arg-type]


def talk(*turns: str) -> dict[str, object]:
    return {"conversations": [{"from": "x", "value": turn} for turn in turns]}


def test_sharegpt_keeps_questions_of_a_sensible_length(tmp_path: Path) -> None:
    path = tmp_path / "talks.json"
    talks = [
        talk("cdefg", "hgfed"),
        talk("cde", "too short a question"),
        talk("c" * 1025, "hgfed"),
        talk("cdefgh", "h" * 2045),
        talk("cdefgh", "hg"),
        talk("alone"),
        {"id": 1},
    ]
    path.write_text(json.dumps(talks).replace("too short a question", "hhhhh"))
    (sample,) = sharegpt(path, 1, random(), Letters(), None)
    assert (sample.prompt, sample.prompt_tokens, sample.output_tokens) == ("cdefg", 5, 5)
    assert sharegpt(path, 3, random(), Letters(), None) == [sample] * 3
    told = sharegpt(path, 9, random(), Letters(), 7)
    assert {s.prompt for s in told} == {"cdefg", "cdefgh"}
    assert {s.output_tokens for s in told} == {7}


def test_a_file_of_ones_own_is_asked_in_order(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "abc"}\n\n{"prompt": "d", "output_tokens": 2}\n')
    samples = custom(path, 3, 9, Letters())
    assert [(s.prompt, s.prompt_tokens, s.output_tokens) for s in samples] == [
        ("abc", 2, 9),
        ("d", 1, 2),
        ("abc", 2, 9),
    ]


@pytest.mark.parametrize("line", ["{", '{"text": "a"}', '{"prompt": 3}', "[1]", "null"])
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "abc"}\n' + line)
    with pytest.raises(ConfigError, match=r"own\.jsonl, line 2: needs an object"):
        custom(path, 3, 9)


def test_one_answer_length_for_all_goes_before_a_lines_own(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one", "output_tokens": 100}\n{"prompt": "two"}\n')
    for length, expected in ((8, [8, 8]), (None, [100, 256])):
        wish = PromptOptions(dataset_name="custom", dataset_path=file, output_len=length)
        samples = make_samples(wish, 2, random(), None, None, as_text=False)
        assert [sample.output_tokens for sample in samples] == expected


@pytest.mark.parametrize("wish", [{"input_len": 0}, {"output_len": 0}, {"output_len": -1}])
@pytest.mark.parametrize("dataset", ["random", "custom", "sharegpt"])
def test_a_length_of_nothing_is_not_the_default(wish: dict[str, int], dataset: str) -> None:
    prompts = PromptOptions(dataset_name=dataset, **wish)  # type: ignore[arg-type]
    flag = f"--{next(iter(wish)).replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"{flag} must be at least 1, not "):
        make_samples(prompts, 1, random(), None, None, as_text=False)


def test_files_that_are_missing_or_empty_are_named(tmp_path: Path) -> None:
    with pytest.raises(MegaInferError, match=r"--dataset-path .* can't be read"):
        custom(tmp_path / "none", 1, 1)
    empty = tmp_path / "empty"
    empty.write_text("[]")
    with pytest.raises(ConfigError, match="has no prompt"):
        sharegpt(empty, 1, random(), Letters(), None)


def test_the_server_is_asked_for_tokens_and_text() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert body["model"] == "tiny"
        if request.url.path == "/tokenize":
            assert body["add_special_tokens"] is False
            return httpx.Response(200, json={"tokens": [len(body["prompt"])]})
        if request.url.path == "/detokenize" and body["tokens"] == [7]:
            return httpx.Response(200, json={"prompt": "seven"})
        return httpx.Response(404)

    http = httpx.Client(transport=httpx.MockTransport(serve), base_url="http://x")
    codec = ServerCodec(http, "tiny")
    assert codec.encode("hello") == [5]
    assert codec.decode([7]) == "seven"
    with pytest.raises(ModelError, match=r"/detokenize answers 404; .* --tokenizer"):
        codec.decode([8])


@pytest.mark.parametrize(
    ("document", "info"),
    [
        ({"config": {"attn_gpus": 2, "ffn_gpus": 3}, "plan": {"vocab_size": 9}}, (5, None, 9)),
        ({"config": {"attn_gpus": 2, "ffn_gpus": 3}, "plan": {"kernels": "cpu"}}, (None, 5, None)),
        ({"config": {"attn_gpus": 1, "ffn_gpus": 1, "colocated": True}}, (1, None, None)),
        ({"vllm_config": "text"}, (None, None, None)),
        ({"config": {"attn_gpus": True, "ffn_gpus": "3"}, "plan": []}, (None, None, None)),
        ([1], (None, None, None)),
    ],
)
def test_what_a_server_tells_of_itself(
    document: object, info: tuple[int | None, int | None, int | None]
) -> None:
    assert ServerInfo.read(document) == ServerInfo(*info)
