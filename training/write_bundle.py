"""From a trained model to a bundle: calibration, figures, the parity check, the card."""

import dataclasses
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.tables import PairTable
from ..errors import CalibrationError, EvaluationError
from ..eval import metrics
from ..eval.probability import calibrate_scores
from ..router.bundle import EMBEDDING, Bundle, write_bundle
from ..router.scorer import Scorer
from ..router.text import Promptlike
from ..router.threshold import ThresholdTable, apply_calibration
from .card import render_card
from .export import Exported, Parity, run_graph
from .progress import History, Progress
from .settings import TrainSettings

PARITY_PROMPTS = 200
UNCALIBRATED = {"method": "platt", "a": 1.0, "b": 0.0}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """What a trainer gives: a model as graphs, and the prompts whose figures stand in the card.

    facts: what the card and the manifest say of data and model. options: the settings of the kind.
    margin float64[table.n]: quality of strong minus weak by a fit that has not seen the prompt;
    None: what the written graph says of it. calibration: margins and labels of other prompts to
    calibrate on; None: those of the table, cross-validated. thresholds: name and margins of the
    prompts that the table of thresholds is measured on; None: those of the table, "validation".
    """

    exported: Exported
    facts: dict[str, Any]
    options: Any
    table: PairTable
    margin: Floats | None = None
    calibration: tuple[Floats, Floats] | None = None
    thresholds: tuple[str, Floats] | None = None
    history: History = field(default_factory=History)


@dataclass(frozen=True)
class TrainResult:
    """The bundle and its summary, which also stands in its manifest and card."""

    bundle: Bundle
    summary: dict[str, Any]


