"""Whole instances on one GPU, colocated and apart: tokens a second, and whether tokens are equal.

    python benchmarks/gpu/instances.py
    python benchmarks/gpu/instances.py --only colocated "1+1, m 2" --json found.json
    python benchmarks/gpu/instances.py --plain
    python benchmarks/gpu/instances.py --dry --only colocated

A random Qwen3-MoE in bfloat16 (`checkpoints.py`), greedy: 12 prompts of 5 to 104 tokens, twice,
whose tokens are compared; then each five times at once, for the rate. With --batch-invariant, by
which tokens don't depend on who shares a step, unless --plain. What is known is written after each
instance. --dry serves them on the CPU, to see that it runs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from time import monotonic
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # run from the source tree

from checkpoints import SHAPES, ensure_checkpoint  # noqa: E402
from generation import generate  # noqa: E402

from megainfer import LLM, SamplingParams  # noqa: E402

Options = Mapping[str, Any]
APART = {"attn_gpus": 1, "ffn_gpus": 1, "gpus": (0, 0)}
INSTANCES: Mapping[str, Options] = {
    "colocated": {"colocated": True},
    "colocated, eager": {"colocated": True, "enforce_eager": True},
    "1+1, m 1": {**APART, "micro_batches": 1},
    "1+1, m 2": {**APART, "micro_batches": 2},
    "1+1, m 1, eager": {**APART, "micro_batches": 1, "enforce_eager": True},
    "2+2, m 2": {"attn_gpus": 2, "ffn_gpus": 2, "gpus": (0, 0, 0, 0), "micro_batches": 2},
    "experts on the CPU": {"attn_device": "cuda", "ffn_device": "cpu", "micro_batches": 2},
}
ON_GPUS_ONLY = ("gpus", "attn_device", "ffn_device")
COMMON: Options = {
    "dtype": "bfloat16",
    "max_model_len": 1024,
    "kv_cache_memory": 1 << 30,
    "progress": False,
}
NEW_TOKENS, RATED_TOKENS, TIMES, ROUNDS = 32, 64, 5, 2
TOLD = ("graphs", "graph_bytes", "graph_replays", "eager_stages", "device_late_allocations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*INSTANCES], default=[*INSTANCES])
    parser.add_argument("--size", choices=[*SHAPES], default="0.17B")
    parser.add_argument("--plain", action="store_true", help="without --batch-invariant")
    parser.add_argument("--dry", action="store_true", help="on the CPU")
    parser.add_argument("--json", type=Path, help="where results go, too")
    options = parser.parse_args()
    folder = ensure_checkpoint(options.size, Path(gettempdir()) / "megainfer-models")

    def tell(found: Mapping[str, Any]) -> None:
        name, latest = [*found.items()][-1]
        print(f"{name}: {json.dumps(latest)}", flush=True)
        if options.json:
            whole = options.json.with_suffix(".new")
            whole.write_text(json.dumps(found, indent=1))
            whole.replace(options.json)

    measure(folder, _chosen(options.only, options.plain, options.dry), tell)


def _chosen(names: Sequence[str], plain: bool, dry: bool) -> Mapping[str, Options]:
    chosen = {name: {**COMMON, **INSTANCES[name]} for name in names}
    for own in chosen.values():
        if dry:
            own |= {"device": "cpu", "kv_cache_memory": 1 << 24}
            for name in ON_GPUS_ONLY:
                own.pop(name, None)
        elif not plain:
            own["batch_invariant"] = True
    return chosen


def measure(
    folder: Path, instances: Mapping[str, Options], tell: Callable[[Mapping[str, Any]], None]
) -> None:
    """tell: is given all that was found, after each instance."""
    found, first = dict[str, Any](), None
    for name, options in instances.items():
        started = monotonic()
        try:
            found[name], tokens = _of(folder, options, first)
            first = first or tokens
        except Exception as error:  # the others are asked all the same
            failed = f"{type(error).__name__}: {error}"
            found[name] = {"failed": failed[-1500:], "seconds": monotonic() - started}
        tell(found)


Tokens = list[list[int]]


def _of(folder: Path, options: Options, first: Tokens | None) -> tuple[dict[str, Any], Tokens]:
    """What it does, and its tokens. first: those of the first instance."""
    started = monotonic()
    with LLM(str(folder), **options) as llm:
        start = monotonic() - started
        prompts = [
            [(7 * i + 13 * j) % (llm.vocab_size - 3) + 3 for j in range(5 + 9 * i)]
            for i in range(12)
        ]
        tokens, again = _tokens(llm, prompts), _tokens(llm, prompts)
        many = [prompt for prompt in prompts for _ in range(TIMES)]
        seconds = min(generate(llm, many, RATED_TOKENS) for _ in range(ROUNDS))
        told = {name: _told(own) for name, own in llm.stats().items()}
    found = {
        "start": round(start, 1),
        "tokens_per_second": round(len(many) * RATED_TOKENS / seconds),
        "as_the_first": 1.0 if first is None else _share(tokens, first),
        "as_before": _share(again, tokens),
        "nodes": {name: own for name, own in told.items() if own},
    }
    return found, tokens


def _tokens(llm: LLM, prompts: Tokens) -> Tokens:
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = llm.generate(prompts, params, progress=False)
    return [[*output.outputs[0].token_ids] for output in outputs]


def _share(ours: Tokens, theirs: Tokens) -> float:
    """Of tokens that are equal, place by place."""
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return round(sum(a == b for a, b in pairs) / len(pairs), 4)


def _told(counters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: counters[name] for name in TOLD if name in counters}


if __name__ == "__main__":
    main()
