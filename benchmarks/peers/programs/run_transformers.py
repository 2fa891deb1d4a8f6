"""transformers. Order: model, dtype, threads."""

import json
import sys

from exchange import Exchange, Prompts, timed


def main() -> None:
    exchange, order = Exchange(), json.loads(sys.argv[1])
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(order["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        order["model"],
        dtype=getattr(torch, order["dtype"]),
        experts_implementation="grouped_mm",
        attn_implementation="sdpa",
    )

    @torch.inference_mode()
    def generate(prompts: Prompts, max_tokens: int) -> list[int]:
        ids = torch.tensor(prompts)
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=max_tokens, min_new_tokens=max_tokens, pad_token_id=0
        )
        answers = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        return [answers.shape[1] - ids.shape[1]] * len(prompts)

    exchange.serve(timed(generate))


if __name__ == "__main__":
    main()
