"""Training whose rollouts run on attention and expert nodes."""

import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import yaml

from megainfer.errors import ConfigError
from megainfer.rl.rollout.disaggregated import DisaggregatedEngine
from megainfer.rl.rollout.engine import Context, Drawn
from megainfer.rl.samples.rows import PolicyRow
from megainfer.rl.training.models import Policy
from tests.support.forked import TRAINING, importing
from tests.support.rl_engine import TransformersEngine
from tests.support.rl_models import END_TOKEN, write_problems, write_text_model
from tests.support.served import run_cli

OPTIONS = {"micro_batches": 1, "max_model_len": 64}
CONTEXTS = [Context([70 + i, 80, 90 + 3 * i], 12, seed=i) for i in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[DisaggregatedEngine]:
    with closing(DisaggregatedEngine(folder, OPTIONS)) as opened:
        yield opened


def trainers_logprobs(policy: Policy, drawn: list[Drawn]) -> list[float]:
    rows = [
        PolicyRow(
            [*c.token_ids, *d.token_ids],
            range(3, 3 + len(d.token_ids)),
            (),
            (),
            routing=d.routing,
        )
        for c, d in zip(CONTEXTS, drawn, strict=True)
    ]
    with torch.no_grad():
        return policy.logprobs(rows).tolist()


def test_nodes_draw_as_the_protocol_says(
    folder: Path, engine: DisaggregatedEngine, tmp_path: Path
) -> None:
    """Log-probabilities are the trainer's own, of the weights of the time; answers go on in
    windows; an end token is part of its answer."""
    assert list(engine.end_tokens) == [END_TOKEN]
    policy = Policy.load(folder)
    drawn = engine.draw(CONTEXTS)
    told = [logprob for each in drawn for logprob in each.logprobs]
    assert told == pytest.approx(trainers_logprobs(policy, drawn), abs=1e-4)

    halves = [Context(c.token_ids, 5, c.seed) for c in CONTEXTS]
    firsts = engine.draw(halves)
    rests = engine.draw(
        [
            Context([*c.token_ids, *first.token_ids], 7, c.seed)
            for c, first in zip(CONTEXTS, firsts, strict=True)
        ]
    )
    for whole, first, rest in zip(drawn, firsts, rests, strict=True):
        if len(whole.token_ids) > 5:
            assert [*first.token_ids, *rest.token_ids] == list(whole.token_ids)

    with torch.no_grad():
        policy.model.lm_head.weight[END_TOKEN] += 0.5 * policy.model.lm_head.weight.std()
        policy.model.lm_head.weight.mul_(1.5)
    policy.save(tmp_path / "new")
    engine.update_weights(tmp_path / "new")
    again = engine.draw(CONTEXTS)
    told = [logprob for each in again for logprob in each.logprobs]
    assert told == pytest.approx(trainers_logprobs(policy, again), abs=1e-4)
    assert [d.token_ids for d in again] != [d.token_ids for d in drawn]
    engine.update_weights(folder)


def test_windows_go_on_from_stale_keys(
    folder: Path, engine: DisaggregatedEngine, tmp_path: Path
) -> None:
    begun = [Context([*range(70 + i, 100 + i)], 4, seed=i) for i in range(6)]
    firsts = engine.draw(begun)
    policy = Policy.load(folder)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.5)  # keys and values stay what they were
    policy.save(tmp_path / "new")
    engine.update_weights(tmp_path / "new")
    longer = [
        Context([*c.token_ids, *first.token_ids], 8, c.seed, stale_prefix=True)
        for c, first in zip(begun, firsts, strict=True)
    ]
    kept = engine.draw(longer)
    assert [drawn.stale for drawn in kept] == [32 if len(c.token_ids) > 33 else 16 for c in longer]
    again = engine.draw([replace(context, stale_prefix=False) for context in longer])
    assert [drawn.stale for drawn in again] == [0] * len(again)
    assert [drawn.token_ids for drawn in again] == [drawn.token_ids for drawn in kept]
    engine.update_weights(folder)


