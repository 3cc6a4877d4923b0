"""What the traffic of a log looks like: models and cost, lengths, languages, kinds of request.

Totals are over all rows; the rest is told from rows that stand for all of them by their weights.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CalibrationError
from ...providers.prices import listed_price
from ..clusters import Floats, Vectors, assign, default_k, fit, telling_words
from .schema import LogRow

Language = Callable[[str], str | None]
Sums = defaultdict[str, float]

_EXAMPLES = 3
_TOP = 10


class Tally:
    """Totals over rows, one pass; sums of each model's tokens and USD where they are known."""

    def __init__(self) -> None:
        self.rows = 0
        self.start: str | None = None
        self.end: str | None = None
        self.models: dict[str, Sums] = defaultdict(lambda: Sums(float))
        self.tenants, self.tasks, self.sums = Sums(float), Sums(float), Sums(float)

    def add(self, row: LogRow) -> None:
        """Count a row."""
        self.rows += 1
        weight = row.weight
        if row.time is not None:
            self.start = min(self.start or row.time, row.time)
            self.end = max(self.end or row.time, row.time)
        self.tenants[row.tenant] += weight
        self.tasks[row.task] += weight
        self.sums["requests"] += weight
        self.sums["answered"] += weight * (row.answer is not None)
        if row.feedback is not None:
            self.sums["rated"] += weight
            self.sums["rating"] += weight * row.feedback
        use = self.models[row.model or ""]
        use["requests"] += weight
        known = row.input_tokens is not None and row.output_tokens is not None
        if known:
            _add_tokens(use, "", row)
        if row.cost_usd is not None:
            use["cost"] += weight * row.cost_usd
        elif known:  # to be priced
            _add_tokens(use, "open_", row)
        else:
            use["unpriced"] += weight


def _add_tokens(use: Sums, name: str, row: LogRow) -> None:
    use[f"{name}counted"] += row.weight
    use[f"{name}input"] += row.weight * (row.input_tokens or 0)
    use[f"{name}output"] += row.weight * (row.output_tokens or 0)


def model_use(model: str, use: Mapping[str, float]) -> dict[str, Any]:
    """What one model had to do: requests, mean tokens (None where nobody counted), USD.
    `estimated` is the part of the cost that was not logged; `unpriced` requests have no known
    cost.
    """
    got = Sums(float, use)
    if got["open_counted"]:
        try:
            price = listed_price(model.partition("@")[0], option="--price")
            got["estimated"] = float(price.costs(got["open_input"], got["open_output"]))
        except CalibrationError:
            got["unpriced"] += got["open_counted"]
    counted = got["counted"]
    return {
        **{name: got[name] for name in ("requests", "counted")},
        "cost": got["cost"] + got["estimated"],
        **{name: got[name] for name in ("estimated", "unpriced")},
        "mean_input_tokens": got["input"] / counted if counted else None,
        "mean_output_tokens": got["output"] / counted if counted else None,
    }


@dataclass(frozen=True, slots=True)
class Cluster:
    """A kind of request: `words` tell it from others; `examples` are nearest to its middle."""

    number: int
    share: float
    cost_share: float | None
    characters: float
    words: tuple[str, ...]
    examples: tuple[str, ...]
    languages: Mapping[str, float] | None
    models: Mapping[str, float]
    feedback: float | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """The report. Shares are of requests; `described` rows were looked at for all but the totals.

    `characters` are percentiles of the prompts' lengths; `languages` None where the library that
    tells them is not installed.
    """

    rows: int
    requests: float
    described: int
    start: str | None
    end: str | None
    models: Mapping[str, Mapping[str, Any]]
    cost: float
    tenants: Mapping[str, float]
    tasks: Mapping[str, float]
    answered: float
    rated: float
    feedback: float | None
    conversations: float
    with_system: float
    with_tools: float
    characters: Mapping[str, float]
    languages: Mapping[str, float] | None
    clusters: tuple[Cluster, ...]


