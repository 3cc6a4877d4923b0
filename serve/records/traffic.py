"""What the latest decisions say of other thresholds, and the sessions of agents among them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Engine, select

from ..policy.plan import switch_of
from .stats import conditions
from .table import decisions

LATEST = 2000  # decisions
BARS = 20  # of the histogram of scores, over [0, 1]
POINTS = 40  # steps of the curve
SESSIONS = 8  # the latest ones

_READ = (
    *("time", "model", "status", "router", "score", "choice", "session_hash", "steps"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    *("cost", "strong_cost"),
)


def traffic(
    engine: Engine | None,
    router: str,
    threshold: float | None,
    weak_cost: Callable[[Mapping[str, Any]], float],
    filters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Of the latest 2,000 decisions: {"requests", "scored", "threshold", "histogram", "curve",
    "sessions"}.

    filters: as in `stats.recent`. router: whose scores. threshold: the one of now, which the curve
    also has; None: no curve. weak_cost: a decision -> USD that its tokens cost on the weak model.
    Of the scored ones (answered, and routed by the score) `histogram` counts scores in 20 equal
    parts of [0, 1], and `curve` says at thresholds from 0 to 1 which strong share and which saving
    each would have had: a share of always strong, of routing alone, without cache and second looks.
    """
    rows: list[dict[str, Any]] = []
    if engine is not None:
        columns = [decisions.c[name] for name in _READ]
        query = select(*columns).where(*conditions(filters or {}))
        with engine.connect() as connection:
            latest = connection.execute(query.order_by(decisions.c.time.desc()).limit(LATEST))
            rows = [dict(row) for row in latest.mappings()]
    scored = [
        row
        for row in rows
        if row["score"] is not None and row["router"] == router and row["choice"] != "session"
        and row["model"] is not None and row["status"] < 400
    ]  # fmt: skip
    counts, _ = np.histogram([row["score"] for row in scored], bins=BARS, range=(0, 1))
    return {
        "requests": len(rows),
        "scored": len(scored),
        "threshold": threshold,
        "histogram": counts.tolist(),
        "curve": [] if threshold is None or not scored else _curve(scored, threshold, weak_cost),
        "sessions": _sessions(rows),
    }


def _curve(
    rows: Sequence[Mapping[str, Any]],
    threshold: float,
    weak_cost: Callable[[Mapping[str, Any]], float],
) -> list[dict[str, float | None]]:
    scores, strong = (np.array([row[name] for row in rows]) for name in ("score", "strong_cost"))
    weak, always = np.array([weak_cost(row) for row in rows]), strong.sum()
    points: list[dict[str, float | None]] = []
    for at in sorted({*(np.arange(POINTS + 1) / POINTS).tolist(), threshold}):
        sent = scores >= at
        saved = 1 - float(np.where(sent, strong, weak).sum() / always) if always > 0 else None
        point = {"threshold": at, "strong_share": float(sent.mean()), "saving_share": saved}
        points.append(point)
    return points


def _sessions(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of agents, the latest first; rows: the latest first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name, switch = row["session_hash"], switch_of(row["steps"])
        if name is None or switch is None:
            continue
        new = {"session": name, "time": row["time"], "model": row["model"]}
        one = found.setdefault(name, {**new, "steps": 0, "switches": 0, "cost": 0.0, "saving": 0.0})
        one["steps"] += 1
        one["switches"] += switch == "switch"
        one["cost"] += row["cost"]
        one["saving"] += row["strong_cost"] - row["cost"]
    return list(found.values())[:SESSIONS]
