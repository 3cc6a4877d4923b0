"""`thriftroute replay`: from files of sessions and two models to what four policies cost."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...data.logs.steps import Bools, Sessions, Steps, read_steps
from ...errors import CalibrationError, ConfigError, require_extra
from ...files import whole_file
from ...providers.prices import Price, listed_price
from ...providers.prompt_cache import CachePrice, cache_price
from ...router.routers import load_router, tables_of
from ...router.switching import Pair
from ...router.threshold import check_share, share_table, validate_threshold
from ..bootstrap import interval, resample_counts
from ..command import scored
from ..metrics import Interval
from ..printing import json_safe, simulated_note
from .replay import Outcome, each_call, natural_points, never, priced

POLICIES = ("strong", "weak", "blind", "priced")
STRONG_SHARE = 0.3  # where neither a router nor anybody says
RESAMPLES = 1000
# A gain or a loss below this part of the cost is none.
NOTHING = 0.001


@dataclass(frozen=True)
class ReplaySettings:
    """The two models, each with its price as "IN,OUT[,CACHE READ,CACHE WRITE]" or from the map, and
    what a router is to say: its name, and a threshold or a strong share."""

    strong: str
    weak: str
    strong_price: str | Price | None = None
    weak_price: str | Price | None = None
    router: str | None = None
    threshold: float | None = None
    strong_share: float | None = None
    seed: int = 0
    router_if_text: bool = False  # a config's, which is asked only where there are texts


@dataclass(frozen=True)
class Amount:
    """USD in all, with a 95% interval over sessions."""

    usd: float
    ci: Interval


@dataclass(frozen=True, eq=False)
class Replay:
    """Four policies on the same sessions, by name, and what follows from them.

    `against`: differences in USD. "blind, warm": what blind routing pays for its switches; "blind,
    strong": what it costs above always-strong; "priced, better": the priced policy above the better
    of the two that never switch; "priced, first": above its own first choices, never changed.
    `recorded`: what the steps cost with the models of the record, and how many of them the map has
    a price for.
    """

    settings: ReplaySettings
    sessions: Sessions
    read: Steps
    outcomes: dict[str, Outcome]
    usd: dict[str, Amount]
    against: dict[str, Amount]
    recorded: tuple[float, int]
    assumed: tuple[str, ...]

    @property
    def switch(self) -> bool:
        """Whether a switch inside sessions was found to pay."""
        gain = self.against["priced, first"]
        return bool(self.outcomes["priced"].switched.any()) and gain.ci[1] < 0

    @property
    def simulated(self) -> str:
        """A warning where the models, or those of the record, are made up; else ""."""
        own = simulated_note(self.settings.strong, self.settings.weak)
        return own or simulated_note(*self.sessions.models)

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        lost, usd = self.against["blind, warm"], self.usd["blind"].usd
        if self.switch:
            saved = -self.against["priced, first"].usd
            return (
                "switch inside sessions only where the price of a switch says so: that saves "
                f"${saved:,.2f}"
            )
        if not self.outcomes["blind"].switched.any():
            return "blind routing would have sent every session to one model: nothing to switch"
        if lost.usd <= NOTHING * usd:
            return "switches cost nothing here: the record tells of no prompt cache"
        part = lost.usd / (usd - lost.usd)
        told = (
            f"to route every call throws away caches worth ${lost.usd:,.2f}, {part:.0%} on top of "
            "the same calls with their caches"
        )
        if self.settings.router is not None and self.outcomes["priced"].switched.any():
            return f"switch inside sessions at natural points at most: {told}"
        return f"do not switch inside sessions: {told}"

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        policies = [
            {
                "policy": name,
                "usd": self.usd[name].usd,
                "usd_ci": self.usd[name].ci,
                "steps": len(outcome.strong),
                "switches": int(outcome.switched.sum()),
                "strong_steps": int(outcome.strong.sum()),
            }
            for name, outcome in self.outcomes.items()
        ]
        usd, steps = self.recorded
        found = {
            "policies": policies,
            "sessions": self.sessions.n,
            "steps": self.sessions.steps,
            **{name: getattr(self.settings, name) for name in ("strong", "weak", "router", "seed")},
            "recorded": {"usd": usd, "steps": steps, "models": _models(self.sessions)},
            "differences": {n: {"usd": a.usd, "usd_ci": a.ci} for n, a in self.against.items()},
            "switch_inside_sessions": self.switch,
            "advice": self.advice,
            "simulated": bool(self.simulated),
            "assumed": self.assumed,
            **{name: getattr(self.read, name) for name in ("entries", "repeated", "empty", "bad")},
            "problems": self.read.problems,
        }
        return dict(json_safe(found))


def run_replay(
    files: Sequence[str | Path],
    settings: ReplaySettings,
    *,
    progress: Callable[[int], object] = lambda entries: None,
) -> Replay:
    """Replay the sessions of files. Raises ConfigError and CalibrationError (models without a
    price, a router that does not fit), and DataError (files that cannot be read)."""
    if settings.threshold is not None and settings.strong_share is not None:
        raise ConfigError("give --threshold or --strong-share, and not both")
    if settings.router is None and settings.threshold is not None:
        raise ConfigError("--threshold is one of a router's scores: give --router, too")
    prices = [_price(settings, side) for side in ("strong", "weak")]
    read = read_steps(files, texts=settings.router is not None, progress=progress)
    sessions = read.sessions()
    if settings.router_if_text and not sessions.asked:
        settings = replace(settings, router=None, threshold=None)
    usage = sessions.usage
    hour = bool(np.sum(usage.cache_write_1h) > 0.5 * np.sum(usage.cache_write))
    strong, weak = (
        cache_price(name, price, hour=hour)
        for name, price in zip((settings.strong, settings.weak), prices, strict=True)
    )
    wish, blind, share, told = _wishes(sessions, settings)
    pair = Pair(strong, weak, share)
    outcomes = {
        "strong": never(sessions, pair, strong=True),
        "weak": never(sessions, pair, strong=False),
        "blind": each_call(sessions, pair, blind),
        "priced": priced(sessions, pair, wish),
    }
    usd, against = _amounts(outcomes, settings.seed)
    return Replay(
        settings=settings,
        sessions=sessions,
        read=read,
        outcomes=outcomes,
        usd=usd,
        against=against,
        recorded=_recorded(sessions, {settings.strong: prices[0], settings.weak: prices[1]}),
        assumed=(told, *_assumed(sessions, hour)),
    )


def _price(settings: ReplaySettings, side: str) -> Price:
    given = getattr(settings, f"{side}_price")
    if isinstance(given, str):
        return Price.parse(given)
    return given or listed_price(getattr(settings, side), option=f"--{side}-price")


def _wishes(sessions: Sessions, settings: ReplaySettings) -> tuple[Bools | None, Bools, float, str]:
    """The wish for the strong model at each step or None, what blind routing does at each step, the
    share of natural points with the wish, and what that rests on."""
    if settings.router is None:
        share = check_share(
            STRONG_SHARE if settings.strong_share is None else settings.strong_share
        )
        blind = np.random.default_rng(settings.seed).random(sessions.steps) < share
        told = (
            "no router was given: blind routing sends each step to the strong model with "
            f"probability {share:g} (seed {settings.seed}), and the priced policy minimises the "
            "expected cost alone"
        )
        return None, blind, 0.0, told
    if not sessions.asked:
        raise ConfigError(
            f"--router {settings.router}: the sessions have no text to score; without --router "
            "blind routing is drawn at random"
        )
    router = load_router(settings.router)
    threshold = _threshold(router, settings)
    steps = sorted(sessions.asked)
    scores = np.full(sessions.steps, np.nan)
    scores[steps] = scored(router)([sessions.asked[step] for step in steps])
    # The score of what the user said last, within the session.
    at = np.where(np.isnan(scores), -1, np.arange(sessions.steps))
    first = np.repeat(sessions.starts[:-1], np.diff(sessions.starts))
    last = np.maximum.accumulate(at)
    known = last >= first
    wish = np.zeros(sessions.steps, np.bool_)
    wish[known] = scores[last[known]] >= threshold
    share = float(wish[natural_points(sessions)].mean())
    told = (
        f"the strong model is wanted where {settings.router} scores what the user said last "
        f">= {threshold:.4g}: at {wish.mean():.1%} of the steps"
    )
    return wish, wish, share, told


def _threshold(router: Any, settings: ReplaySettings) -> float:
    if settings.threshold is not None:
        return validate_threshold(settings.threshold)
    table = share_table(tables_of(router))
    if table is None:
        raise ConfigError(
            f"--router {settings.router} has no table of thresholds: give --threshold"
        )
    share = STRONG_SHARE if settings.strong_share is None else settings.strong_share
    return float(table.sourced(share)[0])


def _amounts(
    outcomes: dict[str, Outcome], seed: int
) -> tuple[dict[str, Amount], dict[str, Amount]]:
    """USD of each policy, and their differences, with intervals from the same resamples."""
    cost = {name: outcome.by_session for name, outcome in outcomes.items()}
    blind, priced = outcomes["blind"], outcomes["priced"]
    starts = priced.starts[:-1]
    better = min(("weak", "strong"), key=lambda name: float(cost[name].sum()))
    first = np.where(priced.strong[starts], cost["strong"], cost["weak"])
    differences = {
        "blind, warm": cost["blind"] - np.add.reduceat(blind.warm, starts),
        "blind, strong": cost["blind"] - cost["strong"],
        "priced, better": cost["priced"] - cost[better],
        "priced, first": cost["priced"] - first,
    }
    every = np.stack([*cost.values(), *differences.values()], axis=1)
    drawn = np.concatenate([c @ every for c in resample_counts(len(every), RESAMPLES, seed=seed)])
    found = [Amount(float(every[:, i].sum()), interval(drawn[:, i])) for i in range(every.shape[1])]
    names = [*cost, *differences]
    amounts = dict(zip(names, found, strict=True))
    return {n: amounts[n] for n in cost}, {n: amounts[n] for n in differences}


def _recorded(sessions: Sessions, given: dict[str, Price]) -> tuple[float, int]:
    usd, steps = 0.0, 0
    for code, name in enumerate(sessions.models):
        try:
            price = given.get(name) or listed_price(name, option="--strong-price")
        except CalibrationError:
            continue
        mine = sessions.model == code
        usd += float(
            CachePrice(price, cache_price(name, price).rules).recorded(sessions.usage)[mine].sum()
        )
        steps += int(mine.sum())
    return usd, steps


def _models(sessions: Sessions) -> dict[str, int]:
    counts = np.bincount(sessions.model, minlength=len(sessions.models))
    order = np.argsort(-counts, kind="stable")
    return {sessions.models[i] or "unknown": int(counts[i]) for i in order}


def _assumed(sessions: Sessions, hour: bool) -> Iterator[str]:
    yield (
        "answers and steps are taken to be as many with either model, and a model that never "
        "leaves a session to read and write its cache as the recorded one did"
    )
    if hour:
        yield "caches are kept for an hour where the provider has that, as most recorded ones were"
    usage = sessions.usage
    if not np.any(usage.cache_read) and not np.any(usage.cache_write):
        yield "the record tells of no prompt cache, so a switch has no price here"
    changed = np.diff(sessions.model) != 0
    changed[sessions.starts[1:-1] - 1] = False
    if changed.any():
        yield (
            f"{int(changed.sum()):,} switches of the record itself are in the tokens of all "
            "policies as they were counted"
        )
    if sessions.n == 1:
        yield "one session has no interval"


def write_steps(replay: Replay, out: Path) -> None:
    """Every step with each policy's model and USD, as Parquet or CSV, for a look at where they
    differ. Raises ConfigError for another name, MissingExtraError, OSError."""
    sessions = replay.sessions
    lengths = np.diff(sessions.starts)
    columns: dict[str, Any] = {
        "session": np.repeat(np.array(sessions.names, object), lengths),
        "step": np.arange(sessions.steps) - np.repeat(sessions.starts[:-1], lengths),
        "time": sessions.time,
        "recorded_model": np.array(sessions.models, object)[sessions.model],
        "prompt_tokens": sessions.usage.prompt,
        "cache_read_tokens": sessions.usage.cache_read,
        "output_tokens": sessions.usage.output,
        "natural_point": natural_points(sessions),
    }
    for name in POLICIES:
        outcome = replay.outcomes[name]
        columns[f"{name}_model"] = np.where(outcome.strong, "strong", "weak")
        columns[f"{name}_usd"] = outcome.usd
    found = require_extra("pyarrow", "eval").table(columns)
    csv = out.suffix.lower() == ".csv"
    writer = require_extra("pyarrow.csv" if csv else "pyarrow.parquet", "eval")
    with whole_file(out) as file:
        (writer.write_csv if csv else writer.write_table)(found, file)


def check_out(out: Path | None, option: str, suffixes: Sequence[str]) -> None:
    """Raises ConfigError where a file cannot be written, before the work and not after it."""
    if out is None:
        return
    if out.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {out}: expected a name that ends in {' or '.join(suffixes)}")
    if not out.parent.is_dir():
        raise ConfigError(f"{option} {out}: there is no folder {out.parent}; make it first")
