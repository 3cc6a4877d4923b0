"""The audit as one HTML page for who decides: money, quality, curve, tasks, examples, next steps.

The page is `report.html`; here is what it shows. Figures of the routing, of the tasks, of the
examples and the curve come from the measured half alone; those of the weak model alone, where it is
recommended, and its curve from all rows.
"""

import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...router.threshold import format_threshold
from ..printing import between, percent, render
from .command import Audited
from .groups import by_cluster, by_task
from .measure import halves, measure
from .verdict import AuditOption, AuditVerdict

TEMPLATE = Path(__file__).with_name("report.html")
HEADS = {
    "route": "Route",
    "weak-only": "Use the weak model alone",
    "strong-only": "Use the strong model alone",
    "label-more": "Not enough labels to tell",
}
BASELINES = {
    "always-strong": "Strong model alone",
    "always-weak": "Weak model alone",
    "random": "Random mix of the same share",
    "prompt-length": "Longest prompts to strong",
    "knn-in-domain": "Nearest labelled prompts (kNN)",
    "oracle": "Best possible, knowing all answers",
}
# Examples of each kind, and characters of a prompt that are shown.
EXAMPLES, EXAMPLE_CHARACTERS = 3, 320
SIDES = ("strong", "weak")
# Resamples for a group's interval: a page has many.
GROUP_RESAMPLES = 400


def to_html(audited: Audited, *, examples: bool = True) -> str:
    """The page. `examples`: with prompts of the data on it; whoever gets the page can read them."""
    verdict = audited.verdict
    options = _options(verdict)
    groups = _groups(audited, examples)
    ends = [end for one in options.values() for end in one.quality_ci]
    rewards = [end for one in groups for end in (*one["routed"].reward.ci, one["strong"])]
    values = {
        **{"a": audited, "v": verdict, "b": audited.benchmark, "head": HEADS[verdict.verdict]},
        "chart": lambda width: _chart(verdict, width),
        "look_chart": lambda width: _look_chart(verdict, width),
        "options": options,
        "options_scale": _whiskers(ends),
        "groups": groups,
        "rivals": verdict.rivals(BASELINES),
        "groups_scale": _whiskers(rewards),
        "examples": _examples(audited) if examples else [],
    }
    filters: dict[str, Callable[..., Any]] = {
        "percent": percent,
        "between": between,
        "usd": usd,
        "threshold": format_threshold,
        "count": "{:,}".format,
        "shell": shlex.quote,
    }
    return render(TEMPLATE, values, filters)


def usd(value: float) -> str:
    """US dollars, with as many digits as a reader compares."""
    if not math.isfinite(value):
        return "-"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.3g}"


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


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round values within low .. high, in steps of 1, 2 or 5 times a power of 10."""
    if not high > low:
        return [low]
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _chart(verdict: AuditVerdict, width: int) -> dict[str, Any]:
    """The figure of the curve in pixels, `width` of them wide."""
    curve, option = verdict.drawn, verdict.candidate
    shown = [*curve.quality, *curve.low, *curve.high, verdict.min_quality]
    shown += [] if option is None else [option.quality, *option.quality_ci]
    known = [value for value in shown if math.isfinite(value)]
    room = max(0.04 * (max(known) - min(known)), 0.005)
    height = 340 if width > 500 else 280
    x = Scale(0, 1, 46, width - 14)
    y = Scale(min(known) - room, max(known) + room, height - 40, 12)

    def points(xs: Iterable[float], ys: Iterable[float]) -> str:
        return " ".join(f"{x(a)},{y(b)}" for a, b in zip(xs, ys, strict=True))

    at = np.flatnonzero(np.isfinite(curve.low) & np.isfinite(curve.high))
    around = np.concatenate((at, at[::-1]))
    return {
        **{"width": width, "height": height, "x": x, "y": y, "ticks": ticks(y.low, y.high, 6)},
        "band": points(curve.share[around], [*curve.low[at], *curve.high[at[::-1]]]),
        "random": points([0, 1], curve.quality[[0, -1]]),
        "router": points(curve.share, curve.quality),
    }


def _look_chart(verdict: AuditVerdict, width: int) -> dict[str, Any]:
    """The figure of cost against quality with and without a second look, in pixels."""
    found = verdict.second_look
    assert found is not None
    shown = [quality for _, quality in (*found.prompt, *found.look)]
    height = 340 if width > 500 else 280
    dearest = max(1.0, *(cost for cost, _ in found.look))
    x = Scale(0, dearest, 46, width - 14)
    y = Scale(min(shown) - 0.02, max(*shown, 1.0) + 0.02, height - 40, 12)

    def points(curve: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{x(cost)},{y(quality)}" for cost, quality in curve)

    return {
        **{"width": width, "height": height, "x": x, "y": y, "ticks": ticks(y.low, y.high, 6)},
        **{"across": ticks(0, dearest, 5), "ends": points((found.prompt[0], (1.0, 1.0)))},
        **{"prompt": points(found.prompt), "look": points(found.look)},
    }


def _whiskers(values: Sequence[float]) -> Scale:
    """The scale of a table's column of intervals."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = max(0.03 * (high - low), 0.005)
    return Scale(low - room, high + room, 5, 145)


