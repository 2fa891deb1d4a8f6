"""Models, updates and optimisers: log-probabilities are transformers', cuts change nothing."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from megainfer.errors import CheckpointError, ModelError
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.samples.rows import PolicyRow, Row, ValueRow
from megainfer.rl.training.learner import Learner
from megainfer.rl.training.metrics import Metrics
from megainfer.rl.training.micro_batches import micro_batches
from megainfer.rl.training.models import (
    HEAD_FILE,
    Policy,
    ValueModel,
    check_pair,
    checkpoint_activations,
)
from megainfer.rl.training.optimiser import Optimiser, Schedule
from megainfer.rl.training.passes import Passes
from megainfer.rl.training.policy_update import PolicyObjective, PolicyUpdate
from megainfer.rl.training.value_update import ValueUpdate
from tests.support.checkpoints import write_checkpoint
from tests.support.rl_models import VOCABULARY, load_pair, write_model

RATE = 1e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def tokens_of(count: int, seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=random).tolist()


SHAPES = ((12, range(4, 12)), (5, range(2, 4)), (20, range(17, 20)), (9, range(1, 9)))


def policy_rows() -> list[PolicyRow]:
    return [
        PolicyRow(
            tokens_of(length, seed),
            span,
            [-5.0] * len(span),
            [0.1 * seed - 0.2 + 0.3 * i for i in range(len(span))],
            correct=seed % 2 == 0,
        )
        for seed, (length, span) in enumerate(SHAPES)
    ]


def rows_of_values() -> list[ValueRow]:
    return [
        ValueRow(tokens_of(length, seed), span, [1.0] * len(span), [0.0] * len(span))
        for seed, (length, span) in enumerate(SHAPES)
    ]


def test_logprobs_are_transformers_of_each_answer_alone(folder: Path) -> None:
    policy, _ = load_pair(folder)
    rows = policy_rows()
    with torch.no_grad():
        found = policy.logprobs(rows)
        expected = []
        for row in rows:
            logits = policy.model(input_ids=torch.tensor([row.token_ids])).logits[0]
            table = torch.log_softmax(logits, dim=-1)
            expected += [table[t - 1, row.token_ids[t]] for t in row.span]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_values_are_of_what_is_before_a_token(folder: Path) -> None:
    """V(s_t) doesn't change with token t, and is the head of what precedes it."""
    _, value = load_pair(folder)
    rows = rows_of_values()
    with torch.no_grad():
        found = value.values(rows)
        expected = []
        for row in rows:
            for t in row.span:
                before = torch.tensor([row.token_ids[:t]])
                hidden = value.backbone(input_ids=before).last_hidden_state[0, -1]
                expected.append(value.head(hidden)[0])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    update = ValueUpdate(value, Optimiser(value, Schedule(0.0)), Passes(most_tokens=20))
    predicted = update.predict(rows)
    assert [len(row) for row in predicted] == [len(span) for _, span in SHAPES]
    flat = torch.tensor([v for row in predicted for v in row])
    torch.testing.assert_close(flat, found, rtol=1e-4, atol=1e-5)


def test_a_new_value_model_says_0(folder: Path) -> None:
    value = ValueModel.load(folder)
    assert not value.values(rows_of_values()).any()


def trained_policy(folder: Path, passes: Passes, rows: Sequence[PolicyRow]) -> tuple[Policy, float]:
    policy = Policy.load(folder)
    optimiser = Optimiser(policy, Schedule(RATE))
    metrics = PolicyUpdate(policy, optimiser, PolicyObjective(), passes)(rows)
    return policy, metrics["loss"]


def trained_value(folder: Path, passes: Passes) -> tuple[ValueModel, float]:
    _, value = load_pair(folder)
    metrics = ValueUpdate(value, Optimiser(value, Schedule(RATE)), passes)(rows_of_values())
    return value, metrics["loss"]


def assert_same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    for (name, own), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        # Adam's first update is the gradient's sign: where that is all but 0, it is rounding's.
        differs = (own - other).abs() > RATE / 10
        assert differs.float().mean() < 0.01, name


@pytest.mark.parametrize("most_tokens", [1, 24, 60])
def test_gradients_add_up_by_tokens_however_rows_are_cut(folder: Path, most_tokens: int) -> None:
    whole, cut = Passes(), Passes(most_tokens=most_tokens)
    assert len(list(cut.passes(policy_rows()))) > 1
    for kind in ("policy", "value"):
        if kind == "policy":
            one, loss = trained_policy(folder, whole, policy_rows())
            other, other_loss = trained_policy(folder, cut, policy_rows())
        else:
            one, loss = trained_value(folder, whole)
            other, other_loss = trained_value(folder, cut)
        assert other_loss == pytest.approx(loss, rel=1e-4)
        assert_same(other, one)


