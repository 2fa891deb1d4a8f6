"""From the name of a reward to who scores by it."""

from megainfer.errors import ConfigError
from megainfer.rl.rewards.helpers import HelperReward
from megainfer.rl.rewards.rules import Rule, RuleReward, exact, numeric
from megainfer.rl.rewards.score import Reward

RULES: dict[str, Rule] = {"exact": exact, "numeric": numeric}
USAGE = "exact, numeric, math-verify, regex:PATTERN or module:function"


def open_reward(spec: str, workers: int, seconds: float) -> Reward:
    """Who scores; `spec` is one of USAGE, the rest as in HelperReward. Raises ConfigError."""
    if spec in RULES:
        return RuleReward(RULES[spec])
    kind, colon, rest = spec.partition(":")
    if spec != "math-verify" and not (kind and colon and rest):
        raise ConfigError(f"reward must be {USAGE}, not {spec!r}")
    reward = HelperReward(spec, workers, seconds)
    try:
        reward.start()
    except BaseException:
        reward.close()
        raise
    return reward
