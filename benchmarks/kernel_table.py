"""Compile every kernel for GPUs that needn't be here, as models launch it, and say what it needs.

    python benchmarks/kernel_table.py
    python benchmarks/kernel_table.py --write docs/kernels-gpu.md

One layer of each kind of each model of `gpu/models.py` goes through a step of decodes and a chunk
of a prompt, on tensors that have shapes but no memory; kernels are compiled as Triton would
specialise them, and launched nowhere.

The page's table is of the Triton that tests use. Another one, which lies in a folder of its own,
is written beside it, as far as it differs:

    pip install --no-deps --target FOLDER triton==3.7.1
    PYTHONPATH=FOLDER:. python benchmarks/kernel_table.py --write docs/kernels-gpu.md
"""

import argparse
import ast
import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAIN = "3.6.0"
"""Triton's, of which the page has the whole table."""
BEGIN = "<!-- from here on benchmarks/kernel_table.py has written, with Triton {} -->\n"
END = "\n<!-- to here -->"
SOURCES = "<!-- sources: {} -->\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", help="of gpu/models.py, all unless given")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--write", type=Path, help="a page in which the table stands")
    return parser.parse_args()


def fingerprint() -> str:
    """Of all that the table depends on, without comments and layout; the same with every Python."""
    digest = hashlib.sha256()
    for folder in (ROOT / "megainfer" / "compute" / "gpu", ROOT / "benchmarks" / "gpu" / "ahead"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(_structure(file.read_text()).encode())
    return digest.hexdigest()[:16]


def _structure(source: str) -> str:
    """Without fields that are empty: Python 3.13 leaves them out, and 3.12 has more of them."""
    shown = re.sub(r"\b\w+=\[\]", "", ast.dump(ast.parse(source)))
    return re.sub(r"(?<=\(), |, (?=\))", "", re.sub(r"(, )+", ", ", shown))


def sources_of(page: str) -> dict[str, str]:
    """Which sources the page's tables are of, by Triton's version."""
    marks = BEGIN.format(r"([\d.]+)") + SOURCES.strip().format("([0-9a-f]+)")
    return dict(re.findall(marks, page))


def table_of(page: str, version: str) -> str:
    """What stands in the page for this version. Raises SystemExit where it has no place for it."""
    _, begin, rest = page.partition(BEGIN.format(version))
    told, end, _ = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page has no place for a table of Triton {version}")
    return told.partition("\n")[2]


def with_table(page: str, table: str, version: str) -> str:
    """The page with this version's table between its two marks."""
    old, begin = table_of(page, version), BEGIN.format(version)
    before, _, rest = page.partition(begin)
    after = rest[rest.index(END) :]
    assert old in rest
    return "".join((before, begin, SOURCES.format(fingerprint()), table, after))


def differing(table: str, main: str) -> str:
    """The table without the lines that the main one has, too; its headings stay."""
    headings, known = table.splitlines()[:2], {*main.splitlines()}
    return "\n".join([*headings, *(line for line in table.splitlines() if line not in known)])


def main() -> None:
    options = parse()
    os.environ.pop("TRITON_INTERPRET", None)  # kernels look at it when they are defined
    import triton
    from gpu.ahead.table import compiled_rows, markdown
    from gpu.models import MODELS

    rows = compiled_rows(options.models or [*MODELS])
    table = markdown(rows)
    print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if options.write:
        page = options.write.read_text()
        if triton.__version__ != MAIN:
            table = differing(table, table_of(page, MAIN))
        options.write.write_text(with_table(page, table, triton.__version__))


if __name__ == "__main__":
    main()
