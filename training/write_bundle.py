"""From a trained model to a bundle: calibration, figures, the parity check, the card."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..data.tables import PairTable
from ..errors import CalibrationError, EvaluationError
from ..eval import metrics
from ..eval.probability import calibrate_scores
from ..router.bundle import write_bundle
from ..router.scorer import Scorer
from ..router.text import Promptlike
from ..router.threshold import ThresholdTable, apply_calibration
from .card import render_card
from .export import Feeds, Parity, run_graph
from .models.bert import BertSettings
from .models.finetune_encoder import TuneSettings
from .models.loop import History
from .models.mf import MFSettings
from .progress import Progress
from .request import TrainRequest, TrainResult

PARITY_PROMPTS = 200

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """What a graph must say: `quality` float32[n, n_models] for n inputs (see `Scorer.feeds`).

    graph: "fp32" (against torch), or "int8" (the head as it was fitted, on the representations that
    the int8 graph gives).
    """

    feeds: Sequence[Feeds]
    quality: npt.NDArray[Any]
    graph: Literal["fp32", "int8"]


@dataclass(frozen=True)
class Exported:
    """A trained model as graphs: int8 (`model`), and fp32 (`whole`) where it is at hand.

    fields: of the manifest, beyond what `finish` knows.
    """

    model: bytes
    whole: bytes | Path | None
    models: Sequence[str]
    pair: Sequence[str]
    tokenizer: bytes
    fields: dict[str, Any]
    checks: Sequence[Check]


@dataclass(frozen=True)
class Evidence:
    """The prompts whose figures stand in the card, and what calibrates.

    margin float64[table.n]: quality of strong minus weak by a fit that has not seen the prompt;
    None: what the written graph says of it. calibration: margins and labels of other prompts to
    calibrate on; None: those of the table, cross-validated.
    """

    table: PairTable
    margin: Floats | None = None
    calibration: tuple[Floats, Floats] | None = None


def finish(
    request: TrainRequest,
    base: dict[str, Any],
    evidence: Evidence,
    history: History,
    settings: MFSettings | BertSettings | TuneSettings,
    exported: Exported,
    say: Progress,
) -> TrainResult:
    """Parity, calibration, metrics and card of a trained model; then the bundle is written."""
    fields: dict[str, Any] = {
        "kind": request.kind,
        **exported.fields,
        "models": list(exported.models),
        "strong": exported.pair[0],
        "weak": exported.pair[1],
        "calibration": {"method": "platt", "a": 1.0, "b": 0.0},
    }
    files: dict[str, bytes | Path] = {
        "model.onnx": exported.model,
        "tokenizer.json": exported.tokenizer,
        "card.md": b"",
    }
    draft = request.out.with_name(request.out.name + ".run") / "bundle"
    scorer = Scorer.load(write_bundle(draft, files=files, overwrite=True, **fields))
    table = evidence.table
    inputs: list[Promptlike] = list(table.inputs())
    sample = inputs[:PARITY_PROMPTS]
    margin = evidence.margin
    if margin is None:
        margin = _margins(scorer, inputs, say)
        graph = margin[: len(sample)]
    else:
        graph = _margins(scorer, sample, say) if exported.whole is not None else margin[:0]
    spec, probability = calibrate(margin, table, request.seed, evidence.calibration)
    fields["calibration"] = spec
    if probability["calibration"] == "none":
        say.note(f"not calibrated: too few labels in {table.n} prompts, or no method helps")
    parity = _parity(scorer, exported, graph, sample, table, spec)
    parity.check()
    scores = apply_calibration(margin, spec)
    summary = {
        **base,
        "settings": dataclasses.asdict(settings),
        "epochs": history.epoch,
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
        "losses": [round(loss, 5) for loss in history.losses],
        "validation": {**_quality(scores, table), **probability},
        "parity": dataclasses.asdict(parity),
    }
    name = "validation"
    fields["thresholds"] = {name: ThresholdTable.from_scores(name, scores).to_dict()}
    files["card.md"] = render_card(summary, request.notes).encode()
    bundle = write_bundle(
        request.out, files=files, overwrite=request.overwrite or not occupied(request.out),
        **fields, training=summary,
    )  # fmt: skip
    return TrainResult(bundle, summary)


def _margins(scorer: Scorer, prompts: list[Promptlike], say: Progress) -> Floats:
    """Quality of strong minus quality of weak by the graph, before calibration: float64[n]."""
    if not prompts:
        return np.empty(0)
    at = [scorer.bundle.manifest.models.index(name) for name in (scorer.strong, scorer.weak)]
    done = 0
    with say.bar("scoring the validation split") as update:

        def count(k: int) -> None:
            nonlocal done
            done += k
            update(done, len(prompts))

        rows = [e.quality for e in scorer.encode_all(prompts, progress=count)]
    return np.array([float(q[at[0]] - q[at[1]]) for q in rows], dtype=np.float64)


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
    try:
        result = calibrate_scores(*fitted_on, methods=methods, seed=seed)
    except CalibrationError:
        result = None
    raw_spec = {"method": "platt", "a": 1.0, "b": 0.0}
    raw = apply_calibration(margin, raw_spec)
    before = (metrics.ece(raw, table.win), metrics.brier(raw, table.win))
    if result is None or result.brier_after >= result.brier_before:
        return raw_spec, {
            "ece": [before[0]] * 2, "brier": [before[1]] * 2, "calibration": "none",
        }  # fmt: skip
    if other is None:
        ece, brier = result.ece_after, result.brier_after
    else:
        scores = apply_calibration(margin, result.spec)
        ece, brier = metrics.ece(scores, table.win), metrics.brier(scores, table.win)
    return result.spec, {
        "ece": [before[0], ece],
        "brier": [before[1], brier],
        "calibration": str(result.spec["method"]),
        "calibrated_on": "these prompts" if other is None else f"{len(other[0]):,} other prompts",
    }


def _quality(scores: Floats, table: PairTable) -> dict[str, Any]:
    result: dict[str, Any] = {
        "n": table.n,
        "auc": round(float(metrics.auc(scores, (table.win > 0.5).astype(float))), 4),
        "strong_mean": round(float(table.strong.mean()), 4),
        "weak_mean": round(float(table.weak.mean()), 4),
        "strong_wins": round(float(table.win.mean()), 4),
    }
    if np.isnan(result["auc"]):  # strong wins most of the comparisons of no prompt, or of all
        result["auc"] = None
    lengths = np.array([len(p) for p in table.prompts], dtype=np.float64)
    for name, values in (("apgr", scores), ("apgr_prompt_length", lengths)):
        try:
            result[name] = round(metrics.apgr(values, table.strong, table.weak), 4)
        except EvaluationError:
            result[name] = None  # strong is not better than weak on this split
    return result


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
        worst = float(np.abs(quality - check.quality).max())
        distance[check.graph] = max(distance[check.graph], worst)
    if exported.whole is None:
        return Parity(sum(len(c.feeds) for c in exported.checks), head=distance["int8"])
    feeds = [scorer.feeds(prompt) for prompt in sample]
    at = [list(exported.models).index(name) for name in exported.pair]
    fp32 = run_graph(exported.whole, feeds, ["quality"])[0]
    n = len(sample)
    a = apply_calibration(margin, spec)
    b = apply_calibration((fp32[:, at[0]] - fp32[:, at[1]]).astype(np.float64), spec)
    try:
        strong, weak = table.strong[:n], table.weak[:n]
        apgr = metrics.apgr(a, strong, weak) - metrics.apgr(b, strong, weak)
    except EvaluationError:
        apgr = None
    moved = np.abs(a - b)
    return Parity(
        n, distance["int8"], distance["fp32"], float(moved.mean()), float(moved.max()), apgr
    )


def occupied(path: Path) -> bool:
    """Whether a folder holds anything."""
    return path.exists() and any(path.iterdir())
