"""A training run by however many ranks `torchrun` has started: `CONFIG.json [--resume]`."""

import json
import sys
from contextlib import closing
from pathlib import Path

from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.ranks.ranks import joined
from megainfer.rl.run.run import Run
from megainfer.rl.training.led_learner import follow
from tests.support.rl_engine import TransformersEngine

if __name__ == "__main__":
    config = TrainConfig.of(json.loads(Path(sys.argv[1]).read_text()))
    with joined(config.compute.device) as ranks:
        if not ranks.first:
            follow(config, ranks)
        else:
            resume = "--resume" in sys.argv
            run = Run(config, resume, TransformersEngine, lambda *_: None, print, ranks)
            with closing(run):
                run.steps()
