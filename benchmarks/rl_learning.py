"""What T-PPO, PPO and GRPO learn of a task with answers of uneven length, and what it takes.

    python benchmarks/rl_learning.py --folder runs/learning --json results.jsonl --plot curves.png
    python benchmarks/rl_learning.py --folder runs/learning --arms ppo,tppo --seeds 0,1,2

A small Mixture-of-Experts model is warmed up by demonstrations with mistakes, then trained by each
arm from the same weights; attention and expert nodes draw the answers. What is in the folder
already isn't done again.
"""

import argparse
import json
import sys
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from learning.arms import ARMS, Size, config_of
from learning.curves import curve, summary
from learning.picture import draw
from learning.seeds import told
from learning.task import Task
from learning.warm_up import warm_up
from measures import hardware

from megainfer.commands.plan.model import stages_of
from megainfer.commands.plan.options import WeightOptions
from megainfer.commands.plan.values import parse_inventory
from megainfer.planner.hardware import load_devices
from megainfer.planner.search.space import Space
from megainfer.rl.rollout.disaggregated import DisaggregatedEngine
from megainfer.rl.run.metrics_file import METRICS
from megainfer.rl.run.run import Run
from megainfer.rl.simulation.comparison import Machines
from megainfer.rl.simulation.engine import PlannedEngine
from megainfer.rl.simulation.setting import Setting

TRAINED = 4096
MODEL, GPUS, TP = "mixtral-8x22b", "H800:16", 4
"""By whose times rollouts are counted too."""


def train(arm: str, options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The metrics of its steps; of one that is there already as they were written."""
    folder = options.folder / f"{arm}-{seed}"
    size = Size(**{field.name: getattr(options, field.name) for field in fields(Size)})
    config, file = config_of(arm, Task(options.longest), size, folder, seed), folder / METRICS
    if len(written(file)) < config.run.steps:
        run = Run(
            config,
            resume=any(folder.glob("checkpoints/step-*")),
            open_engine=lambda model: DisaggregatedEngine(model, config.rollout.engine),
            show=lambda step, report: None,
            say=lambda text: None,
        )
        with closing(run):
            run.steps()
    return written(file)


def written(file: Path) -> list[dict[str, Any]]:
    """Of a run's steps so far, in order."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def prepare(options: argparse.Namespace) -> dict[str, float]:
    """Problems, and the model that all begin with: how good that is. What is there already
    stays."""
    folder, task = options.folder, Task(options.longest)
    folder.mkdir(parents=True, exist_ok=True)
    task.write_problems(folder / "train.jsonl", TRAINED, seed=1)
    held_out = task.write_problems(folder / "held-out.jsonl", options.held_out, seed=2)
    known = folder / "warm-up.json"
    if not known.exists():
        found = warm_up(folder / "model", task, options.warm_up, options.sloppy, 0, held_out)
        known.write_text(json.dumps(found))
    start: dict[str, float] = json.loads(known.read_text())
    print("warmed up:", "  ".join(f"{name} {value:.3g}" for name, value in start.items()))
    return start


def gpus() -> PlannedEngine:
    """Of the size of the paper's, for which windows are made."""
    inventory = parse_inventory(GPUS, load_devices(None))
    machines = Machines(stages_of(MODEL, WeightOptions()), inventory, Space(tps=(TP,)))
    return machines.engine(Setting())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of runs; goes on with them")
    parser.add_argument("--arms", default="ppo,tppo", help=",".join(ARMS))
    parser.add_argument("--seeds", default="0")
    for field in fields(Size):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--longest", type=int, default=Task().longest, help="digits of a problem")
    parser.add_argument("--held-out", type=int, default=256, help="problems of an evaluation")
    parser.add_argument("--warm-up", type=int, default=700, help="updates of it")
    parser.add_argument("--sloppy", type=float, default=0.3, help="share of wrong sums in them")
    parser.add_argument("--threads", type=int, default=1, help="of training")
    parser.add_argument("--json", type=Path, help="a line a run: its curve and summary")
    parser.add_argument("--plot", type=Path, help="a picture of the curves")
    return parser.parse_args()


def main() -> None:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options = parsed()
    torch.set_num_threads(options.threads)
    print(hardware())
    start = prepare(options)
    runs, engine = list[dict[str, Any]](), gpus()
    for seed in map(int, options.seeds.split(",")):
        for arm in options.arms.split(","):
            rows = train(arm, options, seed)
            points = curve(rows, start, engine)
            run = {"hardware": hardware(), "command": " ".join(sys.argv), "arm": arm, "seed": seed}
            runs.append({**run, "summary": summary(rows, points), "curve": points})
            print(f"{arm} seed {seed} is done", flush=True)
            if options.json is not None:
                options.json.write_text("".join(f"{json.dumps(run)}\n" for run in runs))
    print(*told(runs), sep="\n")
    if options.plot is not None:
        draw(options.plot, runs)


if __name__ == "__main__":
    main()
