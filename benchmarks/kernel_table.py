"""Compile every kernel for GPUs that needn't be here, as models launch it, and say what it needs.

    python benchmarks/kernel_table.py
    python benchmarks/kernel_table.py --write docs/kernels-gpu.md

One layer of each kind of each model of `gpu/models.py` goes through a step of decodes and a chunk
of a prompt, on tensors that have shapes but no memory; kernels are compiled as Triton would
specialise them, and launched nowhere.
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
BEGIN = "<!-- from here on benchmarks/kernel_table.py has written -->\n"
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


def sources_of(page: str) -> str | None:
    """Which sources the page's table is of."""
    found = re.search(SOURCES.strip().format("([0-9a-f]+)"), page)
    return found and found[1]


def with_table(page: str, table: str) -> str:
    """The page with this table between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "the page has no place for the table"
    assert end, "the table ends nowhere"
    return "".join((before, begin, SOURCES.format(fingerprint()), table, end, after))


def main() -> None:
    options = parse()
    os.environ.pop("TRITON_INTERPRET", None)  # kernels look at it when they are defined
    from gpu.ahead.table import compiled_rows, markdown
    from gpu.models import MODELS

    rows = compiled_rows(options.models or [*MODELS])
    table = markdown(rows)
    print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if options.write:
        options.write.write_text(with_table(options.write.read_text(), table))


if __name__ == "__main__":
    main()
