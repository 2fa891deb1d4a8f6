"""An engine for tests of the trainer: transformers in this process, drawing as the nodes do."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch

from megainfer.attention_node.sampling.sampler import uniform
from megainfer.rl.rollout.engine import Context, Drawn, Ended
from megainfer.rl.training.models import Policy
from tests.support.rl_models import END_TOKEN


class TransformersEngine:
    """Computes all tokens of all contexts again for each token: slow, and obviously right.

    updates: how often it was given weights. windows: by seed, of each draw how often it had been
    given weights by then, and the tokens.
    """

    def __init__(self, folder: Path) -> None:
        self._model = Policy.load(folder).model
        self.updates = 0
        self.windows: dict[int, list[tuple[int, list[int]]]] = {}
        self.closed = False

    @property
    def end_tokens(self) -> Sequence[int]:
        return [END_TOKEN]

    def draw(self, contexts: Sequence[Context], greedy: bool = False) -> list[Drawn]:
        """As the protocol says."""
        tokens = [list(context.token_ids) for context in contexts]
        logprobs: list[list[float]] = [[] for _ in contexts]
        going = list(range(len(contexts)))
        while going:
            tables = self._next([tokens[i] for i in going])
            for i, table in zip(going, tables, strict=True):
                token = _choice(table, contexts[i], len(tokens[i]), greedy)
                tokens[i].append(token)
                logprobs[i].append(float(table[token]))
            going = [i for i in going if not self._ended(contexts[i], tokens[i])]
        new = [row[len(c.token_ids) :] for c, row in zip(contexts, tokens, strict=True)]
        for context, row in zip(contexts, new, strict=True):
            self.windows.setdefault(context.seed, []).append((self.updates, row))
        return [Drawn(row, own) for row, own in zip(new, logprobs, strict=True)]

    def draw_each(self, contexts: Sequence[Context]) -> Iterator[Ended]:
        """The last first, since nobody may count on any order."""
        drawn = self.draw(contexts)
        for place in reversed(range(len(drawn))):
            yield Ended(place, drawn[place], perf_counter())

    def update_weights(self, folder: Path) -> None:
        """All of the folder's, as safetensors."""
        self._model = Policy.load(folder).model
        self.updates += 1

    def close(self) -> None:
        self.closed = True

    @torch.inference_mode()
    def _next(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """log p of each row's next token, [B, V]."""
        width = max(map(len, rows))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits = self._model(input_ids=padded, attention_mask=mask, use_cache=False).logits
        last = torch.tensor([len(row) - 1 for row in rows])
        return torch.log_softmax(logits[torch.arange(len(rows)), last].float(), dim=-1)

    def _ended(self, context: Context, tokens: list[int]) -> bool:
        new = len(tokens) - len(context.token_ids)
        return new >= context.max_tokens or tokens[-1] == END_TOKEN


def _choice(table: torch.Tensor, context: Context, position: int, greedy: bool) -> int:
    if greedy:
        return int(table.argmax())
    sums = table.double().exp().cumsum(0)
    drawn = uniform(context.seed, position) * float(sums[-1])
    return min(int(torch.searchsorted(sums, drawn, right=True)), len(table) - 1)
