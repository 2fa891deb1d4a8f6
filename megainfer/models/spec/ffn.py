"""The feed-forward half of one layer."""

from dataclasses import dataclass
from enum import StrEnum

from megainfer.models.spec.router import RouterSpec


class Activation(StrEnum):
    """What the gate goes through."""

    SILU = "silu"  # x * sigmoid(alpha * x)
    GELU = "gelu"  # x * Phi(x), by erf
    GELU_TANH = "gelu_tanh"  # its approximation by tanh


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """inner = activation(gate) * (up + up_offset).

    limit: before that, gate is clamped to at most `limit` and up to [-limit, limit]. alpha: of
    silu.
    """

    kind: Activation = Activation.SILU
    limit: float | None = None
    alpha: float = 1.0
    up_offset: float = 0.0


SILU = ActivationSpec()


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """One gated feed-forward network for all tokens; it lives on the attention node."""

    intermediate: int
    activation: ActivationSpec = SILU


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """One routed gated expert: down(inner(gate(x), up(x))).

    bias: gate, up and down have one; down's is weighted like the rest. weight_on_input: the
    router's weight multiplies x instead of the result.
    """

    intermediate: int
    activation: ActivationSpec = SILU
    bias: bool = False
    weight_on_input: bool = False


@dataclass(frozen=True, slots=True)
class SharedExpertSpec:
    """A network that sees every token; gated: its output is scaled by sigmoid(gate . hidden)."""

    intermediate: int
    gated: bool = True
    activation: ActivationSpec = SILU


@dataclass(frozen=True, slots=True)
class MoESpec:
    """A feed-forward half whose experts live on the expert nodes."""

    router: RouterSpec
    expert: ExpertSpec
    shared: SharedExpertSpec | None = None