def describe(
    tally: Tally,
    rows: Sequence[LogRow],
    embeddings: Vectors,
    *,
    language: Language | None,
    k: int | None = None,
    centers: Vectors | None = None,
    seed: int = 0,
) -> Traffic:
    """The report over a tally of all rows, from `rows` that stand for them with their weights.

    embeddings float32[n, dim], of unit length. centers: of clusters that are there already; else
    k of them (or as many as can be read) are made. language: tells a text's, None where it cannot.
    """
    weights = np.array([row.weight for row in rows], np.float64)
    if centers is None:
        centers = fit(embeddings, k or default_k(len(rows)), seed=seed, weights=weights)
    languages = None if language is None else [language(row.prompt) or "?" for row in rows]
    roles = [[str(message.get("role")) for message in row.messages] for row in rows]
    lengths = np.array([len(row.prompt) for row in rows], np.float64)
    models = [(name or "?", model_use(name, use)) for name, use in tally.models.items()]
    sums, requests = tally.sums, tally.sums["requests"] or 1.0

    def share(flags: Iterable[bool]) -> float:
        return float(np.average(np.fromiter(flags, np.bool_, len(rows)), weights=weights))

    return Traffic(
        rows=tally.rows,
        requests=sums["requests"],
        described=len(rows),
        start=tally.start,
        end=tally.end,
        models=dict(sorted(models, key=lambda item: (-item[1]["cost"], -item[1]["requests"]))),
        cost=sum(use["cost"] for _, use in models),
        tenants=_shares(tally.tenants, requests),
        tasks=_shares(tally.tasks, requests),
        answered=sums["answered"] / requests,
        rated=sums["rated"] / requests,
        feedback=sums["rating"] / sums["rated"] if sums["rated"] else None,
        conversations=share(found.count("user") > 1 for found in roles),
        with_system=share(not {"system", "developer"}.isdisjoint(found) for found in roles),
        with_tools=share("tool" in found for found in roles),
        characters={f"p{q}": _percentile(lengths, weights, q / 100) for q in (10, 50, 90, 99)},
        languages=None if languages is None else _weighed(languages, weights),
        clusters=_clusters(rows, weights, embeddings, centers, languages),
    )


def _clusters(
    rows: Sequence[LogRow],
    weights: Floats,
    embeddings: Vectors,
    centers: Vectors,
    languages: Sequence[str] | None,
) -> tuple[Cluster, ...]:
    labels = assign(embeddings, centers)
    near = np.einsum("nd,nd->n", embeddings, centers[labels])
    costs = np.array([np.nan if r.cost_usd is None else r.cost_usd for r in rows], np.float64)
    ratings = np.array([np.nan if r.feedback is None else r.feedback for r in rows], np.float64)
    lengths = np.array([len(row.prompt) for row in rows], np.float64)
    spent = float(np.nansum(costs * weights))
    words = telling_words([r.prompt for r in rows], labels, len(centers), weights=weights)
    clusters = []
    for number in np.unique(labels).tolist():
        at = np.flatnonzero(labels == number)
        at = at[np.argsort(-near[at], kind="stable")]  # the nearest to the middle first
        w, inside = weights[at], at.tolist()
        rated = at[~np.isnan(ratings[at])]
        clusters.append(
            Cluster(
                number=number,
                share=float(w.sum() / weights.sum()),
                cost_share=float(np.nansum(costs[at] * w)) / spent if spent else None,
                characters=_percentile(lengths[at], w, 0.5),
                words=words[number],
                examples=_examples(rows[i].prompt for i in inside),
                languages=_weighed([languages[i] for i in inside], w) if languages else None,
                models=_weighed([rows[i].model or "?" for i in inside], w),
                feedback=float(np.average(ratings[rated], weights=weights[rated]))
                if len(rated)
                else None,
            )
        )
    return tuple(sorted(clusters, key=lambda cluster: -cluster.share))


def _examples(prompts: Iterable[str]) -> tuple[str, ...]:
    """The first few that are not the same but for numbers and case."""
    found: dict[str, str] = {}
    for prompt in prompts:
        line = " ".join(prompt.split())
        found.setdefault(re.sub(r"\d+", "0", line.lower()), line)
        if len(found) == _EXAMPLES:
            break
    return tuple(line if len(line) <= 200 else f"{line[:199]}…" for line in found.values())


def _percentile(values: Floats, weights: Floats, share: float) -> float:
    """The smallest value that at least `share` of the weight does not pass."""
    order = np.argsort(values)
    steps = np.cumsum(weights[order])
    at = int(np.searchsorted(steps, share * steps[-1] * (1 - 1e-12)))
    return float(values[order[min(at, len(order) - 1)]])


def _weighed(names: Sequence[str], weights: Floats) -> dict[str, float]:
    counts = Sums(float)
    for name, weight in zip(names, weights.tolist(), strict=True):
        counts[name] += weight
    return _shares(counts, float(weights.sum()))


def _shares(counts: Mapping[str, float], total: float) -> dict[str, float]:
    ranked = sorted((name for name in counts if name), key=lambda name: (-counts[name], name))
    return {name: counts[name] / total for name in ranked[:_TOP]}
