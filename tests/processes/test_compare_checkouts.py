"""The comparison of two checkouts' answers; packages that only look like ours stand in for them."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

from compare_checkouts import TOPOLOGIES, Comparison, NoAnswers, Row  # noqa: E402
from comparison.differences import Difference, differences  # noqa: E402
from comparison.fixed_requests import FixedRequest, fixed_requests  # noqa: E402

# Answers each request by two tokens and its settings; SHIFT is added to one log-probability.
PACKAGE = """
import math
from types import SimpleNamespace as Namespace

class SamplingParams(Namespace):
    pass

class LLM:
    def __init__(self, model, **options):
        self.colocated = "colocated" in options
        self.passes = 0
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass
    def generate(self, prompts, params, progress):
        self.passes += 1
        return [self.answer(*each) for each in zip(prompts, params, strict=True)]
    def answer(self, prompt, params):
        shift = SHIFT if self.passes == 2 and prompt[0] == 5 and not self.colocated else 0
        row = {prompt[0]: Namespace(logprob=-0.1 - shift, rank=1)}
        last = {params.best: Namespace(logprob=-math.inf, rank=7)}
        scored = Namespace(
            token_ids=[prompt[0], params.best],
            finish_reason="length",
            stop_reason=None,
            logprobs=[row, last],
            cumulative_logprob=-0.1,
        )
        return Namespace(outputs=[scored], prompt_logprobs=[None, row])
"""
REQUESTS = [
    FixedRequest("short", [4], {"best": 9, "logit_bias": {3: 1.0}}),
    FixedRequest("long", [5, 6], {"best": 8}),
]
APART, _, COLOCATED = TOPOLOGIES


def checkout(folder: Path, shift: str) -> Path:
    (folder / "megainfer").mkdir(parents=True)
    (folder / "megainfer" / "__init__.py").write_text(PACKAGE.replace("SHIFT", shift))
    return folder


def compared(folder: Path, shift: str, topology: str = APART) -> Row:
    old, new = checkout(folder / "old", "0"), checkout(folder / "new", shift)
    return Comparison(old, new, sys.executable, 60, REQUESTS).row(Path("family"), topology)


def test_equal_answers_are_counted(tmp_path: Path) -> None:
    assert compared(tmp_path, "0") == Row(
        "family", APART, requests=4, tokens=8, logprobs=12, differences=0, first=None
    )


def test_one_bit_is_found_and_named(tmp_path: Path) -> None:
    """In the second pass only; the log-probability stands in two places of the answer."""
    row = compared(tmp_path, "math.ulp(0.1)")
    assert row.differences == 2
    old, new = (-0.1).hex(), (-0.1 - 2**-56).hex()
    place = "pass 2, request 1 (long), logprobs[0][0][0][1]"
    assert row.first == f"{place}: {old!r} became {new!r}"


def test_topologies_differ_in_what_they_run(tmp_path: Path) -> None:
    assert compared(tmp_path, "math.ulp(0.1)", COLOCATED).differences == 0


def test_answers_that_cannot_be_compared_are_refused(tmp_path: Path, capfd) -> None:
    with pytest.raises(NoAnswers, match=r"new, family, 1 x 1"):
        compared(tmp_path, "math.nan")
    assert "a log-probability is NaN" in capfd.readouterr().err


def test_another_package_than_the_checkouts_is_refused(tmp_path: Path, capfd) -> None:
    """A folder without the package leaves the installed one to be imported."""
    empty = Comparison(tmp_path / "a", tmp_path / "b", sys.executable, 60, REQUESTS)
    with pytest.raises(NoAnswers):
        empty.row(Path("family"), APART)
    assert f"{tmp_path / 'a'} was to be compared, but" in capfd.readouterr().err


def test_differences_are_leaves_and_lengths() -> None:
    old = {"a": [1, 2], "b": {"x": None}, "c": [1]}
    new = {"a": [1, 3], "b": {"x": 0}, "c": [1, 2]}
    assert list(differences(old, old)) == []
    assert list(differences(old, new)) == [
        Difference("a[1]", 2, 3),
        Difference("b.x", None, 0),
        Difference("c", [1], [1, 2]),
    ]
    assert list(differences({"a": 1}, {"b": 1})) == [Difference("", {"a": 1}, {"b": 1})]


def test_requests_are_always_the_same_and_survive_json() -> None:
    requests = fixed_requests()
    assert requests == fixed_requests()
    assert 2 * len(requests) * len(TOPOLOGIES) >= 200
    assert {1, 230} <= {len(request.prompt) for request in requests}
    assert json.loads(json.dumps([request.prompt for request in requests]))
