"""Charts of the report as SVG: no library, no script, readable in light and dark."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from ray_apps.evaluate.bootstrap import Estimate
from ray_apps.evaluate.figures import PairFigures
from ray_apps.evaluate.ratings import Rating

COLOURS = ("#3b6fb6", "#d1702b", "#3f9d63", "#a4549e", "#8a7a2f", "#c4465a")
WON, TIED, LOST = "#3f9d63", "#b9bec8", "#c4465a"


def colour(number: int) -> str:
    """Of the model of that number."""
    return COLOURS[number % len(COLOURS)]


def radar(categories: Sequence[str], values: Mapping[str, Sequence[float | None]], top: float = 10.0) -> str:
    """Mean scores of models by category, from 0 in the middle to `top` at the rim; three categories at least."""
    width, size, radius = 560, 440, 150
    middle, across = size / 2, width / 2
    angles = [2 * math.pi * number / len(categories) - math.pi / 2 for number in range(len(categories))]

    def point(angle: float, share: float) -> str:
        return f"{across + radius * share * math.cos(angle):.1f},{middle + radius * share * math.sin(angle):.1f}"

    rings = "".join(
        f'<polygon class="grid" points="{" ".join(point(angle, share) for angle in angles)}"/>'
        for share in (0.25, 0.5, 0.75, 1.0)
    )
    out = radius + 16
    labels = "".join(
        f'<text x="{across + out * math.cos(angle):.0f}" y="{middle + out * math.sin(angle) + 4:.0f}" '
        f'text-anchor="{_anchor(math.cos(angle))}">{escape(name)}</text>'
        for name, angle in zip(categories, angles, strict=True)
    )
    shapes = "".join(
        f'<polygon fill="{colour(number)}" fill-opacity=".12" stroke="{colour(number)}" stroke-width="2" points="'
        + " ".join(point(angle, (value or 0) / top) for angle, value in zip(angles, found, strict=True))
        + f'"><title>{escape(model)}</title></polygon>'
        for number, (model, found) in enumerate(values.items())
    )
    return _svg(width, size, "Mean scores by category", rings + shapes + labels)


def _anchor(cosine: float) -> str:
    return "middle" if abs(cosine) < 0.2 else "start" if cosine > 0 else "end"


def outcomes(rows: Sequence[PairFigures]) -> str:
    """Won, tied and lost of each category as one bar."""
    height, width, left = 26, 620, 150
    bars = []
    for number, row in enumerate(rows):
        total, at, y = row.wins + row.ties + row.losses, float(left), number * height + 4
        bars.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(row.category or "all")}</text>')
        for name, count, fill in (("won", row.wins, WON), ("tied", row.ties, TIED), ("lost", row.losses, LOST)):
            length = (width - left - 10) * count / total if total else 0.0
            bars.append(
                f'<rect x="{at:.1f}" y="{y}" width="{length:.1f}" height="18" fill="{fill}">'
                f"<title>{count} {name}</title></rect>"
            )
            if length > 18:
                bars.append(
                    f'<text class="on" x="{at + length / 2:.1f}" y="{y + 14}" text-anchor="middle">{count}</text>'
                )
            at += length
    return _svg(width, len(rows) * height + 8, "Won, tied and lost by category", "".join(bars))


def heat_map(models: Sequence[str], rates: Mapping[tuple[str, str], tuple[float, int]]) -> str:
    """How much of its comparisons the row's model won against the column's, a tie being half."""
    cell, left, top = 70, 150, 90
    parts = []
    for number, name in enumerate(models):
        parts.append(f'<text x="{left - 8}" y="{top + cell * number + 40}" text-anchor="end">{escape(name)}</text>')
        x = left + cell * number + 35
        parts.append(f'<text x="{x}" y="{top - 8}" transform="rotate(-35 {x} {top - 8})">{escape(name)}</text>')
    for i, one in enumerate(models):
        for j, other in enumerate(models):
            found = rates.get((one, other))
            if found is None:
                continue
            fill = WON if found[0] >= 0.5 else LOST
            x, y = left + cell * j, top + cell * i
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" fill="{fill}" '
                f'fill-opacity="{0.15 + 1.6 * abs(found[0] - 0.5):.2f}"><title>{escape(one)} against {escape(other)}: '
                f'{found[0]:.0%} of {found[1]}</title></rect><text x="{x + cell / 2 - 1}" y="{y + 39}" '
                f'text-anchor="middle">{found[0]:.0%}</text>'
            )
    return _svg(left + cell * len(models) + 70, top + cell * len(models), "Pairwise win rates", "".join(parts))


def whiskers(ratings: Sequence[Rating]) -> str:
    """Ratings with their bounds."""
    return intervals([(one.model, Estimate(one.rating, one.low, one.high)) for one in ratings], "Ratings", "{:.0f}")


def intervals(rows: Sequence[tuple[str, Estimate]], title: str, form: str = "{:.2f}") -> str:
    """Figures as points with their bounds, on one scale."""
    low, high = min(one.low for _, one in rows), max(one.high for _, one in rows)
    room = (high - low or 1.0) * 0.08
    low, high, left, width, height = low - room, high + room, 150, 620, 28

    def x(value: float) -> float:
        return left + (width - left - 60) * (value - low) / (high - low)

    parts = []
    for number, (name, one) in enumerate(rows):
        y = number * height + 16
        parts.append(
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
            f'<line class="whisker" x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{x(one.value):.1f}" cy="{y}" r="5" fill="{colour(number)}"><title>{form.format(one.low)} to '
            f"{form.format(one.high)}</title></circle>"
            f'<text x="{width - 50}" y="{y + 4}">{form.format(one.value)}</text>'
        )
    return _svg(width, len(rows) * height + 8, title, "".join(parts))


def legend(names: Sequence[str], colours: Sequence[str] = COLOURS) -> str:
    """What colour is whose."""
    marks = (
        f'<span><i style="background:{colours[number % len(colours)]}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(marks)}</p>'


def titled(title: str, *parts: str) -> str:
    """A chart under its title."""
    return f"<h4>{escape(title)}</h4>{''.join(parts)}"


def _svg(width: float, height: float, title: str, content: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}" '
        f'style="max-width:{width:.0f}px">{content}</svg>'
    )
