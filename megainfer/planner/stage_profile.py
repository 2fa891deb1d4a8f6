"""What all nodes measured of their stages while they loaded, for the choice of m."""

from megainfer.messages import Loaded, Role
from megainfer.planner.micro_batches import MicroBatchChoice
from megainfer.planner.profiles import Curve, StageProfile


def slowest_profile(loaded: list[tuple[Role, Loaded]]) -> StageProfile:
    """The slowest of each role sets the pace, so the profile holds the maxima."""
    attention = [message.stage_seconds for role, message in loaded if role is Role.ATTENTION]
    experts = [message for role, message in loaded if role is Role.EXPERT]
    return StageProfile(
        _slowest(attention),
        _slowest([message.stage_seconds for message in experts]),
        _slowest([message.transfer_seconds for message in experts]),
    )


def _slowest(curves: list[list[tuple[int, float]]]) -> Curve:
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
