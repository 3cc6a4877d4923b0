"""`thriftroute evaluate --second-look`: from a bundle and a file of answers to a report."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..data.answers import read_answers
from ..data.readers import read_rows
from ..data.tables import pair_table
from ..errors import ConfigError, EvaluationError
from ..files import whole_file
from ..router.routers import BundleRouter, Router, load_router
from ..router.second_look import SecondLook
from ..terminal import new_console
from .audit.labels import learned_from
from .metrics import Floats
from .printing import difference_text, interval_text, line, table
from .second_look import PRICE_RATIO, LookReport, measure_look

SHOWN = {
    "prompt": "by the prompt alone",
    "second-look": "second look between two thresholds",
    "always-look": "weak first, always looked at",
}


@dataclass(frozen=True)
class LookOptions:
    """What is measured: the look of the bundle `folder` on rows with answers (`data.answers`).

    second: whose answers are compared; None: the model that the look was trained with.
    """

    folder: str
    data: str | None
    strong: tuple[str, ...]
    weak: tuple[str, ...]
    second: str | None = None
    price_ratio: float | None = None


def run_look(
    options: LookOptions,
    *,
    scores_out: Path | None = None,
    seed: int = 0,
    bootstraps: int = 1000,
) -> LookReport:
    """Measure a second look. scores_out: a Parquet file of prompt_id, score and look_probability.

    Raises ConfigError where options do not fit or the bundle has no second look, and what the
    readers raise.
    """
    folder, data, second = options.folder, options.data, options.second
    if data is None or len(options.strong) != 1 or len(options.weak) != 1:
        raise ConfigError("--second-look needs --data FILE --strong MODEL --weak MODEL")
    [strong], [weak] = options.strong, options.weak
    ratio = PRICE_RATIO if options.price_ratio is None else options.price_ratio
    look, router = look_of(load_router(folder), folder)
    pairs = pair_table(read_rows(data), strong, weak)
    scores = router.scorer.scores(pairs.inputs())
    keep, looks = look_at(look, router, (data, weak, second), pairs.prompts, scores)
    pairs, scores = pairs.subset(keep), scores[keep]
    rewards = pairs.strong, pairs.weak
    found = measure_look(look, scores, looks, rewards, ratio, seed=seed, bootstraps=bootstraps)
    if learned := learned_from(router, data, pairs.prompts):
        warning = f"{learned}: what it has seen makes every figure here too good"
        found = dataclasses.replace(found, warning=warning)
    if scores_out is not None:
        _write(scores_out, data, pairs.prompts, {"score": scores, "look_probability": looks})
    return found


def look_of(router: Router, name: str) -> tuple[SecondLook, BundleRouter]:
    """The second look of a router, and the router. Raises ConfigError where it has none."""
    look = SecondLook.of(router.scorer.bundle) if isinstance(router, BundleRouter) else None
    if look is None or not isinstance(router, BundleRouter):
        raise ConfigError(f"{name!r} has no second look; write one with `train second-look`")
    return look, router


def look_at(
    look: SecondLook,
    router: BundleRouter,
    answers: tuple[str, str, str | None],
    prompts: Sequence[str],
    scores: Floats,
) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Which of n prompts have an answer of the weak model, bool[n], and what the look says of
    these k answers, float64[k].

    answers: (file, weak model, second model or None: that of the look). Raises EvaluationError
    where no prompt has an answer, DataError as `read_answers`.
    """
    data, weak, second = answers
    second = (second or look.second) if "agreement" in look.signals else None
    known = read_answers(data, weak, second)
    keep = np.array([prompt in known for prompt in prompts])
    if not keep.any():
        raise EvaluationError(f"{data}: no prompt has scores of both and an answer of {weak!r}")
    found = [known[prompt] for prompt in prompts if prompt in known]
    return keep, look.probabilities(router.scorer, scores[keep], found)


def print_look(found: LookReport) -> None:
    """The report as a table."""
    out = new_console()
    line(
        out,
        f"n = {found.n:,} prompts, a strong call costs {found.price_ratio:g} weak ones; strong "
        f"{found.strong_mean:.3f}, weak {found.weak_mean:.3f}",
        style="bold",
    )
    rows = [
        (
            SHOWN[row.policy],
            f"{row.apgr_cost:.3f} {interval_text(row.ci)}",
            "" if row.policy == "prompt" else difference_text(row.difference, row.difference_ci),
            f"{row.cost_at_90:.1%}",
        )
        for row in found.results
    ]
    table(out, ("policy", "cost-APGR [95%]", "- prompt alone", "cost for 90% of the gap"), rows)
    if found.warning:
        line(out, f"warning: {found.warning}", style="yellow")
    pays = f"its own thresholds look at {found.looked:.1%} and escalate {found.escalated:.1%}"
    if not found.used:
        pays = "its labels do not show that looking helps: the prompt alone decides"
    line(out, f"{pays}; random .5, {found.bootstraps:,} resamples, seed {found.seed}")


def _write(path: Path, data: str, prompts: list[str], columns: dict[str, Floats]) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    from ..data.layouts import request
    from ..data.readers import raw_records

    ids: dict[str, str] = {}
    for _, record, _ in raw_records(data)[1]:
        if not isinstance(record, Exception):
            prompt, _ = request(record)
            ids.setdefault(prompt, str(record.get("prompt_id", "")))
    found = {"prompt_id": [ids.get(prompt, "") for prompt in prompts], **columns}
    with whole_file(path) as stream:
        pq.write_table(pa.table(found), stream)
