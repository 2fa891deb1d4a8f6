"""Which tokens change which model, seen on gradients."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megainfer.rl.samples.batch import Estimation, rows_by_value, value_rows
from megainfer.rl.samples.rows import PolicyRow, ValueRow
from megainfer.rl.samples.sample import Sample
from megainfer.rl.training.metrics import Seen
from megainfer.rl.training.models import Policy, ValueModel
from megainfer.rl.training.optimiser import Optimiser, Schedule
from megainfer.rl.training.passes import Passes
from megainfer.rl.training.policy_update import PolicyObjective, PolicyUpdate
from megainfer.rl.training.value_update import ValueUpdate
from tests.support.rl_models import load_pair, write_model
from tests.support.rl_samples import END, sample_of

HOW = Estimation(window=4, edge=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, ValueModel]:
    return load_pair(write_model(tmp_path_factory.mktemp("model")))


def answers() -> list[Sample]:
    """One cut, one finished in its second window, one finished at once; prompts of any length."""
    return [
        sample_of([11, 12, 13, 14], [21, 22, 23, 24], prompt=range(30, 41), number=0, value=0.5),
        sample_of([11, 12, 13], [21, 22, END], prompt=[40, 41], number=1, value=0.25),
        sample_of([31, END], prompt=[42], number=2, value=0.75),
    ]


def policy_loss_of(policy: Policy, rows: Sequence[PolicyRow], logprobs: Tensor) -> Tensor:
    update = PolicyUpdate(policy, Optimiser(policy, Schedule(0.0)), PolicyObjective(), Passes())
    tokens = sum(len(row.span) for row in rows)
    return update.loss(rows, logprobs, tokens, sum(len(r.span) for r in rows if r.correct), Seen())


def on_policy(policy: Policy, rows: Sequence[PolicyRow]) -> list[PolicyRow]:
    """As if this policy had drawn the tokens: at ratio 1 no clip hides a gradient."""
    with torch.no_grad():
        drawn = policy.logprobs(rows).split([len(row.span) for row in rows])
    return [replace(row, old_logprobs=d.tolist()) for row, d in zip(rows, drawn, strict=True)]


class Tapped:
    """Keeps what a module gave, with its gradient."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.output: Any = None
        self.handle = module.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, given: object, output: Any) -> None:
        self.output = output
        output.retain_grad()


def test_only_the_window_without_its_edge_has_a_policy_gradient(
    models: tuple[Policy, ValueModel],
) -> None:
    """Of the last hidden states: those that predict a trained token, and exactly no others."""
    policy, _ = models
    rows = on_policy(policy, rows_by_value(answers(), {1: 1.0, 2: 0.0}, HOW))
    tapped = Tapped(policy.model.model.norm)
    try:
        policy_loss_of(policy, rows, policy.logprobs(rows)).backward()
    finally:
        tapped.handle.remove()
    policy.zero_grad()
    gradient = tapped.output.grad
    reached = gradient.abs().sum(-1) > 0
    # Prompt and answer: 11 + 4 + 4 tokens, of the last window two are edge; 2 + 3 + 3; 1 + 2.
    expected = [range(15, 17), range(5, 8), range(1, 3)]
    for row, span in enumerate(expected):
        predicting = [t - 1 for t in span]
        assert reached[row].nonzero().flatten().tolist() == predicting
    assert gradient.shape[:2] == (3, 19)


def test_an_unfinished_answer_has_no_value_gradient(models: tuple[Policy, ValueModel]) -> None:
    """A batch with unfinished answers changes the value model as one without does, to the bit."""
    _, value = models
    cut, *finished = answers()
    rewards = {0: 1.0, 1: 1.0, 2: 0.0}
    gradients = [
        value_gradient(value, value_rows(s, rewards, 1.0)) for s in ([cut, *finished], finished)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(gradient.abs().sum() > 0 for gradient in gradients[0])
    assert value_rows([cut], rewards, 1.0) == []


def value_gradient(value: ValueModel, rows: Sequence[ValueRow]) -> list[Tensor]:
    update = ValueUpdate(value, Optimiser(value, Schedule(0.0)), Passes())
    update.loss(rows, value.values(rows), sum(len(row.span) for row in rows), Seen()).backward()
    found = [p.grad.clone() for p in value.parameters() if p.grad is not None]
    value.zero_grad()
    return found


def test_every_token_of_a_finished_answer_has_a_value_gradient(
    models: tuple[Policy, ValueModel],
) -> None:
    _, value = models
    rows = value_rows(answers(), {1: 1.0, 2: 0.0}, 1.0)
    values = value.values(rows)
    values.retain_grad()
    update = ValueUpdate(value, Optimiser(value, Schedule(0.0)), Passes(), low=99, high=99)
    update.loss(rows, values, 8, Seen()).backward()
    value.zero_grad()
    returns = torch.tensor([1.0] * 6 + [0.0] * 2)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, (values.detach() - returns) / 8)


