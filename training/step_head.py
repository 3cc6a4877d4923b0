"""The trainer of the step head: how the state of a loop moves the score of its prompt.

Rows are decisions of the server as `thriftroute records export --rated` writes them: steps of
agents' sessions that the weak model answered and a user, or a check of one's own, has rated. The
label is 1 - feedback: that the weak model's step fell short.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.readers import raw_records
from ..errors import DataError, TrainingError
from ..router.bundle import Bundle, write_bundle
from ..router.second_look import log_odds
from ..router.step_head import FEATURES, STEP, StepHead, columns_of
from .logistic import Logistic, log_loss, out_of_fold

FOLDS = 5
LEAST = 50  # rated steps
LEAST_SAID = 2.0  # standard errors by which the features must lower the log loss to be used


def train_step_head(
    data: Sequence[str], weak: str, base: Bundle, out: Path, *, seed: int = 0, overwrite: bool
) -> StepHead:
    """Fit a head on rated steps of the model `weak`, and write `base` with it to `out`.

    Raises DataError for files that cannot be read, TrainingError where too few rows are rated
    steps, or all are rated alike, and BundleError.
    """
    rows = [row for path in data for row in _rated(path, weak)]
    label = np.array([short for *_, short in rows])
    if len(rows) < LEAST or float(np.ptp(label)) == 0:
        raise TrainingError(
            f"{len(rows)} rated steps of {weak!r} in {', '.join(data)}: expected {LEAST} or more, "
            "and not all rated alike; rows are those of `thriftroute records export --rated`"
        )
    columns = {"prompt": np.array([score for score, *_ in rows])}
    columns |= columns_of([step for _, step, _ in rows])
    terms = ("prompt", *FEATURES)
    fold = np.random.default_rng(seed).permutation(len(rows)) % FOLDS
    alone, both = (
        log_loss(out_of_fold(columns, names, label, fold), label) for names in (terms[:1], terms)
    )
    saved = alone - both
    error = float(saved.std() / np.sqrt(len(rows)))
    fitted = Logistic.fit(columns, terms, label)
    facts = {"n": len(rows), "seed": seed, "loss": float(both.mean())}
    facts |= {"loss_of_score": float(alone.mean()), "saved": float(saved.mean()), "error": error}
    # Of the features alone: what the score itself tells, it tells already.
    center, scale, weights = (each[1:] for each in (fitted.center, fitted.scale, fitted.weights))
    tells = bool(saved.mean() > LEAST_SAID * error)
    head = StepHead(center, scale, weights, tells, facts)
    kept = dataclasses.asdict(base.manifest)
    fields = {n: v for n, v in kept.items() if n not in ("files", "format", "written_by")}
    files: dict[str, Any] = {name: base.file(name) for name in base.manifest.files}
    write_bundle(out, files={**files, STEP: head.to_json()}, overwrite=overwrite, **fields)
    return head


def _rated(path: str, weak: str) -> Iterator[tuple[float, Mapping[str, float], float]]:
    """(log odds of the prompt's score, NaN where it was not scored; features; label)."""
    for _, row, _ in raw_records(path)[1]:
        if isinstance(row, DataError):
            raise row
        feedback = row.get("feedback")
        steps = row.get("steps") or ()
        if row.get("model") != weak or not isinstance(feedback, int | float):
            continue
        with contextlib.suppress(ValueError, TypeError, KeyError):  # of no agent's session
            told = dict(steps)
            named = (each.split(" ") for each in told["step"].split(", "))
            step = {name: float(number) for name, number in named}
            score = told.get("prompt score", row.get("score"))
            odds = np.nan if score is None else float(log_odds(float(score)))
            yield odds, {name: step[name] for name in FEATURES}, 1 - float(feedback)
