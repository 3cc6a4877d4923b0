"""The figure of docs/second-look.md: quality against cost, by the prompt alone and with a look.

    python -m thriftroute.research.look_figure docs/second-look.png

RouteLLM's GSM8K pair, a price ratio of 20, the draws of `second_look`; needs THRIFTROUTE_DATA.
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import require_extra
from ..eval.look_command import LookOptions, run_look
from ..eval.metrics import Floats
from ..eval.plot import COLOURS, DPI
from ..eval.second_look import GRID, NOTHING, outcomes, policies, prices_of
from ..router.bundle import Bundle
from ..router.second_look import LookPolicy, SecondLook
from .second_look import PAIRS, draws_of, rows_of

PAIR, RATIO = "RouteLLM GSM8K, GPT-4/Mixtral", 20.0
DRAWS, SIZE, ROUTER = 4, 300, "fast"
FAMILIES = ("prompt alone", "second look")


def curves(folder: Path) -> tuple[Floats, float, float]:
    """Mean quality by draw, family and cost (`GRID`): float64[draws, 2, len(GRID)]; the means of
    weak and of strong on all prompts."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    pair, frame = PAIRS[PAIR], rows_of(PAIRS[PAIR])
    rewards = frame.pivot_table(index="prompt_id", columns="model", values="score")
    both = rewards[[pair.weak, pair.strong]].dropna()
    found = []
    for draw in draws_of(pair, frame, ROUTER, SIZE, DRAWS):
        file = folder / "scores.parquet"
        options = LookOptions(draw.bundle, draw.rest, (pair.strong,), (pair.weak,))
        run_look(options, scores_out=file, bootstraps=100)
        told = pq.read_table(file).to_pandas().set_index("prompt_id").join(both)
        scores, looks = told.score.to_numpy(), told.look_probability.to_numpy()
        weak, gain = told[pair.weak].to_numpy(), (told[pair.strong] - told[pair.weak]).to_numpy()
        look = SecondLook.of(Bundle.open(Path(draw.bundle)))
        assert look is not None
        prices = prices_of(look, RATIO)
        limits = [NOTHING, *np.unique(scores)[::-1].tolist()]
        alone = [LookPolicy(t, t, NOTHING) for t in limits]
        lines = []
        for family in (alone, policies(look, prices)[0]):
            cost, earned = outcomes(family, scores, looks, gain, prices)
            c = np.concatenate(([0.0, 1.0], cost.mean(0)))
            order = np.argsort(c, kind="stable")
            q = weak.mean() + np.concatenate(([0.0, gain.mean()], earned.mean(0)))
            lines.append(np.interp(GRID, c[order], q[order]))
        found.append(lines)
    return np.array(found), float(both[pair.weak].mean()), float(both[pair.strong].mean())


def draw_figure(found: Floats, weak: float, strong: float, n: int) -> bytes:
    """The PNG."""
    figures: Any = require_extra("matplotlib.figure", "eval")
    ticker: Any = require_extra("matplotlib.ticker", "eval")
    figure = figures.Figure(figsize=(7.0, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    cost = (1 + GRID * (RATIO - 1)) / RATIO
    axes.plot([1 / RATIO, 1], [weak, strong], color="#999999", linewidth=1.2, label="random mix")
    for name, lines, colour in zip(FAMILIES, found.swapaxes(0, 1), COLOURS[1::-1], strict=True):
        axes.fill_between(cost, lines.min(0), lines.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(cost, lines.mean(0), color=colour, linewidth=2.2, label=name)
    axes.axhline(
        weak + 0.9 * (strong - weak), color="#333333", linewidth=0.9, linestyle=(0, (4, 3))
    )
    axes.annotate("90% of the gap", (0.01, weak + 0.9 * (strong - weak)), va="bottom", fontsize=8)
    axes.set(
        xlim=(0, 1), xlabel="cost, as a part of always strong's", ylabel="answers that are right"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.PercentFormatter(xmax=1, decimals=0))
    title = f"GSM8K, GPT-4-1106 and Mixtral   n = {n:,}, {DRAWS} draws of {SIZE} labels"
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    pair = PAIRS[PAIR]
    n = len(set(rows_of(pair).query("model == @pair.weak").prompt_id))
    with tempfile.TemporaryDirectory() as folder:
        given.out.write_bytes(draw_figure(*curves(Path(folder)), n))


if __name__ == "__main__":
    main()
