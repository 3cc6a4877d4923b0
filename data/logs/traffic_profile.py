"""What the traffic of a log looks like: models and cost, lengths, languages, kinds of request.

Totals are over all rows, each times its weight. What a text has to be looked at for (languages,
lengths, clusters) is told from `Described` rows that stand for all of them.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import CalibrationError
from ...providers.prices import listed_price
from ..clusters import assign, default_k, fit
from .schema import LogRow

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Language = Callable[[str], str | None]

_EXAMPLES = 3
_WORDS = 6
_TOP = 10
_WORD = re.compile(r"[^\W\d_]{3,30}")
_LOOKED_AT = 4000  # characters of a prompt, for words


@dataclass(slots=True)
class ModelUse:
    """What one model had to do. Costs in USD; tokens of the requests that tell theirs."""

    requests: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    counted: float = 0.0  # requests whose tokens are known
    cost: float = 0.0
    estimated: float = 0.0  # of the cost: not logged, but tokens times LiteLLM's prices
    unpriced: float = 0.0  # requests whose cost nobody knows
    _open: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0], repr=False)

    def add(self, row: LogRow) -> None:
        """Count a row."""
        self.requests += row.weight
        if row.input_tokens is not None and row.output_tokens is not None:
            self.counted += row.weight
            self.input_tokens += row.weight * row.input_tokens
            self.output_tokens += row.weight * row.output_tokens
        if row.cost_usd is not None:
            self.cost += row.weight * row.cost_usd
        elif row.input_tokens is None or row.output_tokens is None:
            self.unpriced += row.weight
        else:
            for i, amount in enumerate((1, row.input_tokens, row.output_tokens)):
                self._open[i] += row.weight * amount

    def price(self, model: str) -> None:
        """Estimate what was not logged."""
        requests, tokens_in, tokens_out = self._open
        if not requests:
            return
        try:
            price = listed_price(model.partition("@")[0], option="--price")
        except CalibrationError:
            self.unpriced += requests
        else:
            usd = float(price.costs(tokens_in, tokens_out))
            self.estimated += usd
            self.cost += usd
        self._open = [0.0, 0.0, 0.0]

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
    tenants: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    sessions: int = 0  # rows that name one
    answered: float = 0.0
    rated: float = 0.0
    rating: float = 0.0

    def add(self, row: LogRow) -> None:
        """Count a row."""
        self.rows += 1
        self.requests += row.weight
        self.models[row.model or ""].add(row)
        if row.time is not None:
            self.start = row.time if self.start is None else min(self.start, row.time)
            self.end = row.time if self.end is None else max(self.end, row.time)
        _count(self.tenants, row.tenant, row.weight)
        _count(self.tasks, row.task, row.weight)
        self.sessions += bool(row.session)
        self.answered += row.weight * (row.answer is not None)
        if row.feedback is not None:
            self.rated += row.weight
            self.rating += row.weight * row.feedback


@dataclass(frozen=True, slots=True)
class Cluster:
    """One kind of request. `share` is of all requests, `cost_share` of what is known of the cost.

    `words` are those that tell it from the others, `examples` the prompts nearest to its middle.
    """

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

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


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
    heavy = np.array([row.weight for row in rows], np.float64)
    total = float(heavy.sum()) or 1.0
    for model, use in tally.models.items():
        use.price(model)
    if centers is None:
        centers = fit(embeddings, k or default_k(len(rows)), seed=seed, weights=heavy)
    told = None if language is None else [language(row.prompt) or "?" for row in rows]
    roles = [Counter(str(m.get("role")) for m in row.messages) for row in rows]
    lengths = np.array([len(row.prompt) for row in rows], np.float64)
    models = sorted(tally.models.items(), key=lambda item: (-item[1].cost, -item[1].requests))

    def share(flags: Iterable[bool]) -> float:
        return float(heavy[np.fromiter(flags, np.bool_, len(rows))].sum()) / total

    return Traffic(
        rows=tally.rows,
        requests=tally.requests,
        described=len(rows),
        start=tally.start,
        end=tally.end,
        models={name or "?": use.to_dict() for name, use in models},
        cost=sum(use.cost for use in tally.models.values()),
        tenants=_shares(tally.tenants, tally.requests),
        tasks=_shares(tally.tasks, tally.requests),
        answered=tally.answered / (tally.requests or 1.0),
        rated=tally.rated / (tally.requests or 1.0),
        feedback=tally.rating / tally.rated if tally.rated else None,
        conversations=share(found["user"] > 1 for found in roles),
        with_system=share(bool(found["system"] + found["developer"]) for found in roles),
        with_tools=share(bool(found["tool"]) for found in roles),
        characters={f"p{q}": _percentile(lengths, heavy, q / 100) for q in (10, 50, 90, 99)},
        languages=None if told is None else _weighed(told, heavy),
        clusters=_clusters(rows, heavy, embeddings, centers, told),
    )


def _clusters(
    rows: Sequence[LogRow],
    heavy: Floats,
    embeddings: Vectors,
    centers: Vectors,
    languages: Sequence[str] | None,
) -> tuple[Cluster, ...]:
    labels = assign(embeddings, centers)
    near = np.einsum("nd,nd->n", embeddings, centers[labels])
    costs = np.array([np.nan if r.cost_usd is None else r.cost_usd for r in rows], np.float64)
    spent = float(np.nansum(costs * heavy))
    words = [frozenset(_WORD.findall(row.prompt[:_LOOKED_AT].lower())) for row in rows]
    everywhere: Counter[str] = Counter()
    for weight, found in zip(heavy, words, strict=True):
        _count_all(everywhere, found, weight)
    clusters = []
    for number in range(len(centers)):
        at = np.flatnonzero(labels == number)
        if not at.size:
            continue
        # The nearest to the middle first.
        inside: list[int] = at[np.argsort(-near[at], kind="stable")].tolist()
        weight = heavy[inside]
        here: Counter[str] = Counter()
        for i in inside:
            _count_all(here, words[i], heavy[i])
        lengths = np.array([len(rows[i].prompt) for i in inside], np.float64)
        rated = [(rows[i].feedback, heavy[i]) for i in inside if rows[i].feedback is not None]
        clusters.append(
            Cluster(
                number=number,
                share=float(weight.sum() / heavy.sum()),
                cost_share=float(np.nansum(costs[inside] * weight)) / spent if spent else None,
                characters=_percentile(lengths, weight, 0.5),
                words=_telling(here, float(weight.sum()), everywhere, float(heavy.sum())),
                examples=_examples(rows[i].prompt for i in inside),
                languages=None
                if languages is None
                else _weighed([languages[i] for i in inside], weight),
                models=_weighed([rows[i].model or "?" for i in inside], weight),
                feedback=sum(f * w for f, w in rated if f is not None) / sum(w for _, w in rated)
                if rated
                else None,
            )
        )
    return tuple(sorted(clusters, key=lambda cluster: -cluster.share))


def _telling(
    here: Mapping[str, float], inside: float, everywhere: Mapping[str, float], total: float
) -> tuple[str, ...]:
    """The words that say most about being in a cluster: share inside times its log-ratio."""

    def tells(word: str) -> float:
        share = here[word] / inside
        return share * math.log(share / (everywhere[word] / total))

    # In one cluster alone nothing tells it from others: then the most frequent.
    alone = inside >= total
    ranked = sorted(here, key=lambda word: (-(here[word] if alone else tells(word)), word))
    return tuple(ranked[:_WORDS])


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
    """The smallest value that at least `share` of the weight does not pass; 0 of none."""
    if not values.size:
        return 0.0
    order = np.argsort(values)
    steps = np.cumsum(weights[order])
    at = int(np.searchsorted(steps, share * steps[-1] * (1 - 1e-12)))
    return float(values[order[min(at, len(order) - 1)]])


def _weighed(names: Sequence[str], weights: Floats) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for name, weight in zip(names, weights, strict=True):
        _count(counts, name, float(weight))
    return _shares(counts, float(weights.sum()))


def _shares(counts: Counter[str], total: float) -> dict[str, float]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name: value / (total or 1.0) for name, value in ranked[:_TOP]}


def _count(counts: Counter[str], name: str, weight: float) -> None:
    # A counter counts in whole numbers by its annotation only.
    if name:
        counts[name] += weight  # type: ignore[assignment]


def _count_all(counts: Counter[str], names: Iterable[str], weight: float) -> None:
    for name in names:
        _count(counts, name, weight)
