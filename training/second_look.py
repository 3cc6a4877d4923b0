"""The trainer of the second look: a router and a look at the weak model's answers, in one bundle.

The router's own part is fitted as `train mf` or `train fast` does it, from the same labels; its
margins and all signals that are fitted are taken out of fold, so that the look is fitted on what it
will see of new prompts. Signals come together in a logistic regression; those whose absence lowers
the cross-validated loss are left out, and isotonic steps follow where that loss is lower with them.
The label is the mean of "the weak answer falls short" and "strong is better": where strong fails
too, there is nothing to escalate for.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.answers import read_answers
from ..data.readers import raw_records
from ..data.sketch import seen
from ..data.split import prompt_key, split_by_hash
from ..errors import DataError, TrainingError
from ..eval.metrics import auc
from ..eval.probability import fit_isotonic
from ..eval.second_look import PRICE_RATIO, cheapest
from ..router.bundle import CARD, Bundle, write_bundle
from ..router.extractors import PATTERN, check_pattern
from ..router.json_schema import check_schema
from ..router.scorer import Scorer
from ..router.second_look import (
    SECOND_LOOK,
    SIGNALS,
    Answer,
    LookPolicy,
    SecondLook,
    log_odds,
    signal_columns,
)
from ..router.threshold import apply_calibration
from .card import render_card
from .logistic import Logistic, log_loss, out_of_fold
from .look_signals import answer_signal, choose_extractor, form_signal
from .models.head import Base, Floats
from .models.mf import train_mf
from .prepare import MIN_PROMPTS, Start, prepare, start_of
from .progress import Progress
from .settings import TrainSettings
from .write_bundle import Trained, TrainResult, write_trained

FOLDS = 5
LEAST_SAID = 1.0  # standard errors by which the look must beat the score's log loss to be used
LEAST_LOSS = 0.004  # nats a prompt by which the absence of a signal must lower the loss
KEPT = 2_000  # labelled prompts whose numbers the bundle keeps
GAP = 0.9  # that the thresholds recover which the bundle is written with


@dataclass(frozen=True)
class LookSettings:
    """second: the model whose answers agree or not, if any. price_ratio: what a strong call costs
    in weak calls [20]; the bundle's own thresholds are the cheapest that recover `GAP` of the gap.
    pattern: finds the final answer, a regular expression with one group (`router.extractors`).
    schema: a JSON schema of the final answer, or of the whole one, as text.
    """

    second: str | None = None
    price_ratio: float | None = None
    pattern: str | None = None
    schema: str | None = None


def train_second_look(
    settings: TrainSettings, options: LookSettings, progress: Progress | None = None
) -> TrainResult:
    """Fit a router from `settings.base`, and a look on top of it; write both as one bundle.

    `settings.data`: one file with answers (`data.answers`); strong and weak name a model each.
    Raises as `training.train`.
    """
    say = progress or Progress()
    if len(settings.data) != 1 or len(settings.strong) != 1 or len(settings.weak) != 1:
        raise TrainingError("a second look takes one --data file, one strong and one weak model")
    if options.pattern is not None:
        check_pattern(options.pattern)
    if options.schema is not None:
        check_schema(options.schema)
    settings = dataclasses.replace(settings, base=settings.base or "mf", kind="mf")
    start = start_of(settings)
    if start.base is None or start.scorer.bundle.manifest.kind not in ("mf", "fast"):
        raise TrainingError(f"--router {settings.base}: a second look stands on mf or fast")
    kind, alone = start.scorer.bundle.manifest.kind, _weak_alone(settings, options)
    settings = dataclasses.replace(settings, kind=kind, assume_strong=alone)
    settings.check()
    if alone:
        say.note(f"only {settings.weak[0]} has scores: {settings.strong[0]} is taken to be right")
    data = prepare(settings, start.scorer, say)
    trained = train_mf(settings, _unlearned(start, data.pairs.prompts), data, say)
    answers = read_answers(settings.data[0], settings.weak[0], options.second)
    with tempfile.TemporaryDirectory() as folder:
        draft = dataclasses.replace(settings, out=Path(folder) / "bundle", overwrite=True)
        result = write_trained(draft, trained, say)
        say.note("fitting the second look")
        look = _fit(result.bundle, trained, answers, settings, options)
        manifest = result.bundle.manifest
        known = ("files", "format", "written_by", "training")
        fields = {
            name: value for name, value in dataclasses.asdict(manifest).items() if name not in known
        }
        summary = {**result.summary, "second_look": dict(look.facts)}
        files: dict[str, Any] = {name: result.bundle.file(name) for name in manifest.files}
        card = render_card(summary, settings.notes).encode()
        bundle = write_bundle(
            settings.out,
            files={**files, CARD: card, SECOND_LOOK: look.to_json()},
            overwrite=settings.overwrite or not settings.taken,
            **fields,
            training=summary,
        )
    return TrainResult(bundle, summary)


def _weak_alone(settings: TrainSettings, options: LookSettings) -> bool:
    """Whether the data have scores of the weak model, and of no other but the second one."""
    _, rows = raw_records(settings.data[0])
    models = {
        record.get(name)
        for _, record, _ in rows
        if not isinstance(record, DataError)
        for name in ("model", "model_a", "model_b")
    }
    return settings.weak[0] in models and models <= {None, settings.weak[0], options.second}


def _unlearned(start: Start, prompts: Sequence[str]) -> Start:
    """The start without what `train` added to its base, where that was from these very prompts:
    its scores of them would look better than those of new prompts. A built-in bundle stays."""
    training, base = start.scorer.bundle.manifest.training, start.base
    kept = str(training.get("sketch", "")).split()
    added = training.get("base") and training.get("fitted_on") == "labels"
    if base is None or not added or len(base.head.b1) < 2 or not seen(kept, prompts).known:
        return start
    head = dataclasses.replace(
        base.head,
        w1=base.head.w1[:-1],
        b1=base.head.b1[:-1],
        u=base.head.u[:, :-1],
        gated=base.head.gated[:-1],
    )
    return dataclasses.replace(start, base=Base(head, base.strong, base.weak))


def _fit(
    bundle: Bundle,
    trained: Trained,
    known: Mapping[str, Answer],
    settings: TrainSettings,
    options: LookSettings,
) -> SecondLook:
    """The look on the prompts that have an answer of the weak model."""
    assert trained.margin is not None
    keep = np.array([prompt in known for prompt in trained.table.prompts])
    table, margin = trained.table.subset(keep), trained.margin[keep]
    if table.n < MIN_PROMPTS:
        raise TrainingError(
            f"{table.n} labelled prompts have an answer of {settings.weak[0]!r}: at least "
            f"{MIN_PROMPTS} are needed, and about 300 make a good second look"
        )
    answers = [known[prompt] for prompt in table.prompts]
    gain = table.strong - table.weak
    label = ((1 - table.weak) + np.clip(gain, 0, 1)) / 2
    scores = apply_calibration(margin, bundle.manifest.calibration)
    fold = split_by_hash(
        table.prompts,
        (1 / FOLDS,) * FOLDS,
        seed=settings.seed,
        key=lambda prompt: f"look {prompt_key(prompt)}",
    )
    scorer = Scorer.load(bundle)
    extractor, differs = None, None
    if options.pattern is not None:
        extractor = f"{PATTERN}{options.pattern}"
    elif any(answer.second is not None for answer in answers):
        extractor, differs = choose_extractor(scorer, answers, label)
    columns = signal_columns(scores, answers, extractor, options.schema)
    if differs is not None:
        columns["agreement"] = differs
    columns["form"], forms = form_signal(answers)
    weights = bias = None
    if any(len(answer.text) > 3 for answer in answers):
        columns["answer"], weights, bias = answer_signal(scorer, answers, label, fold, settings)
    terms = _select(columns, label, fold)
    fitted = Logistic.fit(columns, terms, label)
    looks = out_of_fold(columns, terms, label, fold)
    looks, steps = _steps(looks, label, fold)
    alone = out_of_fold(columns, ("prompt",), label, fold)
    saved = log_loss(alone, label) - log_loss(looks, label)
    spread = float(saved.std() / np.sqrt(table.n))
    lines = {
        # Of a score that is calibrated: its probability p grows by p (1 - p) a unit of log odds.
        "score": _line(log_odds(scores), gain, prior=float(np.mean(scores * (1 - scores)))),
        "look": _line(looks, gain, prior=_slope(label, gain)[0]),
    }
    picked = np.random.default_rng(settings.seed).permutation(table.n)[:KEPT]
    sample = np.stack((log_odds(scores), looks, gain), axis=1)[np.sort(picked)]
    short = (table.weak < 0.5).astype(np.float64)
    look = SecondLook(
        strong=settings.strong[0],
        weak=settings.weak[0],
        signals=terms,
        center=fitted.center,
        scale=fitted.scale,
        weights=fitted.weights,
        bias=fitted.bias,
        policy=LookPolicy(0.0, 2.0, 0.5),
        sample=tuple(tuple(row) for row in sample.round(6).tolist()),
        gain=lines,
        tells=float(saved.mean()) > LEAST_SAID * spread,
        second=options.second if "agreement" in terms else None,
        extractor=extractor if "agreement" in terms or options.pattern else None,
        answer_weights=weights if "answer" in terms else None,
        answer_bias=float(bias or 0.0) if "answer" in terms else 0.0,
        forms=forms if "form" in terms else None,
        schema=options.schema if "checks" in terms else None,
        steps=steps,
    )
    ratio = PRICE_RATIO if options.price_ratio is None else options.price_ratio
    facts = {
        "n": table.n,
        "seed": settings.seed,
        "signals": list(terms),
        "extractor": look.extractor,
        "second": look.second,
        "auc": _auc(looks, short),
        "auc_prompt": _auc(scores, short),
        "nats": [round(float(saved.mean()), 4), round(spread, 4)],
        "tells": look.tells,
        "price_ratio": ratio,
        "assume_strong": settings.assume_strong,
        "strong_mean": round(float(table.strong.mean()), 6),
    }
    return dataclasses.replace(look, policy=cheapest(look, ratio, GAP), facts=facts)


def _auc(scores: Floats, short: Floats) -> float | None:
    value = auc(scores, short)
    return None if np.isnan(value) else round(float(value), 4)


def _steps(looks: Floats, label: Floats, fold: Any) -> tuple[Floats, dict[str, Any] | None]:
    """The looks through isotonic steps that are fitted on the other folds, and the steps of all;
    the looks as they are, and None, where the loss is not clearly lower with them."""
    odds, mapped = log_odds(looks), np.empty(len(looks))
    for out in (fold == held for held in np.unique(fold)):
        mapped[out] = apply_calibration(odds[out], fit_isotonic(odds[~out], label[~out]))
    saved = log_loss(looks, label) - log_loss(mapped, label)
    if float(saved.mean()) < LEAST_LOSS:
        return looks, None
    return mapped, fit_isotonic(odds, label)


def _select(columns: Mapping[str, Floats], label: Floats, fold: Any) -> tuple[str, ...]:
    """The score, and the signals that vary, less those whose absence lowers the cross-validated log
    loss."""

    def loss(terms: Sequence[str]) -> float:
        return float(log_loss(out_of_fold(columns, terms, label, fold), label).mean())

    terms = [name for name in SIGNALS if name == "prompt" or _varies(columns.get(name))]
    best = loss(terms)
    while len(terms) > 1:
        without = {name: loss([t for t in terms if t != name]) for name in terms[1:]}
        worst = min(without, key=lambda name: without[name])
        if without[worst] >= best - LEAST_LOSS:
            break
        best = without[worst]
        terms.remove(worst)
    return tuple(terms)


def _varies(column: Floats | None) -> bool:
    known = np.empty(0) if column is None else column[np.isfinite(column)]
    return bool(known.size) and float(np.ptp(known)) > 1e-9


def _line(x: Floats, gain: Floats, prior: float) -> tuple[float, float]:
    """(intercept, slope) of the gain, never falling: a worse look earns no more.

    The labels tell a slope only roughly: it is the mean of theirs and of the prior by precision,
    where the prior's error is half of it.
    """
    slope, error = _slope(x, gain)
    if not np.isfinite(error):
        return float(gain.mean()), 0.0
    weights = np.array([max(error, 1e-9), max(prior, 1e-9) / 2]) ** -2.0
    slope = max(float(np.average([slope, prior], weights=weights)), 0.0)
    return float(gain.mean() - slope * x.mean()), slope


def _slope(x: Floats, y: Floats) -> tuple[float, float]:
    """Least squares slope and its standard error; (0, inf) where x does not vary."""
    if np.ptp(x) < 1e-9:
        return 0.0, float("inf")
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - intercept - slope * x
    return float(slope), float(rest.std() / x.std() / np.sqrt(max(len(x) - 2, 1)))
