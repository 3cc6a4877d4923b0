"""Small figures as inline SVG: text, lines and shapes with classes, which the page colours."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..metrics import Interval


@dataclass(frozen=True)
class Scale:
    """A linear map of values low .. high onto pixels start .. end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of `value`, kept within the ends."""
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(part, 0.0), 1.0) * (self.end - self.start), 1)


def text(value: object) -> str:
    """Escaped for HTML, attributes included."""
    return html.escape(str(value), quote=True)


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round values within low .. high, in steps of 1, 2 or 5 times a power of 10."""
    if not high > low:
        return [low]
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _points(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(a)},{y(b)}" for a, b in zip(xs, ys, strict=True))


def curve_svg(
    share: Sequence[float],
    quality: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    wanted: float,
    point: tuple[float, float, Interval] | None,
    width: int,
    label: str,
) -> str:
    """Quality against the share of strong calls: curve, 95% band, random mix, the wanted quality.

    `point`: (share, quality, interval) of the routing that was measured. `label`: the figure in
    words, for who does not see it. Values are shares; the axes show percent.
    """
    height = 340 if width > 500 else 280
    known = [v for v in (*quality, *low, *high, wanted) if math.isfinite(v)]
    if point is not None:
        known += [v for v in (point[1], *point[2]) if math.isfinite(v)]
    least, most = min(known), max(known)
    room = max(0.04 * (most - least), 0.005)
    x = Scale(0, 1, 46, width - 14)
    y = Scale(least - room, most + room, height - 40, 12)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}">']
    for value in ticks(y.low, y.high, 6):
        parts.append(
            f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(value)}" y2="{y(value)}"/>'
            f'<text x="{x.start - 7}" y="{y(value) + 4}" text-anchor="end">'
            f"{round(100 * value, 6):g}%</text>"
        )
    for value in (0, 0.25, 0.5, 0.75, 1):
        anchor = "end" if value == 1 else "middle"
        parts.append(
            f'<text x="{x(value)}" y="{height - 22}" text-anchor="{anchor}">{100 * value:g}%</text>'
        )
    parts.append(
        f'<text x="{(x.start + x.end) / 2}" y="{height - 4}" text-anchor="middle">'
        "share of calls to the strong model</text>"
    )
    inside = [v for v in zip(share, low, high, strict=True) if all(map(math.isfinite, v))]
    if inside:
        at, bottom, top = zip(*inside, strict=True)
        around = _points([*at, *reversed(at)], [*bottom, *reversed(top)], x, y)
        parts.append(f'<polygon class="band" points="{around}"/>')
    ends = _points([0, 1], [quality[0], quality[-1]], x, y)
    parts += [
        f'<polyline class="random" points="{ends}"/>',
        f'<line class="wanted" x1="{x.start}" x2="{x.end}" y1="{y(wanted)}" y2="{y(wanted)}"/>',
        f'<text class="wanted" x="{x.end}" y="{y(wanted) + 14}" text-anchor="end">'
        f"wanted: {100 * wanted:g}%</text>",
        f'<polyline class="router" points="{_points(share, quality, x, y)}"/>',
    ]
    if point is not None:
        place, value, (least, most) = x(point[0]), point[1], point[2]
        if math.isfinite(least) and math.isfinite(most):
            parts.append(
                f'<line class="whisker" x1="{place}" x2="{place}" y1="{y(least)}" y2="{y(most)}"/>'
            )
        parts.append(f'<circle class="chosen" cx="{place}" cy="{y(value)}" r="6"/>')
    parts.append("</svg>")
    return "".join(parts)


def whisker_svg(value: float, ends: Interval, scale: tuple[float, float], mark: float) -> str:
    """A value with its interval on a line of its own, `mark` a tick for comparison; for tables."""
    width = 150
    x = Scale(scale[0], scale[1], 5, width - 5)
    parts = [
        f'<svg class="whiskers" viewBox="0 0 {width} 20" aria-hidden="true">'
        f'<line class="grid" x1="0" x2="{width}" y1="10" y2="10"/>'
    ]
    if math.isfinite(mark):
        parts.append(f'<line class="wanted" x1="{x(mark)}" x2="{x(mark)}" y1="1" y2="19"/>')
    if all(math.isfinite(v) for v in ends):
        parts.append(f'<line class="whisker" x1="{x(ends[0])}" x2="{x(ends[1])}" y1="10" y2="10"/>')
    if math.isfinite(value):
        parts.append(f'<circle class="chosen" cx="{x(value)}" cy="10" r="3.5"/>')
    parts.append("</svg>")
    return "".join(parts)


def bars_html(rows: Sequence[tuple[str, float, str, str]]) -> str:
    """Horizontal bars: (name, value, the value in words, class), the longest as wide as there is
    room."""
    most = max((value for _, value, _, _ in rows if math.isfinite(value)), default=0.0) or 1.0
    return "".join(
        f'<div class="bar"><span>{text(name)}</span><div><i class="{text(kind)}" '
        f'style="width:{100 * max(value, 0.0) / most:.1f}%"></i></div><b>{text(shown)}</b></div>'
        for name, value, shown, kind in rows
        if math.isfinite(value)
    )
