"""The corpus of ordinary prompts: agreement of its ratings, what routers make of ordinary prompts,
and what more of them would bring.

    python -m thriftroute.research.ordinary --router mf --router fast

Routers are measured on the test set that lies in tests/data, which nothing is fitted on: pairs in
order (`difficulty.pairs_in_order`), and the correlation of scores with the judged gain. The
learning curve: the ordinary direction alone (`difficulty_head`), fitted on random parts of the
corpus, on the representation of mf; measured on the same test set. Mean of DRAWS draws.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from ..data.sources import CORPUS, JUDGED_STRONG, JUDGED_WEAK, judged_rows
from ..data.tables import PairTable, pair_table
from ..eval.baselines import length_scores
from ..router.routers import load_router
from ..router.scorer import Scorer
from ..router.text import as_conversation
from ..router.threshold import ORDINARY
from ..training.embed import embed
from ..training.encoder import encoder_bundle
from ..training.progress import Progress
from .difficulty import pairs_in_order
from .difficulty_head import GeneralSettings, ordinary_direction

Floats = npt.NDArray[np.float64]

TEST_SET = Path(__file__).resolve().parent.parent / "tests" / "data" / "ordinary_test.jsonl"
SHARES = (0.25, 0.5, 1.0)
DRAWS = 3


@dataclass(frozen=True)
class Agreement:
    """Pearson correlations over n prompts: of the two ratings of the weak tier, of the strong tier,
    and of their differences; and of the logarithm of a prompt's characters with the weak tier's
    mean rating."""

    n: int
    weak: float
    strong: float
    gain: float
    length: float


def judged(path: Path) -> PairTable:
    """The prompts of a file of ratings, with the means of both as scores of the two tiers."""
    return pair_table(judged_rows(path), (JUDGED_STRONG,), (JUDGED_WEAK,))


def agreement(path: Path) -> Agreement:
    """Of a file of ratings."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = ("weak_ok", "weak_ok_blind", "strong_ok", "strong_ok_blind")
    weak, weak_blind, strong, strong_blind = (
        np.array([row[name] for row in rows], dtype=np.float64) for name in names
    )
    length = np.log([len(row["prompt"]) for row in rows])

    def correlation(a: Floats, b: Floats) -> float:
        return float(np.corrcoef(a, b)[0, 1])

    return Agreement(
        len(rows),
        correlation(weak, weak_blind),
        correlation(strong, strong_blind),
        correlation(strong - weak, strong_blind - weak_blind),
        correlation(length, weak + weak_blind),
    )


def of_routers(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """By router, and for prompt length: `r` and the shares of `pairs_in_order` on the test set."""
    test = judged(TEST_SET)
    asked = [as_conversation(prompt) for prompt in test.inputs()]
    scores = {name: load_router(name).scores(asked) for name in names}
    scores["prompt length"] = length_scores(test.prompts)
    return {name: _figures(found, test) for name, found in scores.items()}


def _figures(scores: Floats, test: PairTable) -> dict[str, float]:
    r = float(np.corrcoef(scores, test.strong - test.weak)[0, 1])
    return {"r": r, **pairs_in_order(scores, test)}


def learning_curve(say: Progress, seed: int = 0) -> list[dict[str, Any]]:
    """What a share of the corpus gives on the test set: rows of `share`, `n`, `r` (correlation with
    the judged gain), and the shares of `pairs_in_order`."""
    encoder, _ = encoder_bundle()
    scorer = Scorer.load(encoder)
    corpus, test = judged(CORPUS), judged(TEST_SET)
    with say.bar("embedding prompts") as update:
        x = embed(scorer, corpus.inputs(), progress=update, representation=True)
    asked = embed(scorer, test.inputs(), representation=True)
    result = []
    for share in SHARES:
        found: list[dict[str, float]] = []
        n = round(share * corpus.n)
        for draw in range(DRAWS if share < 1 else 1):
            part = np.random.default_rng(seed + draw).permutation(corpus.n)[:n]
            fitted = ordinary_direction(x[part], corpus.subset(part), GeneralSettings(), seed)
            found.append(_figures(fitted(asked), test))
        means = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
        result.append({"share": share, "n": n, **means})
    return result


def main() -> None:
    """Print both tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    told = {ORDINARY: agreement(CORPUS), "test set": agreement(TEST_SET)}
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    areas = Counter(str(row["area"]) for row in rows)
    routers = of_routers(arguments.router)
    curve = learning_curve(Progress(Console(stderr=True)), arguments.seed)
    out = Console()
    if arguments.json:
        found = {name: vars(one) for name, one in told.items()}
        out.print_json(
            json.dumps({"agreement": found, "areas": areas, "routers": routers, "curve": curve})
        )
        return
    table = Table("ratings of", "prompts", "weak tier", "strong tier", "gain", "length and weak")
    for name, one in told.items():
        numbers = (one.weak, one.strong, one.gain, one.length)
        table.add_row(name, f"{one.n:,}", *(f"{value:.2f}" for value in numbers))
    out.print(table)
    out.print(", ".join(f"{area} {count}" for area, count in areas.most_common()))
    figures = ("r", "in order", "adverse")
    table = Table("router, or part of the corpus", "prompts", *figures)
    for name, row in routers.items():
        table.add_row(name, "", *(f"{row[figure]:.3f}" for figure in figures))
    for row in curve:
        values = (f"{row[figure]:.3f}" for figure in figures)
        table.add_row(f"{row['share']:g}", f"{row['n']:,}", *values)
    out.print(table)
    out.print(f"measured on the test set; mean of {DRAWS} draws; seed {arguments.seed}")


if __name__ == "__main__":
    main()
