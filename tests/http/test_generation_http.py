"""The generation parameters through HTTP, on a real server of two roles, beside transformers."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from megainfer.text.tokenizer import Tokenizer
from tests.support.checkpoints import oracle, write_checkpoint
from tests.support.scripted_server import byte_level_backend, write_tokenizer
from tests.support.served import Served, serving

VOCABULARY = byte_level_backend().get_vocab_size()
TEXT = "The quick brown fox, 😀 how are you?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint("mixtral", "gqa", folder, vocab_size=VOCABULARY)
    return write_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(str(folder), "--ffn-gpus", "2", "--served-model-name", "tiny") as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    url = f"{served.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def complete(client: openai.OpenAI, prompt: Any = TEXT, tokens: int = 12, **more: Any) -> Any:
    names = ("temperature", "seed", "n", "logprobs", "echo", "stop", "stream", "logit_bias")
    names += ("presence_penalty", "frequency_penalty", "stream_options")
    known = {name: more.pop(name) for name in names if name in more}
    return client.completions.create(
        model="tiny",
        prompt=prompt,
        max_tokens=tokens,
        extra_body={"ignore_eos": True, **more},
        **known,
    )


@torch.inference_mode()
def log_softmax(folder: Path, ids: list[int]) -> torch.Tensor:
    """Row i: what the model says of token i + 1."""
    return oracle(folder)(torch.tensor([ids])).logits[0].log_softmax(-1)


def test_echo_and_logprobs_are_those_of_transformers(client, folder, tokenizer):
    answer = complete(client, temperature=0, logprobs=3, echo=True, return_token_ids=True)
    (choice,) = answer.choices
    prompt, output = choice.prompt_token_ids, choice.token_ids
    assert prompt == tokenizer.encode(TEXT)
    assert choice.text == TEXT + tokenizer.decode(output)
    scores, ids = choice.logprobs, prompt + output
    expected = log_softmax(folder, ids)
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    for position in range(1, len(ids)):
        want = expected[position - 1]
        assert scores.token_logprobs[position] == pytest.approx(
            float(want[ids[position]]), abs=2e-4
        )
        best = sorted(scores.top_logprobs[position].values(), reverse=True)[:1]
        assert best == pytest.approx([float(want.max())], abs=2e-4)
    assert len(scores.tokens) == len(scores.text_offset) == len(ids)
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        if "\ufffd" not in token and "<|" not in token:
            assert choice.text.startswith(token, offset)


def test_only_the_prompt_is_scored_with_max_tokens_0(client, tokenizer):
    whole = complete(client, temperature=0, logprobs=1, echo=True)
    answer = complete(client, tokens=0, logprobs=1, echo=True)
    (choice,) = answer.choices
    assert choice.text == TEXT
    assert answer.usage.completion_tokens == 0
    length = len(tokenizer.encode(TEXT))
    assert choice.logprobs.token_logprobs == whole.choices[0].logprobs.token_logprobs[:length]
    ids = complete(client, [5, 6, 7], tokens=0, echo=True).choices[0]
    assert ids.text == tokenizer.decode([5, 6, 7])


@pytest.mark.parametrize("more", [{}, {"logprobs": 2, "echo": True, "n": 2, "seed": 1}])
def test_a_stream_adds_up_to_the_whole(client, more):
    wishes = {"logprobs": 2, "temperature": 0.9, "seed": 7, **more}
    whole = complete(client, **wishes)
    texts: dict[int, str] = {}
    scores: dict[int, dict[str, list[Any]]] = {}
    for part in complete(client, stream=True, **wishes):
        for choice in part.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            for name, entries in choice.logprobs or {}:
                scores.setdefault(choice.index, {}).setdefault(name, []).extend(entries)
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert scores[choice.index] == choice.logprobs.model_dump()


def test_chat_logprobs_whole_and_streamed(client, folder, tokenizer):
    wishes: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0,
        "max_tokens": 10,
        "logprobs": True,
        "top_logprobs": 4,
    }
    extra = {"return_token_ids": True, "ignore_eos": True}
    answer = client.chat.completions.create(**wishes, extra_body=extra)
    (choice,) = answer.choices
    ids = answer.prompt_token_ids + choice.token_ids
    expected = log_softmax(folder, ids)[len(answer.prompt_token_ids) - 1 :]
    content = choice.logprobs.content
    assert len(content) == len(choice.token_ids) == 10
    for entry, token, want in zip(content, choice.token_ids, expected, strict=False):
        assert entry.logprob == pytest.approx(float(want[token]), abs=2e-4)
        got = [top.logprob for top in entry.top_logprobs]
        assert got == pytest.approx(want.topk(4).values.tolist(), abs=2e-4)
        assert entry.top_logprobs[0].token == entry.token
    said = b"".join(bytes(entry.bytes) for entry in content)
    assert said.decode(errors="replace") == tokenizer.decode(choice.token_ids, False)
    chunks = client.chat.completions.create(**wishes, stream=True, extra_body=extra)
    scores = [part.choices[0].logprobs for part in chunks]
    streamed = [entry for score in scores if score is not None for entry in score.content]
    assert streamed == content


def test_prompt_logprobs_in_vllms_form(client, folder, tokenizer):
    choice = complete(client, tokens=1, prompt_logprobs=2).choices[0]
    ids = tokenizer.encode(TEXT)
    first, *rest = choice.prompt_logprobs
    assert first is None
    for token, entry, want in zip(ids[1:], rest, log_softmax(folder, ids), strict=False):
        own = entry[str(token)]
        assert own["logprob"] == pytest.approx(float(want[token]), abs=2e-4)
        assert {e["rank"] for e in entry.values()} >= {1, 2}
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=1,
        extra_body={"prompt_logprobs": 0},
    )
    assert answer.prompt_logprobs[0] is None


CROWD: list[dict[str, Any]] = [
    {"temperature": 1.0, "seed": 11},
    {"temperature": 0.7, "seed": 12, "top_p": 0.8, "presence_penalty": 1.0},
    {"temperature": 1.3, "seed": 13, "min_p": 0.02, "repetition_penalty": 1.3},
    {"temperature": 1.0, "seed": 14, "logit_bias": {"40": 4, "50": -50}, "frequency_penalty": 0.4},
    {"temperature": 0.9, "seed": 15, "top_k": 12, "n": 3},
    {"temperature": 0, "repetition_penalty": 1.2},
    {"temperature": 0, "n": 2},
    {"temperature": 1.1, "seed": 16, "bad_words": ["e", "the"], "min_tokens": 5},
]


def test_seeds_reproduce_alone_and_in_a_crowd(client):
    def texts(number: int) -> list[str]:
        answer = complete(client, f"{TEXT} {number % 8}", 20, **CROWD[number % 8])
        return [choice.text for choice in answer.choices]

    alone = [texts(number) for number in range(8)]
    start = threading.Barrier(16)

    def in_the_crowd(number: int) -> list[str]:
        start.wait(30)
        return texts(number)

    with ThreadPoolExecutor(16) as pool:
        crowded = list(pool.map(in_the_crowd, range(16)))
    assert crowded == alone * 2
    assert alone[6][0] == alone[6][1]
    assert len(set(alone[4])) == 3
    assert "e" not in alone[7][0]


def test_stop_strings_inside_and_across_tokens(client, tokenizer):
    full = complete(client, tokens=40, temperature=0).choices[0].text
    stop = full[7:12]
    where = full.index(stop)
    cut = complete(client, tokens=40, temperature=0, stop=[stop]).choices[0]
    assert (cut.text, cut.finish_reason, cut.stop_reason) == (full[:where], "stop", stop)
    kept = complete(
        client, tokens=40, temperature=0, stop=[stop], include_stop_str_in_output=True
    ).choices[0]
    assert kept.text == full[: where + len(stop)]
    later = complete(client, tokens=40, temperature=0, stop=[stop], min_tokens=39).choices[0]
    assert later.text == full


def test_continuous_usage(client):
    counts = [
        part.usage.completion_tokens
        for part in complete(
            client,
            tokens=5,
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
    ]
    assert counts == [1, 2, 3, 4, 5, 5]


def test_a_message_is_continued(client, tokenizer):
    def prompt_of(messages: list[dict[str, str]], **more: Any) -> str:
        answer = client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=1,
            extra_body={"return_token_ids": True, **more},
        )
        return tokenizer.decode(answer.prompt_token_ids, skip_special_tokens=False)

    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " The quick"}]
    head = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n The quick"
    assert prompt_of(chat, continue_final_message=True) == head
    closed = f"{head}<|im_end|>\n"
    assert prompt_of(chat, add_generation_prompt=False) == closed
    assert prompt_of(chat) == f"{closed}<|im_start|>assistant\n"
    assert prompt_of(chat, truncate_prompt_tokens=1) == "\n"


def test_token_ids_are_streamed_on_request(client, tokenizer):
    parts = list(complete(client, tokens=4, stream=True, temperature=0, return_token_ids=True))
    whole = complete(client, tokens=4, temperature=0, return_token_ids=True).choices[0]
    first, *others = [part.choices[0] for part in parts]
    assert first.prompt_token_ids == whole.prompt_token_ids == tokenizer.encode(TEXT)
    assert not any(hasattr(choice, "prompt_token_ids") for choice in others)
    assert first.token_ids + [i for c in others for i in c.token_ids] == whole.token_ids
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            max_tokens=3,
            stream=True,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
    )
    assert tokenizer.decode(chunks[0].prompt_token_ids, False).startswith("<|im_start|>user\nx")
    assert [len(chunk.choices[0].token_ids) for chunk in chunks[1:]] == [1, 1, 1]


def test_tokens_are_shown_as_ids_on_request(client):
    choice = complete(
        client, logprobs=0, return_token_ids=True, return_tokens_as_token_ids=True
    ).choices[0]
    assert choice.logprobs.tokens == [f"token_id:{token}" for token in choice.token_ids]