def test_what_is_rewarded_grows_likelier(folder: Path) -> None:
    policy = Policy.load(folder)
    update = PolicyUpdate(policy, Optimiser(policy, Schedule(1e-3)), PolicyObjective(), Passes())
    rows = policy_rows()[:2]
    with torch.no_grad():
        old = policy.logprobs(rows).split([len(row.span) for row in rows])
    rows = [
        PolicyRow(row.token_ids, row.span, logprobs.tolist(), [sign] * len(row.span))
        for row, logprobs, sign in zip(rows, old, (1.0, -1.0), strict=True)
    ]
    metrics = update(rows)
    assert metrics["mismatch"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["clipped"] == 0.0
    with torch.no_grad():
        new = policy.logprobs(rows).split([len(row.span) for row in rows])
    assert new[0].mean() > old[0].mean()
    assert new[1].mean() < old[1].mean()


def test_the_value_model_learns_returns(folder: Path) -> None:
    value = ValueModel.load(folder)
    update = ValueUpdate(value, Optimiser(value, Schedule(3e-3)), Passes(), low=9, high=9)
    errors = [update(rows_of_values())["squared_error"] for _ in range(30)]
    assert errors[0] == pytest.approx(1.0)
    assert errors[-1] < 0.05


def test_mini_batches_are_updates() -> None:
    rows = policy_rows()
    assert [len(part) for part in Passes(mini_batches=2).split(rows, 0)] == [2, 2]
    assert [len(part) for part in Passes(mini_batches=3).split(rows, 0)] == [2, 2]
    singles = list(Passes(mini_batches=9).split(rows, 0))
    assert sorted(len(row.token_ids) for (row,) in singles) == [5, 9, 12, 20]
    assert list(Passes().split(rows, 0)) == [rows]
    assert list(Passes().split([], 0)) == []


def test_mini_batches_are_of_all_problems_another_way_each_step() -> None:
    """Rows of one problem come side by side."""
    rows = [Row([problem, 0], range(1, 2)) for problem in range(16) for _ in range(8)]

    def problems(passes: Passes, number: int) -> list[list[int]]:
        return [[row.token_ids[0] for row in part] for part in passes.split(rows, number)]

    passes = Passes(mini_batches=4, seed=5)
    first = problems(passes, 0)
    assert sorted(p for part in first for p in part) == [row.token_ids[0] for row in rows]
    assert all(len(set(part)) > 10 for part in first), "unshuffled a part has 4 problems"
    assert problems(passes, 0) == first
    assert problems(passes, 4) != first
    assert problems(Passes(mini_batches=4, seed=6), 0) != first


def test_passes_hold_at_most_so_many_tokens() -> None:
    lengths = [3, 100, 7, 7, 50, 1, 49]
    found = micro_batches(lengths, 100)
    assert sorted(i for part in found for i in part) == list(range(len(lengths)))
    for part in found:
        assert len(part) == 1 or max(lengths[i] for i in part) * len(part) <= 100
    assert found[0] == [1]


def weights(optimiser: Optimiser) -> dict[str, Tensor]:
    return load(save(optimiser.state()))


def quadratic(parameter: torch.nn.Module) -> None:
    loss = sum((p**2).sum() for p in parameter.parameters())
    assert isinstance(loss, Tensor)
    loss.backward()


def test_an_optimiser_goes_on_to_the_bit() -> None:
    schedule = Schedule(0.1, warmup=4, weight_decay=0.1, max_norm=0.5)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimiser = Optimiser(model, schedule)
    other = torch.nn.Linear(3, 2)
    for update in range(6):
        if update == 2:
            other.load_state_dict(model.state_dict())
            resumed = Optimiser(other, schedule)
            resumed.load_state(weights(optimiser))
        assert optimiser.rate == pytest.approx(0.1 * min(1, (update + 1) / 4))
        quadratic(model)
        optimiser.step()
        if update >= 2:
            quadratic(other)
            resumed.step()
            assert torch.equal(model.weight, other.weight)
            assert torch.equal(model.bias, other.bias)


def test_an_optimiser_is_torchs_adamw() -> None:
    torch.manual_seed(0)
    model, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    optimiser = Optimiser(model, Schedule(0.1, weight_decay=0.1, max_norm=1e9))
    adam = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        quadratic(model)
        quadratic(twin)
        norm = optimiser.step()
        assert norm == pytest.approx(
            float(sum((p.grad**2).sum() for p in twin.parameters() if p.grad is not None)) ** 0.5
        )
        adam.step()
        adam.zero_grad()
    assert torch.equal(model.weight, twin.weight)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = torch.nn.Linear(2, 1)
    optimiser = Optimiser(model, Schedule(0.1))
    before = model.weight.clone()
    model.weight.grad = torch.tensor([[float("nan"), 1.0]])
    assert not math.isfinite(optimiser.step())
    assert optimiser.updates == 0
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


def test_another_models_state_is_named() -> None:
    model = torch.nn.Linear(3, 2)
    optimiser = Optimiser(model, Schedule(0.1))
    quadratic(model)
    optimiser.step()
    state = weights(optimiser)
    with pytest.raises(CheckpointError, match=r"shape \[2, 3\], the parameter \[5, 3\]"):
        Optimiser(torch.nn.Linear(3, 5), Schedule(0.1)).load_state(state)
    with pytest.raises(CheckpointError, match="has 'bias/exp_avg', the model has not"):
        Optimiser(torch.nn.Linear(3, 2, bias=False), Schedule(0.1)).load_state(state)
    del state["bias/exp_avg"]
    with pytest.raises(CheckpointError, match="lacks 'bias/exp_avg'"):
        Optimiser(torch.nn.Linear(3, 2), Schedule(0.1)).load_state(state)


def test_models_are_saved_as_they_are(folder: Path, tmp_path: Path) -> None:
    policy, value = load_pair(folder)
    for model in (policy, value):
        for parameter in model.parameters():
            parameter.data.mul_(1.0 + 2**-20)  # beyond bfloat16
    policy.save(tmp_path / "policy")
    value.save(tmp_path / "value")
    pairs: list[tuple[torch.nn.Module, torch.nn.Module]] = [
        (policy, Policy.load(tmp_path / "policy")),
        (value, ValueModel.load(tmp_path / "value")),
    ]
    for saved, loaded in pairs:
        for own, other in zip(saved.parameters(), loaded.parameters(), strict=True):
            assert torch.equal(own, other)
    (tmp_path / "value" / HEAD_FILE).write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="is no head of this value model"):
        ValueModel.load(tmp_path / "value")


