"""Policies on recorded sessions: never switch, route every call blindly, price the switch.

A policy gives each step a model. As long as it has not switched, a step's tokens are those that
were recorded: what was read from the cache, what was written. A model that comes back reads what of
the prompt it had seen, where its cache is kept so long, and pays for the rest anew; one that is new
to the session pays for all of it. Answers and the number of steps are taken to be the same with
either model: they are not, and no record tells how they would have been.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...data.logs.steps import Bools, Sessions
from ...providers.prompt_cache import Cached, CachePrice, Usage
from ...router.switching import STUCK, Pair, SessionState, Step, choose
from ..metrics import Floats

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A policy on n steps: who answered each (`strong`), what it cost in USD, and what it would
    have cost had that model held the cache all along (`warm`)."""

    strong: Bools
    usd: Floats
    warm: Floats
    starts: Ints

    @property
    def by_session(self) -> Floats:
        """USD of each session."""
        return np.add.reduceat(self.usd, self.starts[:-1])

    @property
    def switched(self) -> Bools:
        """Which steps another model answered than the step before."""
        changed = np.zeros(len(self.strong), np.bool_)
        changed[1:] = self.strong[1:] != self.strong[:-1]
        changed[self.starts[:-1]] = False
        return changed


@dataclass(slots=True)
class _Caches:
    """What was really cached, of each session: tokens of the prefix that a model has seen (none, of
    one that has not answered), and until when."""

    tokens: Floats
    until: Floats


def never(sessions: Sessions, pair: Pair, *, strong: bool) -> Outcome:
    """Every step with one model."""
    price = pair.strong if strong else pair.weak
    usd = price.recorded(sessions.usage)
    chosen = np.full(sessions.steps, strong)
    return Outcome(chosen, usd, usd, sessions.starts)


def each_call(sessions: Sessions, pair: Pair, wants_strong: Bools) -> Outcome:
    """Every step with the model that is wanted for it, whatever that costs."""
    return _run(sessions, pair, lambda rows, step, state: wants_strong[rows])


def priced(sessions: Sessions, pair: Pair, wants_strong: Bools | None = None) -> Outcome:
    """As `router.switching.choose` decides, without a look at what comes later. wants_strong: the
    router's wish for each step; without it, cost alone decides."""

    def decide(rows: Ints, step: Step, state: SessionState) -> Bools:
        wish = None if wants_strong is None else wants_strong[rows]
        return np.asarray(choose(state, step, pair, wish)[0], np.bool_)

    return _run(sessions, pair, decide)


def natural_points(sessions: Sessions) -> Bools:
    """Steps before which a session may change its model, as far as the record tells."""
    found = sessions.turn | sessions.compacted | (sessions.failed >= STUCK)
    found[sessions.starts[:-1]] = True
    return found


def _run(
    sessions: Sessions, pair: Pair, decide: Callable[[Ints, Step, SessionState], Bools]
) -> Outcome:
    """All sessions at once, a step at a time; the longest first, so that those that go on are the
    first so many."""
    lengths: Ints = np.diff(sessions.starts)
    order = np.argsort(-lengths, kind="stable")
    first, lengths = sessions.starts[:-1][order], lengths[order]
    n = sessions.n
    usage, natural = sessions.usage, natural_points(sessions)
    prompt = usage.prompt
    zeros = np.zeros(n)
    nothing = Cached(zeros, np.full(n, -np.inf))
    state = SessionState(
        *(zeros, zeros, zeros, zeros, zeros),
        on_strong=zeros > 0,
        strong=nothing,
        weak=nothing,
        escalated=zeros > 0,
    )
    caches = [_Caches(np.zeros(n), np.full(n, -np.inf)) for _ in range(2)]  # of strong, of weak
    moved = np.zeros(n, np.bool_)
    chosen, usd = np.zeros(sessions.steps, np.bool_), np.zeros(sessions.steps)
    for number in range(int(lengths[0])):
        going = int(np.searchsorted(-lengths, -number))
        rows = first[:going] + number
        state = _first(state, going)
        now = sessions.time[rows]
        step = Step(prompt[rows], now, natural[rows], sessions.failed[rows])
        strong = decide(rows, step, state)
        if number:
            moved[:going] |= strong != state.on_strong
        here = _take(usage, rows)
        usd[rows] = _cost(here, pair, strong, moved[:going], now, state, caches)
        chosen[rows] = strong
        _keep(here, pair, strong, now, caches)
        kept = np.full(going, np.inf) if not number else here.cache_read
        state = state.after(step, pair, strong, here.output, kept)
    ends: list[Floats] = [price.recorded(usage) for price in (pair.strong, pair.weak)]
    warm = np.where(chosen, ends[0], ends[1])
    return Outcome(chosen, usd, warm, sessions.starts)


def _cost(
    here: Usage,
    pair: Pair,
    strong: Bools,
    moved: Bools,
    now: Floats,
    state: SessionState,
    caches: list[_Caches],
) -> Floats:
    """USD of one step of k sessions, float64[k]; `moved`: a session that has switched before."""
    k = len(strong)
    found = np.zeros(k)
    for price, mine, cached in zip(
        (pair.strong, pair.weak), (strong, ~strong), caches, strict=True
    ):
        recorded = price.recorded(here)
        held = np.minimum(cached.tokens[:k], here.cache_read)
        # Who goes on reads what the record says was still there.
        goes_on = mine & (state.on_strong == strong)
        read = np.where(goes_on | (now <= cached.until[:k]), held, 0.0)
        again = _rewritten(price, here, read)
        found = np.where(mine, np.where(moved, again, recorded), found)
    return found


def _rewritten(price: CachePrice, here: Usage, read: Floats) -> Floats:
    """USD of a step of which only `read` tokens of those that were read are there: the others are
    written again, for as long as caches of the session are kept."""
    lost = here.cache_read - read
    short = here.prompt < price.rules.min_tokens
    again = np.where(short, price.price.input, price.write)
    usd: Floats = price.recorded(replace(here, cache_read=read)) + lost * again / 1e6
    return usd


def _keep(here: Usage, pair: Pair, strong: Bools, now: Floats, caches: list[_Caches]) -> None:
    k = len(strong)
    for price, mine, cached in zip(
        (pair.strong, pair.weak), (strong, ~strong), caches, strict=True
    ):
        # What the prompt no longer begins with is of no use to the other model either.
        other = np.minimum(cached.tokens[:k], here.cache_read)
        cached.tokens[:k] = np.where(mine, here.prompt, other)
        cached.until[:k] = np.where(mine, now + price.lifetime_s, cached.until[:k])


def _take(usage: Usage, rows: Ints) -> Usage:
    names = ("input", "cache_read", "cache_write", "cache_write_1h", "output")
    return Usage(*(getattr(usage, name)[rows] for name in names))


def _first(state: SessionState, k: int) -> SessionState:
    """The state of the first k sessions."""

    def cut(value: Any) -> Any:
        if isinstance(value, Cached):
            return Cached(value.tokens[:k], value.until[:k])
        return value[:k]

    return SessionState(*(cut(getattr(state, name)) for name in SessionState.__slots__))
