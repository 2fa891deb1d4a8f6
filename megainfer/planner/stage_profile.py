"""What all nodes measured of their stages before they serve, for the choice of m."""

from collections.abc import Sequence

from megainfer.messages.from_child import Connected, Loaded
from megainfer.messages.message import Role
from megainfer.planner.micro_batches import MicroBatchChoice
from megainfer.planner.profiles import Curve, StageProfile


def slowest_profile(
    loaded: Sequence[tuple[Role, Loaded]], connected: Sequence[Connected], spin_seconds: float
) -> StageProfile:
    """The slowest of each role sets the pace, so the profile holds the maxima.

    loaded: of each node. connected: of each attention node. spin_seconds: for how long nodes look
    for messages before they sleep.
    """
    attention, experts = (
        _slowest([message.stage_seconds for own, message in loaded if own is role])
        for role in (Role.ATTENTION, Role.EXPERT)
    )
    awake = _slowest([message.transfer_seconds for message in connected])
    waking = max(message.waking_seconds for message in connected)
    # Whoever waits for a stage that is longer than it may look has to be woken.
    transfer = Curve(
        tuple(
            (rows, seconds + waking * (experts.at(rows) > spin_seconds))
            for rows, seconds in awake.points
        )
    )
    return StageProfile(attention, experts, transfer)


def _slowest(curves: Sequence[Sequence[tuple[int, float]]]) -> Curve:
    points = zip(*curves, strict=True)
    return Curve(tuple((at[0][0], max(seconds for _, seconds in at)) for at in points))


def explain(choice: MicroBatchChoice) -> str:
    """Why this m, in a line."""
    options = ", ".join(f"{p.micro_batches}: {p.throughput:.0f} rows/s" for p in choice.predictions)
    best = choice.predictions[choice.micro_batches - 1]
    return (
        f"{choice.micro_batches} micro-batches: measured a layer T_a {best.t_a * 1e3:.2f} ms, "
        f"T_e {best.t_e * 1e3:.2f} ms, T_c {best.t_c * 1e3:.2f} ms at {best.rows:.0f} rows; "
        f"predicted by micro-batches {options}"
    )