def test_a_value_model_of_another_vocabulary_is_named(folder: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", vocab_size=200)
    policy, value = Policy.load(folder), ValueModel.load(other)
    check_pair(policy, ValueModel.load(folder))
    with pytest.raises(ModelError, match="vocabulary of 200 tokens, the policy one of 160"):
        check_pair(policy, value)
    with pytest.raises(ModelError, match=r"transformers can't load .*/nowhere for training"):
        Policy.load(tmp_path / "nowhere")


def learned(folder: Path, **compute: object) -> tuple[dict[str, Tensor], Metrics, int]:
    """The policy's and the value model's weights after an update, what was seen, and how often a
    layer of the policy was computed."""
    values = {
        "model": "unused",
        "data": {"train": "unused"},
        "reward": {"function": "unused"},
        "run": {"output": "unused"},
        "optimiser": {"policy_rate": RATE, "value_rate": RATE},
        "compute": compute,
    }
    learner = Learner(TrainConfig.of(values), folder, folder)
    computed: list[object] = []
    layer = learner.policy.model.model.layers[0].self_attn
    layer.register_forward_hook(lambda *given: computed.append(given))
    metrics = learner.learn(policy_rows(), rows_of_values())
    assert learner.value_model is not None
    models = torch.nn.ModuleList([learner.policy, learner.value_model])
    return dict(models.named_parameters()), metrics, len(computed)


def test_activations_that_are_computed_again_change_nothing(folder: Path) -> None:
    kept, metrics, once = learned(folder)
    again, other, twice = learned(folder, checkpointing=True)
    assert (once, twice) == (1, 2)
    assert other == metrics
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_bfloat16_computes_above_float32_weights(folder: Path) -> None:
    exact, metrics, _ = learned(folder)
    rounded, other, _ = learned(folder, dtype="bfloat16")
    assert all(weight.dtype == torch.float32 for weight in rounded.values())
    assert other != metrics
    for name in ("policy/log_ratio", "value/loss"):
        assert other[name] == pytest.approx(metrics[name], rel=0.05)
    moved = torch.cat([(exact[name] - rounded[name]).abs().flatten() for name in exact])
    assert (moved > RATE).float().mean() < 0.1


@pytest.mark.parametrize(
    ("family", "variant", "settings"),
    [
        ("mixtral", "gqa", {"router_jitter_noise": 0.5, "attention_dropout": 0.5}),
        ("phimoe", "plain", {"input_jitter_noise": 0.5}),
        ("dbrx", "gqa_clip", {"resid_pdrop": 0.5}),
    ],
)
def test_activations_that_are_computed_again_leave_nothing_to_chance(
    tmp_path: Path, family: str, variant: str, settings: dict[str, object]
) -> None:
    folder = write_checkpoint(family, variant, tmp_path, **settings)
    policy, again = Policy.load(folder), Policy.load(folder)
    checkpoint_activations(again)
    assert torch.equal(policy.logprobs(policy_rows()), again.logprobs(policy_rows()))


def test_values_are_float32_where_bfloat16_computes(folder: Path) -> None:
    _, value = load_pair(folder)
    with torch.no_grad(), Passes(dtype=torch.bfloat16).computing(torch.device("cpu")):
        values = value.values(rows_of_values())
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


@pytest.mark.parametrize("kind", [Policy, ValueModel])
def test_weights_that_arent_whole_are_refused(
    tmp_path: Path, kind: type[Policy] | type[ValueModel]
) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    whole = tensors.pop(name)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors that .*, such as .*q_proj\.weight"):
        kind.load(tmp_path)
    save_file({**tensors, name: whole[:-1].clone()}, path, {"format": "pt"})
    with pytest.raises(ModelError, match="transformers can't load"):
        kind.load(tmp_path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ModelError, match="transformers can't load"):
        kind.load(tmp_path)
