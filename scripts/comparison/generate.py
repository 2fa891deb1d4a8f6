"""One checkout's answers: `python -m comparison.generate ORDER ANSWERS`, both files of JSON.

A process of its own with the checkout first on PYTHONPATH. It needs nothing of a checkout but
`LLM` and `SamplingParams`, so the two may be far apart.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PASSES = 2
"""The second finds what the first has left in the prefix cache."""


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(generate(order)))


def generate(order: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Of each pass the answers of all requests, in their order. See `compare_checkouts.Run`."""
    from megainfer import LLM, SamplingParams

    _check_origin(LLM, Path(order["checkout"]))
    prompts = [request["prompt"] for request in order["requests"]]
    params = [SamplingParams(**_fields(request["params"])) for request in order["requests"]]
    with LLM(order["model"], **order["options"]) as llm:
        passes = [llm.generate(prompts, params, progress=False) for _ in range(PASSES)]
    return [[_answer(output) for output in outputs] for outputs in passes]


def _check_origin(kind: type, checkout: Path) -> None:
    module = Path(str(sys.modules[kind.__module__].__file__))
    if not module.is_relative_to(checkout):
        sys.exit(f"{checkout} was to be compared, but {module} was imported")


def _fields(params: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has turned the token ids of logit_bias into texts."""
    bias = {int(token): value for token, value in params.get("logit_bias", {}).items()}
    return {**params, "logit_bias": bias}


def _answer(output: Any) -> dict[str, Any]:
    """What must not change: not how much of the prompt was found in the cache, which may depend on
    what else was running."""
    return {
        "token_ids": [each.token_ids for each in output.outputs],
        "ended": [[each.finish_reason, each.stop_reason] for each in output.outputs],
        "logprobs": [_rows(each.logprobs) for each in output.outputs],
        "cumulative_logprob": [_exact(each.cumulative_logprob) for each in output.outputs],
        "prompt_logprobs": _rows(output.prompt_logprobs),
    }


def _rows(rows: Iterable[Mapping[int, Any] | None] | None) -> Sequence[Any] | None:
    """Of each position [token id, log-probability, rank], in the order in which they came."""
    if rows is None:
        return None
    return [
        None if row is None else [[t, _exact(e.logprob), e.rank] for t, e in row.items()]
        for row in rows
    ]


def _exact(value: float | None) -> str | None:
    """All bits of it. NaN would be equal to NaN, and two broken checkouts to each other."""
    if value is not None and math.isnan(value):
        sys.exit("a log-probability is NaN: there is nothing to compare")
    return None if value is None else value.hex()


if __name__ == "__main__":
    main()
