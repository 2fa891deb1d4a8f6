"""How far each precision is from transformers in float32, on English text and the demo model.

Text is a prompt and its greedy continuation, and all its positions are compared, which is
transformers once and each precision once. `pytest -s` prints what was found. Bounds are about 1.5
to 2 times that, on a machine where kernels round the rows as well (AVX-512 BF16 and VNNI); other
levels are closer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from megainfer.compute.batch import ChunkInput
from megainfer.compute.cpu.kernels import library
from megainfer.compute.selection import Precision
from megainfer.model_folder.demo.model import ensure_demo_model
from tests.support.checkpoints import Greedy, assert_same_greedy, oracle
from tests.support.demo_pairs import DemoModel
from tests.support.divergence import Divergence, divergence
from tests.support.node_pair import FLOAT32, Pair, blocks_of

NEW_TOKENS = 16
PROMPTS = [
    "The river rises in the hills above the town and runs for forty miles through farmland before "
    "it reaches the sea. In spring the meadows beside it are often under water, and",
    "Photosynthesis is the process by which plants turn light into chemical energy. In the leaves "
    "of a plant, chlorophyll absorbs sunlight, and the energy is used to",
    'def fibonacci(n):\n    """Return the first n Fibonacci numbers."""\n    numbers = [0, 1]\n'
    "    while len(numbers) < n:\n",
    "Dear Mr. Harris,\n\nThank you for your letter of the third of May. I am sorry to hear that "
    "the parcel was damaged when it arrived. We will send you",
    "To make the soup, cut the onions and carrots into small pieces and cook them slowly in "
    "butter. Add the stock and the potatoes, bring everything to the boil, and",
    "<|im_start|>user\nWhat is the difference between weather and climate? Answer in two "
    "sentences.<|im_end|>\n<|im_start|>assistant\n",
    "The Industrial Revolution began in Great Britain in the eighteenth century. New machines for "
    "spinning and weaving, driven first by water and then by steam, changed",
    "Anna opened the door and looked into the dark room. Nobody had lived in the house for twenty "
    "years, but on the table stood a cup of tea, and it was still warm. She",
]


@dataclass(frozen=True)
class Case:
    """A precision, a bound on its divergence, and on how many of a greedy answer's first
    NEW_TOKENS tokens are the oracle's before the first that isn't, as a mean over prompts."""

    precision: Precision
    bound: Divergence
    same_tokens: float


# The reference rounds the residual stream too, and after every operation, as torch does.
BFLOAT16 = {
    "cpu": Case(Precision("bfloat16"), Divergence(1.3e-2, 4e-4, 0.98, 0.15), 12),
    "reference": Case(Precision("bfloat16"), Divergence(3e-2, 2.6e-3, 0.94, 0.3), 8),
}
CASES = {
    "bfloat16": BFLOAT16["cpu" if library.is_built() else "reference"],
    "int8 experts": Case(Precision("bfloat16", "int8"), Divergence(8e-2, 1.1e-2, 0.93, 0.9), 8),
    "int8": Case(Precision("bfloat16", "int8", "int8"), Divergence(0.11, 2.2e-2, 0.89, 0.9), 7),
    "int8 in float32": Case(
        Precision("float32", "int8", "int8"), Divergence(0.11, 2.2e-2, 0.89, 0.9), 7
    ),
}
needs_int8 = pytest.mark.skipif(
    not library.is_built(), reason="the CPU kernels are not built, and the reference has no int8"
)


@dataclass(frozen=True)
class Text:
    """Prompts, our greedy answers in float32, and logits [T, V] of every prompt with its answer.

    ours, exact: of our float32 kernels, and of transformers.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    ours: list[Tensor]
    exact: list[Tensor]

    @property
    def sequences(self) -> list[list[int]]:
        return joined(self.prompts, self.answers)

    def chosen(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Of all logits those [NEW_TOKENS, V] that chose, or would have, the answers' tokens."""
        return [part[-NEW_TOKENS - 1 : -1] for part in logits]

    def same_tokens(self, logits: Sequence[Tensor]) -> float:
        """Tokens of a greedy answer before the first that isn't the oracle's, mean over prompts.

        Up to that token a free run has seen the same context, and gives the same.
        """
        same = [
            (ours.argmax(-1) == exact.argmax(-1)).int().cumprod(0).sum()
            for ours, exact in zip(self.chosen(logits), self.chosen(self.exact), strict=True)
        ]
        return float(torch.stack(same).float().mean())


def joined(prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]


@pytest.fixture(scope="module")
def demo() -> DemoModel:
    return DemoModel(ensure_demo_model())


@pytest.fixture(scope="module")
def text(demo) -> Text:
    tokenizer = Tokenizer.from_file(str(demo.folder / "tokenizer.json"))
    prompts = [encoding.ids for encoding in tokenizer.encode_batch(PROMPTS)]
    pair = demo.pair(FLOAT32)
    answers = greedy_answers(pair, prompts)
    sequences = joined(prompts, answers)
    ours = pair.all_logits(sequences)
    return Text(prompts, answers, ours, exact_logits(demo.folder, sequences))


def greedy_answers(pair: Pair, prompts: list[list[int]]) -> list[list[int]]:
    """NEW_TOKENS for each prompt, all prompts in every step."""
    answers = [list[int]() for _ in prompts]
    chunks = [ChunkInput(prompt, 0, blocks_of(i), True) for i, prompt in enumerate(prompts)]
    for _ in range(NEW_TOKENS):
        chosen = pair.step(chunks).argmax(-1).tolist()
        for answer, token in zip(answers, chosen, strict=True):
            answer.append(token)
        chunks = [
            ChunkInput([token], chunk.context, chunk.block_ids, True)
            for chunk, token in zip(chunks, chosen, strict=True)
        ]
    return answers


@torch.inference_mode()
def exact_logits(folder: Path, sequences: list[list[int]]) -> list[Tensor]:
    """Padded to one length at the end, where nothing that counts looks."""
    padded = pad_sequence([torch.tensor(tokens) for tokens in sequences], batch_first=True)
    logits = oracle(folder)(padded).logits
    return [own[: len(tokens)] for own, tokens in zip(logits, sequences, strict=True)]


def test_float32_gives_the_tokens_of_transformers(text):
    """Each answer was chosen freely; transformers would have chosen it, token by token."""
    expected = []
    for logits in text.chosen(text.exact):
        best = logits.topk(2)
        gaps = (best.values[:, 0] - best.values[:, 1]).tolist()
        expected.append(Greedy(best.indices[:, 0].tolist(), gaps, logits))
    assert_same_greedy(expected, text.answers)
    found = divergence(text.ours, text.exact)
    print(f"float32: {found}")
    assert found.is_within(Divergence(1e-5, 1e-7, 1.0, 0.0))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_int8) if "int8" in name else name for name in CASES],
)
def test_the_divergence_of_a_precision_is_bounded(demo, text, name):
    case = CASES[name]
    logits = demo.pair(case.precision).all_logits(text.sequences)
    found, same = divergence(logits, text.exact), text.same_tokens(logits)
    print(f"{name}: {found}, {same:.1f} of {NEW_TOKENS} tokens before the first other one")
    assert found.is_within(case.bound), f"{found}; allowed: {case.bound}"
    assert same >= case.same_tokens
