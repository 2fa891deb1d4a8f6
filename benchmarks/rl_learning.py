"""What T-PPO, PPO and GRPO learn of a task with answers of uneven length, and what it takes.

    python benchmarks/rl_learning.py --folder runs/learning
    python benchmarks/rl_learning.py --folder runs/learning --arms ppo,tppo --seeds 0,1,2

A small Mixture-of-Experts model is warmed up by demonstrations with mistakes, then trained by each
arm from the same weights, answers drawn by attention and expert nodes. A batch decodes in step, so
a training step takes as many decode steps as its longest window has tokens.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import mean
from typing import Any

from learning.task import MAX_ANSWER, write_problems
from learning.warm_up import CONTEXT, warm_up
from measures import hardware

from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.rollout.disaggregated import DisaggregatedEngine
from megainfer.rl.run.run import Run

ARMS: Mapping[str, Mapping[str, Any]] = {
    "ppo": {"algorithm": "ppo"},
    "tppo": {"algorithm": "tppo", "rollout": {"window": MAX_ANSWER // 4}},
    "tppo-half": {"algorithm": "tppo", "rollout": {"window": MAX_ANSWER // 2}},
    "tppo-cold": {
        "algorithm": "tppo",
        "rollout": {"window": MAX_ANSWER // 4},
        "optimiser": {"value_first": 0},
    },
    "grpo": {"algorithm": "grpo"},
}
"""T-PPO with l = L/4 and L/2, and without the value model's warm-up."""
SOLVED = 0.75
TRAINED = 4096


def config_of(arm: str, options: argparse.Namespace, folder: Path, seed: int) -> TrainConfig:
    """Of one run: all arms have the same but for what ARMS says."""
    decode_share = 4 if arm.startswith("tppo") else 1  # T-PPO's steps are shorter
    values: dict[str, dict[str, Any] | str] = {
        "model": str(options.folder / "model"),
        "data": {
            "train": options.folder / "train.jsonl",
            "evaluation": options.folder / "held-out.jsonl",
            "max_prompt_tokens": CONTEXT - MAX_ANSWER,
        },
        "rollout": {
            "prompts": options.prompts,
            "answers": options.answers,
            "max_answer_tokens": MAX_ANSWER,
            "engine": {"micro_batches": 1, "max_model_len": CONTEXT, "max_num_seqs": 256},
        },
        "reward": {"function": "exact"},
        "advantage": {"edge": 2},
        "optimiser": {
            "policy_rate": options.policy_rate,
            "value_rate": options.value_rate,
            "value_updates": 4,
            "value_first": options.value_first * decode_share,
        },
        "run": {
            "output": folder,
            "steps": options.steps * decode_share,
            "seed": seed,
            "evaluate_every": options.evaluate_every * decode_share,
            "save_every": 10**6,
            "keep": 1,
        },
    }
    for name, own in ARMS[arm].items():
        before = values.get(name)
        values[name] = {**before, **own} if isinstance(before, dict) else own
    return TrainConfig.of(values)


def train(arm: str, options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The metrics of its steps; of one that is there already as they were written."""
    folder = options.folder / f"{arm}-{seed}"
    config = config_of(arm, options, folder, seed)
    run = Run(
        config,
        resume=any(folder.glob("checkpoints/step-*")),
        open_engine=lambda model: DisaggregatedEngine(model, config.rollout.engine),
        show=lambda step, report: None,
        say=lambda text: None,
    )
    with closing(run):
        run.steps()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def curve(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Of each evaluation what had been spent by then."""
    points, decoded, seconds, tokens, again = [], 0.0, 0.0, 0.0, 0.0
    for row in rows:
        decoded += row["rollout/longest"]
        tokens += row["rollout/tokens"]
        again += row["rollout/context_tokens"]
        seconds += row["seconds/step"]
        if "evaluation/pass@1" in row:
            points.append(
                {
                    "step": row["step"],
                    "decode_steps": decoded,
                    "tokens": tokens,
                    "context_tokens": again,
                    "seconds": seconds,
                    "pass@1": row["evaluation/pass@1"],
                    "greedy": row["evaluation/greedy"],
                }
            )
    return points


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How good at the end (mean of the last three evaluations), and what it took to be SOLVED."""
    points = curve(rows)
    first = next((point for point in points if point["pass@1"] >= SOLVED), None)
    occupied = sum(row["rollout/tokens"] for row in rows)
    places = sum(
        row["rollout/longest"] * (row["answers/finished"] + row["answers/unfinished"])
        for row in rows
    )
    return {
        "pass@1": mean(point["pass@1"] for point in points[-3:]),
        "greedy": mean(point["greedy"] for point in points[-3:]),
        "decode_steps_to_solved": first and first["decode_steps"],
        "seconds_to_solved": first and first["seconds"],
        "occupancy": occupied / places,
        "engine_idle": mean(row["idle/engine"] for row in rows),
        "mismatch": mean(row["policy/mismatch"] for row in rows if "policy/mismatch" in row),
    }


def prepare(options: argparse.Namespace) -> None:
    """Problems, and the model that all begin with; what is there already stays."""
    options.folder.mkdir(parents=True, exist_ok=True)
    write_problems(options.folder / "train.jsonl", TRAINED, seed=1)
    write_problems(options.folder / "held-out.jsonl", options.held_out, seed=2)
    if not (options.folder / "model" / "config.json").exists():
        seconds = warm_up(options.folder / "model", options.warm_up, options.sloppy, seed=0)
        print(f"warmed up by {options.warm_up} updates in {seconds:.0f} s")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of runs; goes on with them")
    parser.add_argument("--arms", default="ppo,tppo", help=",".join(ARMS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=60, help="of ppo; tppo has four times as many")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=256, help="problems of an evaluation")
    parser.add_argument("--warm-up", type=int, default=1000)
    parser.add_argument("--sloppy", type=float, default=0.2)
    parser.add_argument("--policy-rate", type=float, default=1e-4)
    parser.add_argument("--value-rate", type=float, default=1e-3)
    parser.add_argument("--value-first", type=int, default=5, help="steps; tppo: as --steps")
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all curves and summaries")
    return parser.parse_args()


def main() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options = parsed()
    print(hardware())
    prepare(options)
    report: dict[str, Any] = {"hardware": hardware(), "arms": {}}
    for arm in options.arms.split(","):
        for seed in map(int, options.seeds.split(",")):
            rows = train(arm, options, seed)
            found = summary(rows)
            report["arms"][f"{arm}-{seed}"] = {"summary": found, "curve": curve(rows)}
            told = "  ".join(f"{n} {v:.3g}" for n, v in found.items() if v is not None)
            print(f"{arm} seed {seed}: {told}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
