"""A replay as text, and as one HTML page like the audit's (`replay.html`)."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...terminal import new_console
from ..audit.page import Scale, ticks, usd
from ..metrics import Floats
from ..printing import line, percent, render, table
from .command import POLICIES, Replay

if TYPE_CHECKING:
    from rich.console import Console

TEMPLATE = Path(__file__).with_name("replay.html")
NAMES = {
    "strong": "Strong model, never switched",
    "weak": "Weak model, never switched",
    "blind": "Every call routed blindly",
    "priced": "Routed, switches priced",
}
# Sessions that the page shows, those first where the policies differ most; points of its figure.
SHOWN, POINTS = 10, 240


def print_replay(replay: Replay, console: "Console | None" = None) -> None:
    """Print the advice, a table of the policies, and what it rests on."""
    out = console or new_console()
    if replay.simulated:
        line(out, f"warning: {replay.simulated}", style="yellow")
    line(out, sentence(replay.advice), style="bold")
    rows = [
        (
            NAMES[name],
            usd(amount.usd),
            " to ".join(map(usd, amount.ci)),
            f"{outcome.strong.mean():.1%}",
            f"{int(outcome.switched.sum()):,}",
        )
        for name, outcome in replay.outcomes.items()
        for amount in (replay.usd[name],)
    ]
    table(out, ("policy", "USD", "95%", "strong steps", "switches"), rows)
    for fact in facts(replay):
        line(out, fact)
    for problem in replay.read.problems:
        line(out, f"left out: {problem}", style="yellow")


def sentence(text: str) -> str:
    """`text` as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def facts(replay: Replay) -> list[str]:
    """What was read, what the record cost, and what is assumed, a sentence each."""
    read, sessions = replay.read, replay.sessions
    usage = sessions.usage
    cached = usage.cache_read.sum() / max(usage.prompt.sum(), 1.0)
    told = [
        f"{sessions.steps:,} steps of {sessions.n:,} sessions, {cached:.1%} of the input tokens "
        "read from a prompt cache"
    ]
    paid, steps = replay.recorded
    if steps:
        some = "" if steps == sessions.steps else f" ({steps:,} steps of models with a price)"
        told.append(f"as recorded they cost {usd(paid)}{some}")
    blind = replay.against["blind, strong"]
    told.append(
        f"blind routing against the strong model alone: {_signed(blind.usd)} "
        f"[{_signed(blind.ci[0])}, {_signed(blind.ci[1])}]"
    )
    left = {"repeated": read.repeated, "without tokens": read.empty, "bad": read.bad}
    if any(left.values()):
        counts = ", ".join(f"{count:,} {name}" for name, count in left.items() if count)
        told.append(f"left out of {read.entries:,} entries: {counts}")
    return [sentence(each) for each in (*told, *replay.assumed)]


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{usd(abs(value))}" if math.isfinite(value) else "-"


def to_html(replay: Replay) -> str:
    """The page. It holds numbers and the names of models and sessions, and no text of them."""
    cost = {name: outcome.by_session for name, outcome in replay.outcomes.items()}
    starts = replay.sessions.starts
    lost = cost["blind"] - np.add.reduceat(replay.outcomes["blind"].warm, starts[:-1])
    order = np.argsort(-lost, kind="stable")[:SHOWN]
    switched = replay.outcomes["priced"].switched.astype(int)
    rows = [
        {
            "name": replay.sessions.names[i],
            "steps": int(starts[i + 1] - starts[i]),
            "usd": [float(cost[name][i]) for name in POLICIES],
            "lost": float(lost[i]),
            "switches": int(np.add.reduceat(switched, starts[:-1])[i]),
        }
        for i in order.tolist()
    ]
    values = {
        **{"r": replay, "names": NAMES, "rows": rows, "facts": facts(replay)},
        "head": sentence(replay.advice.partition(":")[0])[:-1],
        "why": sentence(replay.advice.partition(": ")[2] or replay.advice),
        "chart": lambda width: _chart(replay, int(order[0]), width),
        "most": max(amount.usd for amount in replay.usd.values()) or 1.0,
    }
    filters = {"percent": percent, "usd": usd, "count": "{:,}".format}
    return render(TEMPLATE, values, filters)


def _chart(replay: Replay, session: int, width: int) -> dict[str, Any]:
    """What each policy has cost up to each step of one session, in pixels."""
    first, last = replay.sessions.starts[session : session + 2]
    sums = {name: np.cumsum(o.usd[first:last]) for name, o in replay.outcomes.items()}
    steps = int(last - first)
    at = np.unique(np.linspace(0, steps - 1, min(steps, POINTS)).round().astype(int))
    height = 320 if width > 500 else 260
    x = Scale(0, max(steps - 1, 1), 58, width - 14)
    y = Scale(0, max(float(each[-1]) for each in sums.values()) or 1.0, height - 40, 12)

    def points(values: Floats) -> str:
        return " ".join(f"{x(i)},{y(v)}" for i, v in zip(at.tolist(), values[at], strict=True))

    marks = np.flatnonzero(replay.outcomes["priced"].switched[first:last])
    return {
        **{"width": width, "height": height, "x": x, "y": y, "ticks": ticks(0, y.high, 5)},
        "steps": [int(tick) for tick in ticks(0, x.high, 5) if tick == int(tick)],
        "lines": {name: points(values) for name, values in sums.items()},
        "marks": [(x(i), y(sums["priced"][i])) for i in marks.tolist()],
    }
