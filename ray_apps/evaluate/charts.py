"""Charts of an evaluation as inline SVG: each a picture of its own, legible on a phone, in the colours of its page.

The page gives the classes: `m0` to `m7` are the models' colours, `won`, `tied` and `lost` those of outcomes. A chart
that would show nothing is None.
"""

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from ray_apps.evaluate.bootstrap import Estimate
from ray_apps.evaluate.figures import PairFigures, ScoreFigures
from ray_apps.evaluate.ratings import Rating
from ray_apps.evaluate.tables import ALL, percent, percent_of

WIDTH = 360
RADAR = 410
"""Its width: names stand on both sides of it."""
LEFT = 112
"""Where what is drawn beside the names begins."""
NUM_COLOURS = 8
FEWEST_AXES = 3
"""Of a radar: two would be a line."""
MARKS = (
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "M-3.3 -3.3h6.6v6.6h-6.6z",
    "M0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    "M0 -4.4l4.4 7.8h-8.8z",
)


def shortened(text: str, width: int) -> str:
    """A text of at most `width` columns, of which signs of East Asia take two."""
    if sum(map(_columns, text)) <= width:
        return text
    kept, taken = "", 1
    for sign in text:
        taken += _columns(sign)
        if taken > width:
            break
        kept += sign
    return f"{kept}…"


def _columns(sign: str) -> int:
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def colour(number: int) -> str:
    """The class of a model's colour."""
    return f"m{number % NUM_COLOURS}"


def mark(number: int) -> Markup:
    """A model's sign, for a legend."""
    picture = Markup(
        '<svg class="mark {}" viewBox="-6 -6 12 12" aria-hidden="true"><path d="{}" fill="currentColor"/></svg>'
    )
    return picture.format(colour(number), MARKS[number % len(MARKS)])


def _drawn(height: float, label: str, parts: Sequence[Markup], width: int = WIDTH) -> Markup:
    picture = Markup('<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>')
    return picture.format(width, height, label, Markup("").join(parts))


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start", width: int = 99) -> Markup:
    shown = shortened(text, width)
    whole = Markup("<title>{}</title>").format(text) if shown != text else ""
    form = Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}{}</text>')
    return form.format(x, y, kind, anchor, whole, shown)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    form = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>')
    return form.format(x1, y1, x2, y2, kind)


