"""A process that scores answers by a function that may raise, hang or die.

    python -m megainfer.rl.rewards.worker SPEC PARENT

PARENT: id of the process that asks, with which this one ends, also amid a function that hangs.

Frames on both pipes are JSON. Out, first: why SPEC can't be used, or null. In: an attempt's three
texts. Out: [reward, why there is none], one of them null.
"""

import json
import sys

from megainfer.errors import MegaInferError
from megainfer.helper_frames import answer, die_with, frames, own_pipes, set_bounds
from megainfer.rl.rewards.functions import Function, load
from megainfer.rl.rewards.score import Attempt, Score

MEMORY_BYTES = 16 * 2**30
"""Of the process: a function may load a model of its own, and no more."""
FAILURES = (Exception, SystemExit)


def main() -> None:
    """Until the other side closes the pipe."""
    die_with(int(sys.argv[2]))
    set_bounds(MEMORY_BYTES)
    source, sink = own_pipes()
    try:
        function = load(sys.argv[1])
    except MegaInferError as error:
        answer(json.dumps(str(error)).encode(), sink)
        return
    except FAILURES as error:
        said = f"reward: {sys.argv[1]!r} can't be imported: {type(error).__name__}: {error}"
        answer(json.dumps(said).encode(), sink)
        return
    answer(b"null", sink)
    for frame in frames(source):
        score = _score(function, Attempt(*json.loads(frame)))
        answer(json.dumps((score.reward, score.skipped)).encode(), sink)


def _score(function: Function, attempt: Attempt) -> Score:
    try:
        return Score.of(function(attempt))
    except FAILURES as error:
        return Score(None, f"it raised {type(error).__name__}: {error}"[:200])


if __name__ == "__main__":
    main()
