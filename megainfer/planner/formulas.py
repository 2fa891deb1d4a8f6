"""What the ping-pong order costs: the formulas of MegaScale-Infer (arXiv 2504.02263).

In its letters: T_a and T_e are the seconds that one micro-batch takes in one layer on an attention
node and on an expert node, T_c the seconds of one transfer in one direction, T_f = max(T_a, T_e), m
the number of micro-batches, L the number of layers. See docs/pipeline.md.
"""

import math

from megainfer.errors import ConfigError

# A relative error that sums of a few floats may have, and no measured time is exact to.
ROUNDING = 1e-9
ENOUGH_MICRO_BATCHES = 4
"""More are served, and never expected to bring more: T_a + T_e + 2 T_c <= 4 max(T_a, T_e, T_c), so
that with four the busiest of both roles and one direction of the network never waits for a round
trip; cutting a batch further only adds what stages take however few their rows."""


def min_micro_batches(t_f: float, t_c: float) -> int:
    """The least m for which nobody stalls: m T_f >= 2 (T_f + T_c). Times in seconds, t_f > 0.

    A condition, not the rule for choosing m: see `micro_batches.choose_micro_batches`.
    """
    if not (t_f > 0 and t_c >= 0):
        raise ConfigError(f"stage times must be t_f > 0 and t_c >= 0 seconds, got {t_f} and {t_c}")
    return math.ceil(2 * (1 + t_c / t_f) * (1 - ROUNDING))


def layer_period(t_a: float, t_e: float, t_c: float, m: int) -> float:
    """Seconds between two layers of one micro-batch: max(m T_f, T_a + T_e + 2 T_c).

    The busier side sets the pace, unless there are too few micro-batches to keep it busy; then
    the round trip of a single one does.
    """
    return max(m * max(t_a, t_e), t_a + t_e + 2 * t_c)


def total_time(t_a: float, t_e: float, t_c: float, m: int, layers: int) -> float:
    """Seconds until all m micro-batches have passed all layers once, from a standing start.

    (T_a + T_e + 2 T_c) + T_f (m L - 1), where m T_f >= 2 (T_f + T_c).
    """
    return t_a + t_e + 2 * t_c + max(t_a, t_e) * (m * layers - 1)
