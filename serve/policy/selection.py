"""Which of the models that can take a request answers it: by score, by quality, by band, by wish.

Everything here chooses from `allowed`, the models that eligibility and sensitivity left, and never
fails a request for its score: without one the model that `router.on_error` names answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...router.threshold import choose
from ..config.settings import Config
from ..registry import Model
from ..request import Asked, Priority
from .eligibility import by_price
from .plan import Choice
from .scoring import Scoring

Fastest = Callable[[str], float | None]


@dataclass(frozen=True, slots=True)
class Picked:
    """The model that is to answer, and what settled it."""

    model: str
    choice: Choice
    reason: str
    score: float | None = None
    threshold: float | None = None
    router: str | None = None


class Selection:
    """The ways to choose, over one config. `fastest`: model -> seconds that it takes, or None."""

    def __init__(
        self,
        config: Config,
        models: Mapping[str, Model],
        scoring: Scoring,
        fastest: Fastest | None = None,
    ) -> None:
        self._config = config
        self._models = models
        self._scoring = scoring
        self._fastest = fastest

    def named(self, model: str, reason: str) -> Picked:
        """A model that was settled on its own, with the choice that it is."""
        config = self._config
        choice: Choice = (
            "strong" if model == config.strong else "weak" if model == config.weak else "pool"
        )
        return Picked(model, choice, reason)

    def pair(self, asked: Asked, allowed: Sequence[str], threshold: float, source: str) -> Picked:
        """The strong model where score >= threshold, else the weak one.

        Where only one of them can take the request nothing needs to be scored; where neither can,
        the cheapest of the others does.
        """
        config = self._config
        left = [name for name in (config.weak, config.strong) if name in allowed]
        if not left:
            return self._cheapest(asked, allowed, "neither strong nor weak model can take it")
        if len(left) == 1:
            return self.named(left[0], f"of strong and weak only {left[0]!r} can take it")
        score, problem = self._scoring.score(asked)
        if score is None:
            return self._unscored(asked, allowed, problem, threshold)
        choice = choose(score, threshold)
        sign = ">=" if choice == "strong" else "<"
        return Picked(
            config.strong if choice == "strong" else config.weak,
            choice,
            f"score {score:.6g} {sign} threshold {threshold:.6g}"
            + (f", {source}" if source else ""),
            score,
            threshold,
            self._scoring.name,
        )

    def bands(self, asked: Asked, allowed: Sequence[str]) -> Picked:
        """The model of the band that the score falls into, else that of the next higher one.

        Where no higher band's model can take the request, the nearest lower one's does.
        """
        bands = self._config.router.bands
        score, problem = self._scoring.score(asked)
        if score is None:
            return self._unscored(asked, allowed, problem, None)
        at = next(
            (i for i, band in enumerate(bands) if band.below is None or score < band.below),
            len(bands) - 1,
        )
        order = [*range(at, len(bands)), *range(at - 1, -1, -1)]
        found = next((i for i in order if bands[i].model in allowed), None)
        said = f"score {score:.6g} is in band {bands[at].name!r}"
        if found is None:
            picked = self._cheapest(asked, allowed, f"{said}; no band's model can take it")
        else:
            moved = (
                "" if found == at else f", whose model cannot take it; {bands[found].name!r} can"
            )
            picked = Picked(bands[found].model, "band", said + moved)
        return replace(picked, score=score, router=self._scoring.name)

    def pool(self, asked: Asked, allowed: Sequence[str]) -> Picked:
        """The cheapest model that loses at most `router.tolerance` against the best.

        Loss: see `Scoring.losses`. Models that the bundle does not know take no part.
        """
        score, problem = self._scoring.score(asked)
        if score is None:
            return self._unscored(asked, allowed, problem, None)
        losses = {n: loss for n, loss in self._scoring.losses(score).items() if n in allowed}
        if not losses:
            picked = self._cheapest(asked, allowed, "the bundle knows none that can take it")
            return replace(picked, score=score, router=self._scoring.name)
        best = min(losses, key=lambda name: losses[name])
        tolerance = self._config.router.tolerance
        fine = [name for name, loss in losses.items() if loss - losses[best] <= tolerance]
        model = by_price(fine, self._models, asked)[0]
        reason = (
            f"score {score:.6g}: cheapest of {len(fine)} within {tolerance:.3g} of the best, "
            f"{best!r}; loses {losses[model] - losses[best]:.3g}"
        )
        return Picked(model, "pool", reason, score, router=self._scoring.name)

    def priority(self, asked: Asked, allowed: Sequence[str], wish: Priority) -> Picked:
        """cost: the weak model; quality: the strong one; speed: the fastest so far.

        Where that one cannot take the request: the cheapest, for quality the dearest that can.
        """
        if wish == "speed":
            timed = {name: self._fastest(name) if self._fastest else None for name in allowed}
            known = {name: seconds for name, seconds in timed.items() if seconds is not None}
            if known:
                name = min(known, key=lambda n: known[n])
                picked = self.named(name, f"priority speed: {known[name]:.3g} s of late")
                return picked
            return self._first(asked, allowed, "weak", "priority speed: nothing timed yet")
        kind = "weak" if wish == "cost" else "strong"
        return self._first(asked, allowed, kind, f"priority {wish}")

    def _unscored(
        self, asked: Asked, allowed: Sequence[str], problem: str, threshold: float | None
    ) -> Picked:
        kind = self._config.router.on_error
        picked = self._first(asked, allowed, kind, problem)
        return replace(picked, threshold=threshold, router=self._scoring.name)

    def _first(self, asked: Asked, allowed: Sequence[str], kind: str, reason: str) -> Picked:
        """The strong model, else the dearest that can; or the weak one, else the cheapest."""
        wanted = self._config.strong if kind == "strong" else self._config.weak
        if wanted in allowed:
            return self.named(wanted, reason)
        at, word = (-1, "dearest") if kind == "strong" else (0, "cheapest")
        name = self._by_price(asked, allowed)[at]
        return self.named(name, f"{reason}: the {word} that can, since {wanted!r} cannot take it")

    def _cheapest(self, asked: Asked, allowed: Sequence[str], reason: str) -> Picked:
        name = self._by_price(asked, allowed)[0]
        return self.named(name, f"{reason}: the cheapest that can")

    def _by_price(self, asked: Asked, allowed: Sequence[str]) -> list[str]:
        """The cheapest first; of equal ones the weak model first and the strong one last."""
        config = self._config
        names = sorted(allowed, key=lambda name: (name == config.strong) - (name == config.weak))
        return by_price(names, self._models, asked)
