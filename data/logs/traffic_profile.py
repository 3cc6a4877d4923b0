"""What the traffic of a log looks like: models and cost, lengths, languages, kinds of request.

Totals are over all rows, each times its weight. What a text has to be looked at for (languages,
lengths, clusters) is told from rows that stand for all of them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import CalibrationError
from ...providers.prices import listed_price
from ..clusters import assign, default_k, fit, telling_words
from .schema import LogRow

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Language = Callable[[str], str | None]
Weights = dict[str, float]

_EXAMPLES = 3
_TOP = 10


def _weights() -> Weights:
    return defaultdict(float)


@dataclass(slots=True)
class ModelUse:
    """What one model had to do. Costs in USD; tokens of the requests that tell theirs."""

    requests: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    counted: float = 0.0  # requests whose tokens are known
    cost: float = 0.0
    estimated: float = 0.0  # of the cost: not logged, but tokens times the listed prices
    unpriced: float = 0.0  # requests whose cost nobody knows
    _open: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0], repr=False)

    def add(self, row: LogRow) -> None:
        """Count a row."""
        self.requests += row.weight
        known = row.input_tokens is not None and row.output_tokens is not None
        tokens = (row.weight * (row.input_tokens or 0), row.weight * (row.output_tokens or 0))
        if known:
            self.counted += row.weight
            self.input_tokens += tokens[0]
            self.output_tokens += tokens[1]
        if row.cost_usd is not None:
            self.cost += row.weight * row.cost_usd
        elif known:
            self._open = [a + b for a, b in zip(self._open, (row.weight, *tokens), strict=True)]
        else:
            self.unpriced += row.weight

    def price(self, model: str) -> None:
        """Estimate what was not logged."""
        requests, tokens_in, tokens_out = self._open
        self._open = [0.0, 0.0, 0.0]
        if not requests:
            return
        try:
            price = listed_price(model.partition("@")[0], option="--price")
        except CalibrationError:
            self.unpriced += requests
            return
        usd = float(price.costs(tokens_in, tokens_out))
        self.estimated += usd
        self.cost += usd

    def to_dict(self) -> dict[str, Any]:
        """Its fields, with means instead of sums of tokens; None where there is nothing to mean."""
        found = {name: value for name, value in asdict(self).items() if name[0] != "_"}
        for name in ("input_tokens", "output_tokens"):
            found[f"mean_{name}"] = found.pop(name) / self.counted if self.counted else None
        return found


@dataclass(slots=True)
class Tally:
    """Totals over rows, one pass."""

    rows: int = 0
    requests: float = 0.0
    start: str | None = None
    end: str | None = None
    models: dict[str, ModelUse] = field(default_factory=lambda: defaultdict(ModelUse))
    tenants: Weights = field(default_factory=_weights)
    tasks: Weights = field(default_factory=_weights)
    answered: float = 0.0
    rated: float = 0.0
    rating: float = 0.0

    def add(self, row: LogRow) -> None:
        """Count a row."""
        self.rows += 1
        self.requests += row.weight
        self.models[row.model or ""].add(row)
        if row.time is not None:
            self.start = min(self.start or row.time, row.time)
            self.end = max(self.end or row.time, row.time)
        self.tenants[row.tenant] += row.weight
        self.tasks[row.task] += row.weight
        self.answered += row.weight * (row.answer is not None)
        if row.feedback is not None:
            self.rated += row.weight
            self.rating += row.weight * row.feedback


@dataclass(frozen=True, slots=True)
class Cluster:
    """A kind of request. `words` tell it from the others; `examples` are prompts nearest to its
    middle."""

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
    for model, use in tally.models.items():
        use.price(model)
    if centers is None:
        centers = fit(embeddings, k or default_k(len(rows)), seed=seed, weights=weights)
    languages = None if language is None else [language(row.prompt) or "?" for row in rows]
    roles = [[str(message.get("role")) for message in row.messages] for row in rows]
    lengths = np.array([len(row.prompt) for row in rows], np.float64)
    models = sorted(tally.models.items(), key=lambda item: (-item[1].cost, -item[1].requests))
    requests = tally.requests or 1.0

    def share(flags: Iterable[bool]) -> float:
        return float(np.average(np.fromiter(flags, np.bool_, len(rows)), weights=weights))

    return Traffic(
        rows=tally.rows,
        requests=tally.requests,
        described=len(rows),
        start=tally.start,
        end=tally.end,
        models={name or "?": use.to_dict() for name, use in models},
        cost=sum(use.cost for use in tally.models.values()),
        tenants=_shares(tally.tenants, requests),
        tasks=_shares(tally.tasks, requests),
        answered=tally.answered / requests,
        rated=tally.rated / requests,
        feedback=tally.rating / tally.rated if tally.rated else None,
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
    rated = np.array([np.nan if r.feedback is None else r.feedback for r in rows], np.float64)
    lengths = np.array([len(row.prompt) for row in rows], np.float64)
    spent = float(np.nansum(costs * weights))
    words = telling_words([r.prompt for r in rows], labels, len(centers), weights=weights)
    clusters = []
    for number in np.unique(labels).tolist():
        at = np.flatnonzero(labels == number)
        at = at[np.argsort(-near[at], kind="stable")]  # the nearest to the middle first
        w, inside = weights[at], at.tolist()
        known = ~np.isnan(rated[at])
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
                feedback=float(np.average(rated[at][known], weights=w[known]))
                if known.any()
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


def _weighed(names: Sequence[str], weights: Floats) -> Weights:
    counts = _weights()
    for name, weight in zip(names, weights.tolist(), strict=True):
        counts[name] += weight
    return _shares(counts, float(weights.sum()))


def _shares(counts: Mapping[str, float], total: float) -> Weights:
    ranked = sorted(filter(lambda item: item[0], counts.items()), key=lambda x: (-x[1], x[0]))
    return {name: value / total for name, value in ranked[:_TOP]}
