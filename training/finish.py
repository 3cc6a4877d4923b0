"""From a trained model to a bundle: calibration, figures, the parity check, the card."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.tables import PairTable
from ..eval import metrics
from ..eval.probability import calibrate_scores
from ..router.bundle import write_bundle
from ..router.errors import CalibrationError, EvaluationError
from ..router.scorer import Scorer
from ..router.text import Promptlike
from ..router.threshold import ThresholdTable, apply_calibration
from .bert import BertSettings
from .card import render_card
from .export import Parity, run_graph
from .loop import History
from .mf import MFSettings
from .progress import Progress
from .request import TrainRequest, TrainResult

PARITY_PROMPTS = 200

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Exported:
    """A trained model as graphs: int8 (`model`) and fp32 (`whole`), and what torch says to them.

    torch_outputs: quality and embedding by torch of the sequences torch_ids.
    margin: quality of strong minus weak on the validation split by the int8 encoder, where known.
    """

    model: bytes
    whole: bytes | Path
    models: Sequence[str]
    pair: Sequence[str]
    tokenizer: bytes
    dim: int
    specials: tuple[list[int], list[int]]
    torch_ids: list[list[int]]
    torch_outputs: tuple[npt.NDArray[Any], npt.NDArray[Any]]
    margin: Floats | None = None


def finish(
    request: TrainRequest,
    base: dict[str, Any],
    tables: tuple[PairTable, PairTable],
    history: History,
    settings: MFSettings | BertSettings,
    exported: Exported,
    say: Progress,
) -> TrainResult:
    """Parity, calibration, metrics and card of a trained model; then the bundle is written."""
    pair = exported.pair
    at = [list(exported.models).index(name) for name in pair]
    fields: dict[str, Any] = {
        "kind": request.kind,
        "encoder": request.encoder,
        "dim": exported.dim,
        "models": list(exported.models),
        "strong": pair[0],
        "weak": pair[1],
        "max_tokens": request.max_tokens,
        "calibration": {"method": "platt", "a": 1.0, "b": 0.0},
    }
    fields["prefix_ids"], fields["suffix_ids"] = exported.specials
    files: dict[str, bytes | Path] = {
        "model.onnx": exported.model,
        "tokenizer.json": exported.tokenizer,
        "card.md": b"",
    }
    draft = request.out.with_name(request.out.name + ".run") / "bundle"
    scorer = Scorer.load(write_bundle(draft, files=files, overwrite=True, **fields))
    validation = tables[1]
    inputs: list[Promptlike] = list(validation.inputs())
    sample = inputs[:PARITY_PROMPTS]
    margin = _margins(scorer, sample, say)
    rest = inputs[len(sample) :]
    # Figures must be those of the graph that is written: what the cached embeddings say of the rest
    # counts only where it agrees with the graph on the sample.
    known = exported.margin
    if known is not None and np.abs(known[: len(sample)] - margin).max() <= 1e-3:
        margin = np.concatenate((margin, known[len(sample) :]))
    else:
        margin = np.concatenate((margin, _margins(scorer, rest, say)))
    spec, probability = calibrate(margin, validation, request.seed)
    fields["calibration"] = spec
    if probability["calibration"] == "none":
        say.note(f"not calibrated: too few labels in {validation.n} prompts, or no method helps")

    outputs = run_graph(exported.whole, exported.torch_ids, ["quality", "embedding"])
    distance = max(
        float(np.abs(ours - theirs).max())
        for ours, theirs in zip(outputs, exported.torch_outputs, strict=True)
    )
    ids = [scorer.token_ids(prompt) for prompt in sample]
    fp32 = run_graph(exported.whole, ids, ["quality"])[0]
    parity = _parity(
        margin[: len(sample)],
        fp32[:, at[0]] - fp32[:, at[1]],
        validation,
        spec,
        distance,
    )
    parity.check()
    scores = apply_calibration(margin, spec)
    summary = {
        **base,
        "settings": dataclasses.asdict(settings),
        "epochs": history.epoch,
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
        "losses": [round(loss, 5) for loss in history.losses],
        "validation": {**_quality(scores, validation), **probability},
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


def calibrate(margin: Floats, table: PairTable, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best of temperature, Platt and isotonic on the validation split, and its figures.

    Where the split has too few labels of one class to cross-validate, or where no method helps, the
    margins stay as they are ("none").
    """
    # Isotonic has as many parameters as steps: with few labels it fits noise.
    methods = ("temperature", "platt", "isotonic") if table.n >= 1000 else ("temperature", "platt")
    try:
        result = calibrate_scores(margin, table.win, methods=methods, seed=seed)
    except CalibrationError:
        result = None
    if result is not None and result.brier_after < result.brier_before:
        spec, method = result.spec, str(result.spec["method"])
        ece, brier = (
            [result.ece_before, result.ece_after],
            [result.brier_before, result.brier_after],
        )
    else:
        spec, method = {"method": "platt", "a": 1.0, "b": 0.0}, "none"
        raw = apply_calibration(margin, spec)
        ece = [metrics.ece(raw, table.win)] * 2
        brier = [metrics.brier(raw, table.win)] * 2
    return spec, {"ece": ece, "brier": brier, "calibration": method}


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
    int8: Floats, fp32: Floats, table: PairTable, spec: dict[str, Any], distance: float
) -> Parity:
    n = len(int8)
    a, b = apply_calibration(int8, spec), apply_calibration(fp32.astype(np.float64), spec)
    try:
        strong, weak = table.strong[:n], table.weak[:n]
        apgr = metrics.apgr(a, strong, weak) - metrics.apgr(b, strong, weak)
    except EvaluationError:
        apgr = None
    moved = np.abs(a - b)
    return Parity(n, distance, float(moved.mean()), float(moved.max()), apgr)


def occupied(path: Path) -> bool:
    """Whether a folder holds anything."""
    return path.exists() and any(path.iterdir())
