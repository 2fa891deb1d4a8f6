"""vLLM. Order: model, dtype, eager, sequences, tokens (of prompt and answer)."""

import json
import sys

from exchange import Exchange, Prompts, timed


def main() -> None:
    exchange, order = Exchange(), json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        order["model"],
        dtype=order["dtype"],
        enforce_eager=order["eager"],
        max_num_seqs=order["sequences"],
        max_model_len=order["tokens"],
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )

    def generate(prompts: Prompts, max_tokens: int) -> list[int]:
        params = SamplingParams(
            temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        answers = llm.generate(inputs, params, use_tqdm=False)
        return [len(answer.outputs[0].token_ids) for answer in answers]

    exchange.serve(timed(generate))


if __name__ == "__main__":
    main()
