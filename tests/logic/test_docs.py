"""What the documents say of files is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Where a page may leave the beginning of a path away.
BASES = ("", "megainfer/", "megainfer/m2n/", "megainfer/models/", "megainfer/compute/cpu/")
LONGEST = 200  # lines of a file in which a token's life is told


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def named_paths(text: str) -> set[str]:
    """Files that a text names in code type; those in capitals are yet to be written."""
    paths = re.findall(r"`([a-z_0-9.]+/[a-z_0-9./-]+\.(?:py|md|cpp|h|inl|json|js))`", text)
    return {path for path in paths if not path.startswith((".venv", "http"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    missing = [
        path
        for path in sorted(named_paths(page.read_text()))
        if not any((ROOT / base / path).exists() for base in BASES)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_a_tokens_life_takes_ten_short_files() -> None:
    story = text_of("architecture.md").partition("## A token's life")[2].partition("\n## ")[0]
    files = re.findall(r"^\d+\. `([^`]+)`", story, re.MULTILINE)
    assert len(files) == 10
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in files}
    assert {file: count for file, count in lines.items() if count >= LONGEST} == {}


def test_the_glossary_says_where_each_word_lives() -> None:
    table = text_of("architecture.md").partition("## Words")[2].partition("\nShape letters")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 40
    words = [word for row in rows for word in row.split("|")[1].strip().split(", ")]
    assert len(words) == len(set(words))