def test_the_policy_replays_what_the_nodes_chose(folder: Path) -> None:
    """Exactly the same experts for every token, and log-probabilities that agree to rounding."""
    policy = Policy.load(folder)
    policy.replay_routing()
    with closing(DisaggregatedEngine(folder, OPTIONS, routing=True)) as engine:
        drawn = engine.draw(CONTEXTS)
        (untold,) = engine.draw(CONTEXTS[:1], greedy=True)
    assert untold.routing is None
    told = [logprob for each in drawn for logprob in each.logprobs]
    assert all(d.routing is not None for d in drawn)
    assert told == pytest.approx(trainers_logprobs(policy, drawn), abs=1e-5)
    for context, one in zip(CONTEXTS, drawn, strict=True):
        tokens = [*context.token_ids, *one.token_ids][:-1]
        own = gates_choose(policy, tokens)
        assert one.routing is not None
        ids = torch.frombuffer(bytearray(one.routing.ids), dtype=torch.int16).view(own.shape)
        assert torch.equal(ids.sort(-1).values.long(), own.sort(-1).values)


def gates_choose(policy: Policy, tokens: list[int]) -> torch.Tensor:
    """[tokens, layers, top_k] by transformers alone."""
    found: list[torch.Tensor] = []
    gates = [m for m in policy.model.modules() if type(m).__name__ == "MixtralTopKRouter"]
    hooks = [g.register_forward_hook(lambda m, given, out: found.append(out[-1])) for g in gates]
    with torch.no_grad():
        policy.logprobs([PolicyRow([*tokens, 0], range(1, 2), (), ())])
    for hook in hooks:
        hook.remove()
    return torch.stack(found, 1)[: len(tokens)]


def test_a_greedy_answer_is_transformers(folder: Path, engine: DisaggregatedEngine) -> None:
    found = engine.draw(CONTEXTS, greedy=True)
    expected = TransformersEngine(folder).draw(CONTEXTS, greedy=True)
    assert [list(d.token_ids) for d in found] == [list(d.token_ids) for d in expected]


def test_an_end_token_ends_and_is_told(folder: Path, tmp_path: Path) -> None:
    """Of a model that soon says it."""
    policy = Policy.load(folder)
    policy.model.lm_head.weight.data.zero_()  # every token alike: one in some 360 is an end
    policy.save(tmp_path / "flat")
    with closing(DisaggregatedEngine(folder, OPTIONS)) as engine:
        engine.update_weights(tmp_path / "flat")
        contexts = [Context([70], 60, seed=i) for i in range(64)]
        drawn = engine.draw(contexts)
    short = [d for d in drawn if len(d.token_ids) < 60]
    assert short
    assert all(d.token_ids[-1] == END_TOKEN for d in short)
    vocabulary = policy.vocab_size
    assert all(p == pytest.approx(-math.log(vocabulary)) for d in drawn for p in d.logprobs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "x"}, r"rollout\.engine can't set 'model': the run does"),
        ({"attention": 2}, r"rollout\.engine: .*'attention'"),
        ({"attn_gpus": 0}, "attn"),
        ({"enable_return_routed_experts": True}, "can't set 'enable_return"),
    ],
)
def test_options_that_cant_be_are_named(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        DisaggregatedEngine(folder, options)


def trained(*words: str) -> CompletedProcess[str]:
    """`megainfer rl train` to its end."""
    with importing(*TRAINING):
        return run_cli("rl", "train", *words)


def test_the_command_trains_and_goes_on(folder: Path, tmp_path: Path) -> None:
    problems = write_problems(tmp_path / "problems.jsonl")
    config = {
        "model": str(folder),
        "data": {"train": str(problems), "max_prompt_tokens": 16},
        "rollout": {
            "prompts": 2,
            "answers": 4,
            "max_answer_tokens": 12,
            "window": 4,
            "engine": {**OPTIONS, "ffn-gpus": 2},
        },
        "reward": {"function": "tests.support.rl_rewards:letters", "seconds": 60},
        "advantage": {"edge": 1},
        "optimiser": {"policy_rate": 1e-3, "value_rate": 1e-3, "value_first": 1},
        "run": {"output": str(tmp_path / "run"), "save_every": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    first = trained(str(path), "--run.steps", "2")
    assert first.returncode == 0, first.stderr
    assert "step 2/2" in first.stdout
    refused = trained(str(path))
    assert refused.returncode == 2
    assert "--resume goes on with it" in refused.stderr
    more = trained(str(path), "--resume", "--run.steps", "4")
    assert more.returncode == 0, more.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["policy/mismatch"] < 1e-4 for row in rows[1:])
    assert rows[-1]["answers/finished"] > 0
