"""How a token's experts are chosen and weighted."""

from dataclasses import dataclass
from enum import StrEnum

from megainfer.errors import ModelError


class RouterScore(StrEnum):
    """What an expert's score is, of its logit."""

    SOFTMAX = "softmax"  # over all experts
    SIGMOID = "sigmoid"
    SQRT_SOFTPLUS = "sqrt_softplus"  # sqrt(ln(1 + e^x)), DeepSeek-V4
    LOGIT = "logit"  # the logit itself; the chosen ones' weights are a softmax over them alone
    SPARSEMIXER = "sparsemixer"  # GRIN, Liu et al., 2024: see `RouterSpec.jitter`
    CONSTANT = "constant"  # no router at all: every expert, weight 1


class GroupScore(StrEnum):
    """What a group of experts is ranked by."""

    MAX = "max"  # its best expert
    TOP2_SUM = "top2_sum"  # the sum of its best two


@dataclass(frozen=True, slots=True)
class ExpertGroups:
    """Experts are chosen only from the best `kept` of `count` equal groups of neighbours."""

    count: int
    kept: int
    score: GroupScore


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """logits = router . hidden (+ bias); scores of them; the best `top_k` scores; their weights.

    normalise: the chosen weights are divided by their sum. rounded: they are then rounded to the
    model's dtype (no difference in float32). bias: of the logits. selection_bias: added to the
    scores when choosing, groups included, but not part of the weight. epsilon: added to the sum
    that weights are divided by; least_sum: which is at least this. scale: the weights are
    multiplied with it at the end. jitter: of the sparsemixer: an expert enters a choice's softmax
    when its logit is within 2 * jitter of the best, relative to the larger of |logit| and the best.
    hashed: experts are looked up by token id in a table [V, K]; logits give the weights only.
    wide: the router is kept and logits are computed in float32, whatever the model's dtype.
    """

    num_experts: int
    top_k: int
    normalise: bool
    rounded: bool
    score: RouterScore = RouterScore.SOFTMAX
    bias: bool = False
    selection_bias: bool = False
    groups: ExpertGroups | None = None
    epsilon: float = 0.0
    least_sum: float = 0.0
    scale: float = 1.0
    jitter: float = 0.0
    hashed: bool = False
    wide: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ModelError(
                f"num_experts_per_tok is {self.top_k}, but the model has {self.num_experts} experts"
            )
        if self.groups is not None:
            self._check_groups(self.groups)
        if self.score is RouterScore.SPARSEMIXER and self.top_k != 2:
            raise ModelError(f"the sparsemixer chooses 2 experts, not {self.top_k}")
        if self.score is RouterScore.CONSTANT and self.top_k != self.num_experts:
            raise ModelError(f"without a router all {self.num_experts} experts are chosen")

    def _check_groups(self, groups: ExpertGroups) -> None:
        if groups.count < 1 or self.num_experts % groups.count:
            raise ModelError(f"n_group {groups.count} does not divide {self.num_experts} experts")
        size = self.num_experts // groups.count
        if not 1 <= groups.kept <= groups.count or groups.kept * size < self.top_k:
            raise ModelError(
                f"topk_group is {groups.kept} of {groups.count} groups of {size} experts, too few "
                f"for {self.top_k} experts a token or more than there are"
            )
        if groups.score is GroupScore.TOP2_SUM and size < 2:
            raise ModelError(
                f"n_group {groups.count} leaves groups of one expert, which has no top two"
            )