def _options(verdict: AuditVerdict) -> dict[str, AuditOption]:
    if verdict.candidate is None:
        return {}
    own = f"This router at {format_threshold(verdict.candidate_threshold)}"
    others = {BASELINES.get(name, name): option for name, option in verdict.shown.items()}
    return {own: verdict.candidate, **others}


def _groups(audited: Audited, by_prompts: bool) -> list[dict[str, Any]]:
    verdict = audited.verdict
    if verdict.candidate is None:
        return []
    if audited.tasks is not None:
        groups = by_task(audited.tasks)
    elif audited.embeddings is not None:
        prompts = [audited.prompt_text(i) for i in range(audited.rows.n)]
        groups = by_cluster(prompts, audited.embeddings, by_prompts=by_prompts, seed=verdict.seed)
    else:
        return []
    index = halves(verdict.n, verdict.seed)[1]
    found = []
    for group, name in enumerate(groups.names):
        rows = audited.rows.take(index[groups.member[index] == group])
        if rows.n:
            sends = rows.sends(verdict.candidate_threshold)
            routed = measure(rows, sends, resamples=GROUP_RESAMPLES, seed=verdict.seed)
            means = {s: np.average(getattr(rows, s), weights=rows.weight) for s in SIDES}
            found.append({"name": name, "routed": routed, **means})
    return found


def _examples(audited: Audited) -> list[dict[str, Any]]:
    verdict, rows = audited.verdict, audited.rows
    if verdict.candidate is None:
        return []
    index = halves(verdict.n, verdict.seed)[1]
    scores, gain = rows.scores[index], (rows.strong - rows.weak)[index]
    strong = scores >= verdict.candidate_threshold
    found = []
    for title, order, chosen, key in (
        ("Sent to the strong model, and it helped", "highest scores", strong & (gain > 0), -scores),
        ("Kept on the weak model, at no loss", "lowest scores", ~strong & (gain <= 0), scores),
        ("Kept on the weak model, and quality was lost", "largest losses first",
         ~strong & (gain > 0), -gain),
        ("Sent to the strong model for nothing", "highest scores", strong & (gain <= 0), -scores),
    ):  # fmt: skip
        picked = np.flatnonzero(chosen)
        first = index[picked[np.argsort(key[picked], kind="stable")][:EXAMPLES]]
        prompts = []
        for i in first.tolist():
            text = audited.prompt_text(i).strip()
            if len(text) > EXAMPLE_CHARACTERS:
                text = text[: EXAMPLE_CHARACTERS - 1].rstrip() + "…"
            figures = {"score": rows.scores[i], "strong": rows.strong[i], "weak": rows.weak[i]}
            prompts.append({"text": text, **figures})
        found.append({"title": title, "order": order, "share": chosen.mean(), "prompts": prompts})
    return found
