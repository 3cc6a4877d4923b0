"""The cost-quality curve of one benchmark as a PNG."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import require_extra
from .printing import number_text

# Okabe and Ito 2008: told apart by readers with any common colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Baselines are grey and differ in their dashes, so that the routers stand out.
BASELINES: dict[str, tuple[str, Any]] = {
    "oracle": ("#555555", (0, (1, 1))),
    "knn-in-domain": ("#777777", (0, (6, 2))),
    "knn": ("#777777", (0, (3, 1, 1, 1))),
    "prompt-length": ("#999999", (0, (4, 3))),
}
MOST_BANDS = 2
WIDTH_IN, HEIGHT_IN, DPI = 8.6, 5.0, 150


def cost_quality_png(
    facts: Mapping[str, Any],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    apgr: Mapping[str, float],
) -> bytes:
    """PNG of mean reward against share of strong calls, all routers and baselines.

    `facts` is an entry of EvaluationReport.benchmarks, `curves` the benchmark's entry of its
    curves, `apgr` by name. A name that is no baseline is drawn as a router, the
    best two with their 95% bands.
    Raises MissingExtraError without matplotlib.
    """
    figures: Any = require_extra("matplotlib.figure", "eval")
    effects: Any = require_extra("matplotlib.patheffects", "eval")
    ticker: Any = require_extra("matplotlib.ticker", "eval")
    # A Figure of its own, not pyplot: no window system, no state left behind.
    figure = figures.Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    low, high = facts["weak_mean"], facts["strong_mean"]
    text: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8, "color": "#333333"}
    halo = effects.withStroke(linewidth=3, foreground="white")
    text |= {"textcoords": "offset points", "xytext": (0, 3), "path_effects": [halo], "zorder": 5}
    for value, what in ((high, "strong"), (low, "weak")):
        model = _short(facts[f"{what}_model"].rsplit("/", 1)[-1])
        axes.axhline(value, color="#333333", linewidth=1)
        axes.annotate(f"always {what}: {model} {value:.3f}", (0.985, value), **text)
    axes.plot([0, 1], [low, high], color="#999999", linewidth=1.2, label="random 0.500")
    routers = [name for name in curves if name not in BASELINES]
    tops, bands = [low, high], 0
    for name in sorted(curves, key=lambda name: (name in BASELINES, -apgr.get(name, 0.0))):
        curve = {key: np.asarray(values, dtype=np.float64) for key, values in curves[name].items()}
        tops += [curve["reward"].max(), curve["reward"].min()]
        if name in BASELINES:
            colour, dashes = BASELINES[name]
            look: dict[str, Any] = {"linestyle": dashes, "linewidth": 1.3}
        else:
            colour = COLOURS[routers.index(name) % len(COLOURS)]
            look = {"linewidth": 2.2}
            # More than two bands hide each other and the lines.
            band = curve["low"], curve["high"]
            bands += 1
            if bands <= MOST_BANDS:
                tops += [*band[0], *band[1]]
                axes.fill_between(curve["share"], *band, color=colour, alpha=0.15, linewidth=0)
        label = f"{_short(name)} {number_text(apgr.get(name, math.nan))}"
        axes.plot(curve["share"], curve["reward"], color=colour, label=label, **look)
    room = 0.06 * (max(tops) - min(tops))
    axes.set(ylim=(min(tops) - room, max(tops) + room), xlim=(0, 1))
    axes.set(xlabel="share of calls to the strong model", ylabel="mean reward")
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(xmax=1))
    axes.set_title(f"{_short(facts['name'])}   n = {facts['n']:,}", loc="left", fontweight="bold")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=8.5,
        title=("APGR" + " (band: 95% interval)" * bool(bands)),
        title_fontsize=8.5,
        alignment="left",
    )
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _short(text: str, limit: int = 32) -> str:
    """`text` on one line, cut, and with matplotlib's mathematics switched off."""
    line = " ".join(text.split())
    # The end tells two folders apart, and a model from its provider.
    line = line if len(line) <= limit else "…" + line[1 - limit :]
    return line.replace("$", r"\$")