def _box(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    form = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"/>')
    return form.format(x, y, width, height, kind)


def _point(x: float, y: float, number: int) -> Markup:
    form = Markup('<path d="{}" transform="translate({:.1f} {:.1f})" fill="currentColor"/>')
    return form.format(MARKS[number % len(MARKS)], x, y)


def _told(kind: str, title: str, parts: Sequence[Markup]) -> Markup:
    """What belongs together, and the words that show where a pointer rests on it."""
    form = Markup('<g class="{}"><title>{}</title>{}</g>')
    return form.format(kind, title, Markup("").join(parts))


def radar(scores: Sequence[ScoreFigures], models: Sequence[str]) -> Markup | None:
    """Mean scores by category: a ring for each model that has them all, with its bounds as a band."""
    found = {(one.model, one.category): one.mean for one in scores if one.category is not None}
    names = sorted({category for _, category in found})
    whole = [model for model in models if all((model, name) in found for name in names)]
    if len(names) < FEWEST_AXES or not whole:
        return None
    angles = [math.tau * number / len(names) - math.tau / 4 for number in range(len(names))]
    rings = [_ring(angles, models.index(model), model, [found[model, name] for name in names]) for model in whole]
    bands, lines = zip(*rings, strict=True)
    parts = [*_web(angles, names), *bands, *lines]
    return _drawn(264, f"Mean score by category, of {', '.join(whole)}", parts, RADAR)


def _at(angle: float, score: float) -> tuple[float, float]:
    return RADAR / 2 + 10 * score * math.cos(angle), 132 + 10 * score * math.sin(angle)


def _web(angles: Sequence[float], names: Sequence[str]) -> Iterator[Markup]:
    for score in (2, 4, 6, 8, 10):
        yield Markup('<path d="{}" class="grid"/>').format(_outline(angles, [score] * len(angles)))
    for angle, name in zip(angles, names, strict=True):
        yield _line(*_at(angle, 0), *_at(angle, 10), "grid")
        x, y = _at(angle, 11)
        side = math.cos(angle)
        anchor = "middle" if abs(side) < 0.1 else "start" if side > 0 else "end"
        yield _text(x, y + 4 + 5 * math.sin(angle), name, anchor=anchor, width=14)
    for score in (5, 10):
        yield _text(RADAR / 2 + 3, 132 - 10 * score + 11, str(score), "small")


def _outline(angles: Sequence[float], scores: Sequence[float]) -> str:
    corners = [_at(angle, score) for angle, score in zip(angles, scores, strict=True)]
    return f"M{' L'.join(f'{x:.1f} {y:.1f}' for x, y in corners)}Z"


def _ring(angles: Sequence[float], number: int, model: str, means: Sequence[Estimate]) -> tuple[Markup, Markup]:
    """The band of a model's bounds, and the line of its means."""
    edges = (_outline(angles, [mean.high for mean in means]), _outline(angles, [mean.low for mean in means]))
    band = Markup('<path d="{} {}" class="band {}" fill-rule="evenodd"/>').format(*edges, colour(number))
    line = Markup('<path d="{}" class="ring"/>').format(_outline(angles, [mean.value for mean in means]))
    points = [_point(*_at(angle, mean.value), number) for angle, mean in zip(angles, means, strict=True)]
    return band, _told(colour(number), model, [line, *points])


def score_dots(scores: Sequence[ScoreFigures], models: Sequence[str]) -> Markup | None:
    """Mean scores with their bounds: all together, then by category."""
    if not scores:
        return None
    low = math.floor(min(one.mean.low for one in scores))
    high = max(math.ceil(max(one.mean.high for one in scores)), low + 1)
    axis = _Axis(low, high, WIDTH - 36)
    names = sorted({one.category for one in scores if one.category is not None})
    parts, y = [], 8.0
    for category in (None, *names):
        own = [one for one in scores if one.category == category]
        kind = "" if category else "strong"
        parts.append(_text(LEFT - 8, y + 6.5 * len(own) + 4, category or ALL, kind, anchor="end", width=14))
        for one in own:
            y += 13
            parts.append(_whisker(axis, y, models.index(one.model), one.model, one.mean, f"{one.mean.value:.1f}"))
        y += 8
    return _drawn(y + 20, "Mean score with its 95 % interval, by category", [*axis.drawn(8, y), *parts])


class _Axis:
    """From `low` to `high` across the room beside the names."""

    def __init__(self, low: float, high: float, right: float = WIDTH - 40) -> None:
        self.low, self.high, self.right = low, high, right

    def at(self, value: float) -> float:
        return LEFT + (value - self.low) / (self.high - self.low) * (self.right - LEFT)

    def drawn(self, top: float, bottom: float) -> Iterator[Markup]:
        for tick in _ticks(self.low, self.high):
            yield _line(self.at(tick), top, self.at(tick), bottom, "grid")
            yield _text(self.at(tick), bottom + 13, f"{tick:g}", "small", "middle")


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between the two."""
    size = 10 ** math.floor(math.log10((high - low) / most))
    step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= most)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _whisker(axis: _Axis, y: float, number: int, model: str, estimate: Estimate, said: str) -> Markup:
    title = f"{model}: {estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
    span = _line(axis.at(estimate.low), y, axis.at(estimate.high), y, "span")
    point = _point(axis.at(estimate.value), y, number)
    return _told(colour(number), title, [span, point, _text(WIDTH - 2, y + 4, said, "small", "end")])


def outcomes(pairs: Sequence[PairFigures]) -> Markup | None:
    """Won, tied and lost of one pair, all together and by category, and the adjusted win rate with its bounds."""
    shown = [one for one in pairs if one.adjusted is not None]
    if not shown:
        return None
    axis = _Axis(0, 1, WIDTH - 74)
    parts = [_text(axis.at(share), 10, percent(share, 0), "small", "middle") for share in (0, 0.5, 1)]
    tops = [18 + 22 * number for number in range(len(shown))]
    for y, one in zip(tops, shown, strict=True):
        parts += _bar(axis, y, one)
    bottom = 18 + 22 * len(shown)
    parts.append(_line(axis.at(0.5), 14, axis.at(0.5), bottom - 2, "half"))
    parts += [_adjusted(axis, y + 8, one.adjusted) for y, one in zip(tops, shown, strict=True) if one.adjusted]
    return _drawn(bottom, f"{pairs[0].a} against {pairs[0].b}: won, tied and lost by category", parts)


def _bar(axis: _Axis, y: float, one: PairFigures) -> Iterator[Markup]:
    total, start = one.wins + one.ties + one.losses, 0
    yield _text(LEFT - 8, y + 12, one.category or ALL, "" if one.category else "strong", "end", 14)
    for kind, count in (("won", one.wins), ("tied", one.ties), ("lost", one.losses)):
        if count:
            left, right = axis.at(start / total), axis.at((start + count) / total)
            yield _told(kind, f"{kind}: {count} of {total}", [_box(left, y, right - left, 16, "")])
        start += count
    yield _text(WIDTH - 2, y + 12, f"{one.wins} · {one.ties} · {one.losses}", "small", "end")


def _adjusted(axis: _Axis, y: float, rate: Estimate) -> Markup:
    low, value, high = (axis.at(bound) for bound in (rate.low, rate.value, rate.high))
    halo, span = (_line(low, y, high, y, kind) for kind in ("halo", "span"))
    return _told("ink", f"adjusted win rate {percent_of(rate)}", [halo, span, _point(value, y, 0)])


def heat_map(win_rates: Mapping[tuple[str, str], tuple[float, int]], models: Sequence[str]) -> Markup | None:
    """How often the model of the row beats that of the column. Of two models that would be one figure: None."""
    if len(models) < 3:
        return None
    size = min(64.0, (WIDTH - LEFT) / len(models))
    height = min(size, 36.0)
    columns = int(size / 6.4)
    parts = []
    for number, model in enumerate(models):
        middle = LEFT + size * (number + 0.5)
        parts.append(_text(middle, 14, model, anchor="middle", width=columns))
        parts.append(_text(LEFT - 8, 22 + height * (number + 0.5) + 4, model, anchor="end", width=12))
        for other_number, other in enumerate(models):
            corner = (LEFT + size * other_number, 22 + height * number)
            parts += _cell(corner, (size, height), (model, other), win_rates.get((model, other)))
    return _drawn(24 + height * len(models), "Pairwise win rates: the row against the column", parts)


def _cell(
    corner: tuple[float, float], size: tuple[float, float], of: tuple[str, str], found: tuple[float, int] | None
) -> Iterator[Markup]:
    (x, y), (width, height) = corner, size
    frame = (x + 1, y + 1, width - 2, height - 2)
    if found is None:
        yield _box(*frame, "none")
        return
    form = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}"/>')
    fill = form.format(*frame, 0.06 + 1.2 * abs(found[0] - 0.5))
    kind = "won" if found[0] >= 0.5 else "lost"
    yield _told(kind, f"{of[0]} beats {of[1]}: {percent(found[0])} of {found[1]}", [fill])
    yield _text(x + width / 2, y + height / 2 + 4, f"{100 * found[0]:.0f}", "over", "middle")


def whiskers(ratings: Sequence[Rating], models: Sequence[str]) -> Markup | None:
    """Ratings with their bounds, the best first."""
    if not ratings:
        return None
    low, high = min(one.low for one in ratings), max(one.high for one in ratings)
    room = max((high - low) * 0.06, 5)
    axis = _Axis(low - room, high + room)
    parts = []
    for row, one in enumerate(ratings):
        y = 20 + 26 * row
        parts.append(_text(LEFT - 8, y + 4, one.model, anchor="end", width=12))
        estimate = Estimate(one.rating, one.low, one.high)
        parts.append(_whisker(axis, y, models.index(one.model), one.model, estimate, f"{one.rating:.0f}"))
    bottom = 10 + 26 * len(ratings)
    return _drawn(bottom + 18, "Ratings with their 95 % intervals", [*axis.drawn(4, bottom), *parts])
