"""MegaInfer. Order: model, and the options of `LLM`.

Beside the seconds an answer has what every node counted meanwhile, and how many micro-batches take
turns.
"""

import json
import sys
from time import monotonic
from typing import Any

from exchange import Exchange, Prompts, check_counts


def main() -> None:
    exchange, order = Exchange(), json.loads(sys.argv[1])
    from measures import difference

    from megainfer import LLM, SamplingParams

    with LLM(order["model"], **order["options"]) as llm:

        def generate(prompts: Prompts, max_tokens: int) -> dict[str, Any]:
            params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            before, started = llm.stats(), monotonic()
            results = llm.generate(list(prompts), params, progress=False)
            seconds = monotonic() - started
            after = llm.stats()
            check_counts([len(r.outputs[0].token_ids) for r in results], prompts, max_tokens)
            counters = {name: difference(before[name], after[name]) for name in after}
            return {"seconds": seconds, "micro_batches": llm.micro_batches, "counters": counters}

        exchange.serve(generate)


if __name__ == "__main__":
    main()