def table_gradient(samples: Sequence[Sample], rewards: dict[int, float]) -> Tensor:
    """Of a policy that is a table: log p of token t of answer i is entry [i, t]."""
    rows = rows_by_value(samples, rewards, HOW)
    table = torch.zeros(len(samples), 64, requires_grad=True)
    places = {id(s): i for i, s in enumerate(samples)}
    by_tokens = {tuple(s.token_ids): places[id(s)] for s in samples}
    chosen = [table[by_tokens[tuple(row.token_ids)], t] for row in rows for t in row.span]
    if chosen:
        policy = Policy(torch.nn.Linear(1, 1))
        policy_loss_of(policy, rows, torch.stack(chosen)).backward()
    return torch.zeros_like(table) if table.grad is None else table.grad


windows = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@settings(max_examples=50)
@given(st.lists(st.tuples(windows, st.booleans(), st.floats(0, 1)), min_size=1, max_size=5))
def test_prompts_earlier_windows_and_edges_have_exactly_no_gradient(
    shapes: list[tuple[list[int], bool, float]],
) -> None:
    samples, rewards = [], {}
    for number, (lengths, ends, reward) in enumerate(shapes):
        tokens = [[10 + number] * length for length in lengths]
        tokens[-1][-1] = END if ends else 9
        samples.append(sample_of(*tokens, prompt=[number], number=number, value=reward / 2))
        if ends:
            rewards[number] = reward
    gradient = table_gradient(samples, rewards)
    for sample, row in zip(samples, gradient, strict=True):
        start = 1 + sample.length - len(sample.latest.token_ids)
        stop = 1 + sample.length - (0 if sample.finished else HOW.edge)
        assert not row[:start].any()
        assert not row[max(start, stop) :].any()


def test_the_gradient_of_a_token_is_its_advantage() -> None:
    """On-policy, that is, at ratio 1, d loss / d log p = -A / tokens; and, of correct answers, less
    the language-model loss's weight / their tokens."""
    samples = [
        sample_of([11, 12, 13, END], prompt=[1], number=0, value=0.5),
        sample_of([11, END], prompt=[1], number=1, value=0.5),
    ]
    rows = rows_by_value(samples, {0: 0.5, 1: 1.0}, HOW)
    logprobs = torch.tensor([p for row in rows for p in row.old_logprobs], requires_grad=True)
    policy_loss_of(Policy(torch.nn.Linear(1, 1)), rows, logprobs).backward()
    assert logprobs.grad is not None
    advantages = torch.tensor([a for row in rows for a in row.advantages])
    language = torch.tensor([0.0] * 4 + [0.1 / 2] * 2)
    torch.testing.assert_close(logprobs.grad, -advantages / 6 - language)


def test_the_language_model_loss_is_of_correct_answers_tokens() -> None:
    """With advantages of 0 it is all there is: -0.1 / (tokens of correct answers)."""
    rows = [
        PolicyRow([1, 2, 3], range(1, 3), [-1.0, -1.0], [0.0, 0.0], correct=True),
        PolicyRow([1, 2, 3, 4], range(1, 4), [-1.0] * 3, [0.0] * 3),
        PolicyRow([1, 2], range(1, 2), [-1.0], [0.0], correct=True),
    ]
    logprobs = torch.full((6,), -1.0, requires_grad=True)
    loss = policy_loss_of(Policy(torch.nn.Linear(1, 1)), rows, logprobs)
    loss.backward()
    assert loss.item() == pytest.approx(0.1)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.1 / 3] * 2 + [0.0] * 3 + [-0.1 / 3])
