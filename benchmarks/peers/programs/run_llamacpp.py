"""llama.cpp's batched-bench, started anew for every command. Order: bench, model, threads.

It draws its prompts itself, and times prefill and decoding apart. The first of its two runs is
warm-up: weights are mapped from the file's cached pages.
"""

import json
import subprocess
import sys
from typing import Any

from exchange import Exchange, Prompts


def main() -> None:
    exchange, order = Exchange(), json.loads(sys.argv[1])

    def generate(prompts: Prompts, max_tokens: int) -> dict[str, Any]:
        result = bench(order, len(prompts), len(prompts[0]), max(1, max_tokens - 1))
        first = result["t_pp"]
        decoded = result["t_tg"] if max_tokens > 1 else 0
        return {"seconds": first + decoded, "first_seconds": first}

    exchange.serve(generate)


def bench(order: dict[str, Any], sequences: int, prompt: int, decoded: int) -> dict[str, Any]:
    """The prefill gives the first token of each, so one fewer is decoded."""
    threads = str(order["threads"])
    options = {
        "-m": order["model"],
        "-c": str(sequences * (prompt + decoded)),
        "-npp": str(prompt),
        "-ntg": str(decoded),
        "-npl": f"{sequences},{sequences}",
        "-t": threads,
        "-tb": threads,
        "--output-format": "jsonl",
    }
    arguments = [part for option in options.items() for part in option]
    finished = subprocess.run(
        [order["bench"], *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    lines = [line for line in finished.stdout.splitlines() if line.startswith("{")]
    if finished.returncode or len(lines) != 2:
        raise RuntimeError(f"{order['bench']} ended with {finished.returncode}: {finished.stdout}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


if __name__ == "__main__":
    main()
