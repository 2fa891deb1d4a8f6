"""The trade between all users' tokens and one user's, as an SVG that needs no library."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from megainfer.planner.search.planning import Front
from megainfer.planner.search.prediction import Prediction
from megainfer.planner.search.workload import Objective

WIDTH, HEIGHT = 760, 470
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 46, 56
APART, TOGETHER = "#1f6feb", "#d1651b"
UNITS = {
    Objective.GPU: "tokens/s a GPU",
    Objective.COST: "tokens/s a unit of price (L20 = 1)",
    Objective.WATT: "tokens/s a watt",
}


def svg(front: Front, objective: Objective, title: str) -> str:
    """Both fronts: x tokens/s of one user, y tokens/s by what was asked for."""
    by = objective.beside_speed
    points = {
        (name, colour): [(plan.per_user, plan.value(by), _told(plan)) for plan in plans]
        for name, colour, plans in (
            ("apart", APART, front.apart),
            ("colocated", TOGETHER, front.together),
        )
    }
    every = [point for own in points.values() for point in own]
    most_x = max((x for x, _, _ in every), default=1.0) * 1.05
    most_y = max((y for _, y, _ in every), default=1.0) * 1.05
    axes = _Axes(most_x, most_y)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-size="16">{escape(title)}</text>',
        *axes.lines("tokens/s a user", UNITS[by]),
    ]
    for place, ((name, colour), own) in enumerate(points.items()):
        lines += axes.curve(own, colour)
        y = TOP + 16 + 20 * place
        lines.append(
            f'<rect x="{WIDTH - 150}" y="{y - 9}" width="12" height="12" fill="{colour}"/>'
        )
        lines.append(f'<text x="{WIDTH - 132}" y="{y + 2}">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


class _Axes:
    """From 0 to these values."""

    def __init__(self, most_x: float, most_y: float) -> None:
        self.most_x, self.most_y = most_x, most_y

    def at(self, x: float, y: float) -> tuple[float, float]:
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + across * x / self.most_x, HEIGHT - BOTTOM - up * y / self.most_y

    def lines(self, x_label: str, y_label: str) -> Iterator[str]:
        for value in ticks(self.most_x):
            x, y = self.at(value, 0)
            yield f'<path d="M{x:.1f} {y:.1f}V{TOP}" stroke="#e3e3e3"/>'
            yield f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{value:g}</text>'
        for value in ticks(self.most_y):
            x, y = self.at(0, value)
            yield f'<path d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}" stroke="#e3e3e3"/>'
            yield f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        corner = f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"
        yield f'<path d="{corner}" stroke="black" fill="none"/>'
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>'
        height = (TOP + HEIGHT - BOTTOM) / 2
        yield (
            f'<text transform="translate(18 {height}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )

    def curve(self, points: Sequence[tuple[float, float, str]], colour: str) -> Iterator[str]:
        places = [self.at(x, y) for x, y, _ in points]
        if len(places) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            yield f'<path d="M{path}" stroke="{colour}" stroke-width="2" fill="none"/>'
        for (x, y), (_, _, told) in zip(places, points, strict=True):
            yield (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
                f"<title>{escape(told)}</title></circle>"
            )


def ticks(most: float) -> list[float]:
    """Round values from 0 on, 3 to 7 of them.

    >>> ticks(21.0)
    [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    size = 10.0 ** math.floor(math.log10(most))
    step = next(size * part for part in (0.2, 0.5, 1.0, 2.0) if most / (size * part) <= 6)
    return [round(i * step, 12) for i in range(math.floor(most / step) + 1)]


def _told(plan: Prediction) -> str:
    return (
        f"{plan.deployment.describe()}: {plan.per_user:.3g} tokens/s a user, "
        f"{plan.per_gpu:.4g} a GPU, {plan.tpot_seconds * 1e3:.3g} ms between tokens"
    )