def write_trained(settings: TrainSettings, trained: Trained, say: Progress) -> TrainResult:
    """Parity, calibration, metrics and card of a trained model; then the bundle is written."""
    exported, table, history = trained.exported, trained.table, trained.history
    strong, weak = exported.pair
    fields: dict[str, Any] = {"kind": settings.kind, **exported.fields, "strong": strong}
    fields |= {"models": list(exported.models), "weak": weak, "calibration": UNCALIBRATED}
    files: dict[str, bytes | Path] = {"model.onnx": exported.model, "card.md": b""}
    files["tokenizer.json"] = exported.tokenizer
    if exported.embedding is not None:
        files[EMBEDDING] = exported.embedding
    inputs: list[Promptlike] = list(table.inputs())
    sample = inputs[:PARITY_PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        scorer = Scorer.load(write_bundle(Path(folder) / "draft", files=files, **fields))
        # Of a graph that stands on a base bundle's encoder nothing is compared on these prompts.
        asked = inputs if trained.margin is None else sample if exported.whole is not None else []
        say.note("scoring the validation split")
        by_graph = scorer.margins(asked)
        margin = by_graph if trained.margin is None else trained.margin
        spec, probability = calibrate(margin, table, settings.seed, trained.calibration)
        if probability["calibration"] == "none":
            say.note(f"not calibrated: too few labels in {table.n} prompts, or no method helps")
        parity = _parity(scorer, exported, by_graph[: len(sample)], sample, table, spec)
    parity.check()
    scores = apply_calibration(margin, spec)
    summary = {
        **trained.facts,
        "settings": dataclasses.asdict(trained.options),
        "epochs": history.epoch,
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
        "losses": [round(loss, 5) for loss in history.losses],
        "validation": {**_figures(scores, table), **probability},
        "parity": dataclasses.asdict(parity),
    }
    fields["calibration"] = spec
    name, of_table = trained.thresholds or ("validation", margin)
    measured = ThresholdTable.from_scores(name, apply_calibration(of_table, spec))
    fields["thresholds"] = {name: dataclasses.asdict(measured)}
    files["card.md"] = render_card(summary, settings.notes).encode()
    # An empty folder is no obstacle.
    overwrite = settings.overwrite or not settings.taken
    bundle = write_bundle(
        settings.out, files=files, overwrite=overwrite, **fields, training=summary
    )
    return TrainResult(bundle, summary)


def calibrate(
    margin: Floats,
    table: PairTable,
    seed: int,
    other: tuple[Floats, Floats] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best of temperature, Platt and isotonic, and what it makes of the table's margins.

    Fitted on the table itself, figures cross-validated, or on `other` margins and labels. Where the
    labels of one class are too few to cross-validate, or no method helps, the margins stay as they
    are ("none").
    """
    fitted_on = (margin, table.win) if other is None else other
    # Isotonic has as many parameters as steps: with few labels it fits noise.
    many = len(fitted_on[0]) >= 1000
    methods = ("temperature", "platt", "isotonic") if many else ("temperature", "platt")

    def measured(spec: dict[str, Any]) -> tuple[float, float]:
        scores = apply_calibration(margin, spec)
        return metrics.ece(scores, table.win), metrics.brier(scores, table.win)

    ece, brier = measured(UNCALIBRATED)
    result = None
    with suppress(CalibrationError):
        result = calibrate_scores(*fitted_on, methods=methods, seed=seed)
    if result is None or result.brier_after >= result.brier_before:
        return UNCALIBRATED, {"ece": [ece] * 2, "brier": [brier] * 2, "calibration": "none"}
    after = (result.ece_after, result.brier_after) if other is None else measured(result.spec)
    return result.spec, {
        "ece": [ece, after[0]],
        "brier": [brier, after[1]],
        "calibration": str(result.spec["method"]),
        "calibrated_on": "these prompts" if other is None else f"{len(other[0]):,} other prompts",
    }


def _figures(scores: Floats, table: PairTable) -> dict[str, Any]:
    auc = round(float(metrics.auc(scores, (table.win > 0.5).astype(float))), 4)
    lengths = np.array([len(p) for p in table.prompts], dtype=np.float64)
    return {
        "n": table.n,
        # NaN: strong wins most of the comparisons of no prompt, or of all.
        "auc": None if np.isnan(auc) else auc,
        "strong_mean": round(float(table.strong.mean()), 4),
        "weak_mean": round(float(table.weak.mean()), 4),
        "strong_wins": round(float(table.win.mean()), 4),
        "apgr": _apgr(scores, table),
        "apgr_prompt_length": _apgr(lengths, table),
    }


def _apgr(scores: Floats, table: PairTable) -> float | None:
    with suppress(EvaluationError):  # strong is not better than weak on these prompts
        return round(metrics.apgr(scores, table.strong, table.weak), 4)
    return None


def _parity(
    scorer: Scorer,
    exported: Exported,
    margin: Floats,
    sample: Sequence[Promptlike],
    table: PairTable,
    spec: dict[str, Any],
) -> Parity:
    distance = {"fp32": 0.0, "int8": 0.0}
    for check in exported.checks:
        graph = exported.whole if check.graph == "fp32" else exported.model
        assert graph is not None
        quality = run_graph(graph, check.feeds, ["quality"])[0]
        worst = np.abs(quality - check.quality).max()
        # Not `max`, which would pass over a NaN.
        distance[check.graph] = float(np.maximum(distance[check.graph], worst))
    if exported.whole is None:
        return Parity(sum(len(c.feeds) for c in exported.checks), head=distance["int8"])
    at = [list(exported.models).index(name) for name in exported.pair]
    fp32 = run_graph(exported.whole, [scorer.feeds(p) for p in sample], ["quality"])[0]
    n = len(sample)
    a = apply_calibration(margin, spec)
    b = apply_calibration((fp32[:, at[0]] - fp32[:, at[1]]).astype(np.float64), spec)
    apgr, strong, weak = None, table.strong[:n], table.weak[:n]
    with suppress(EvaluationError):
        apgr = metrics.apgr(a, strong, weak) - metrics.apgr(b, strong, weak)
    moved = np.abs(a - b)
    return Parity(
        n, distance["int8"], distance["fp32"], float(moved.mean()), float(moved.max()), apgr
    )
