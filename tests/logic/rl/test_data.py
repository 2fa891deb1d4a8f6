"""Problems out of files, and what is said of a broken line."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from megainfer.errors import ConfigError
from megainfer.rl.data.files import read_problems
from megainfer.rl.data.problem import Keys, Problem

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


def lines(folder: Path, *entries: object) -> Path:
    """A file of JSON lines; a text stands as it is."""
    path = folder / "problems.jsonl"
    path.write_text("".join(f"{e if isinstance(e, str) else json.dumps(e)}\n" for e in entries))
    return path


def test_texts_chats_and_numbers(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"prompt": "1 + 1?\u2028", "answer": "2", "more": None},
        "",
        {"prompt": CHAT, "answer": 4},
    )
    problems = read_problems(path)
    assert problems == [
        Problem("1 + 1?\u2028", "2", f"{path}, line 1"),
        Problem(CHAT, "4", f"{path}, line 3"),
    ]
    assert [problem.text for problem in problems] == ["1 + 1?\u2028", "2 + 2?"]


def test_keys_of_ones_own(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "1 + 1?", "solution": 2.5})
    (problem,) = read_problems(path, Keys("question", "solution"))
    assert (problem.prompt, problem.answer) == ("1 + 1?", "2.5")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('{"prompt": "a", "answer": ', "isn't JSON: Expecting value"),
        ("[" * 100_000, "isn't JSON: "),
        ([1], "needs an object with 'prompt' and 'answer'"),
        (
            {"prompt": "a", "solution": "b"},
            r"has no 'answer', only \['prompt', 'solution'\]; --data",
        ),
        ({"prompt": "", "answer": "b"}, "a prompt is a text, or a list of messages .*, not ''"),
        ({"prompt": [{"role": "user"}], "answer": "b"}, "a prompt is .*, not .*'role': 'user'"),
        ({"prompt": [], "answer": "b"}, "a prompt is a text"),
        ({"prompt": "a", "answer": None}, "an answer is a text or a number, not None"),
        ({"prompt": "a", "answer": True}, "an answer is a text or a number, not True"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(
    tmp_path: Path, broken: object, message: str
) -> None:
    path = lines(tmp_path, {"prompt": "a", "answer": "b"}, broken)
    with pytest.raises(ConfigError, match=rf"problems\.jsonl, line 2:? {message}"):
        read_problems(path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "\xff", "answer": "b"}\n')
    with pytest.raises(ConfigError, match=r"line 2 isn't JSON: .*can't decode byte 0xff"):
        read_problems(path)


def test_a_file_without_problems_or_none_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"problems\.jsonl has no problems"):
        read_problems(lines(tmp_path, ""))
    with pytest.raises(ConfigError, match=r"none\.jsonl can't be read: .*No such file"):
        read_problems(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="it is not a regular file"):
        read_problems(Path("/dev/null"))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "problems.parquet"
    table = pyarrow.table({"prompt": [CHAT, CHAT], "answer": ["4", None], "more": [1, 2]})
    parquet.write_table(table.slice(0, 1), path)
    assert read_problems(path) == [Problem(CHAT, "4", f"{path}, row 1")]
    parquet.write_table(table, path)
    with pytest.raises(ConfigError, match=r"problems\.parquet, row 2: an answer is a text or"):
        read_problems(path)
    with pytest.raises(ConfigError, match="has no column 'question', only prompt, answer, more"):
        read_problems(path, Keys(prompt="question"))
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"problems\.parquet can't be read as parquet"):
        read_problems(path)
