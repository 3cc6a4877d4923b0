"""Leave one family of tasks out: the proxy for a domain that nobody has seen, on which the settings
of the built-in bundles were chosen.

    python -m thriftroute.research.leave_out
    python -m thriftroute.research.leave_out --pairs

Each family of tasks is scored by a head that was fitted on all others. Measured is APGR, strong and
weak being the best and the second weakest quarter of the models of each task, on the tasks where
the strong quarter is right more than MIN_STRONG of the time, as strong models are on ordinary
traffic: first the mean over the tasks of a family, then over families. "own" is the validation
split of their own sources, which the heads were fitted on the rest of; "in order" and "adverse" are
shares of pairs of held-out ordinary prompts (`difficulty.pairs_in_order`). With --pairs
the built-in head is measured on pairs of single models of every task instead, those whose mean
scores add up to less than 1 apart from the others. Needs THRIFTROUTE_DATA; about ten minutes on two
cores, three with --pairs.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from ..data.schema import PromptScore, Row
from ..data.tables import PairTable
from ..errors import EvaluationError, ThriftrouteError
from ..eval.metrics import apgr
from ..router.features import FEATURES
from ..router.scorer import Scorer
from ..router.threshold import ORDINARY
from ..training.embed import embed
from ..training.encoder import encoder_bundle
from ..training.models.head import Gate
from ..training.prepare import prepare, read_data, split_tables
from ..training.progress import Progress
from .built_in import DIFFICULTY_WEIGHTS, POOLED, settings_of
from .difficulty import DifficultyTable, difficulty_table, pairs_in_order
from .difficulty_head import (
    Direction,
    GeneralSettings,
    built_in_head,
    fit_gate,
    general_direction,
    ordinary_direction,
)
from .model_pairs import ModelMatrix, Pair, choose_pairs, model_matrix
from .other_pairs import sign_test

Floats = npt.NDArray[np.float64]
# Indices of prompts, and the scores of the two quarters of models on them.
Task = tuple[npt.NDArray[np.int64], Floats, Floats]

MIN_STRONG = 0.7
# Tasks by the end of their names; what is not named here is trained on, and never left out.
FAMILIES = {
    "exam": ("mmlu_pro",),
    "grade-school mathematics": ("/gsm8k", "/agentverse-mgsm"),
    "competition mathematics": ("/math", "/math-l5"),
    "code": ("/crux", "/mbpp", "/human_eval"),
    "rules and puzzles": ("/kor/cipher", "/kor/counterfactual", "/kor/logic", "/kor/operation",
                          "/kor/puzzle"),
    "choice questions": ("/arc_challenge", "/openbook_qa", "/commonsense_qa", "/mmlu"),
    "open questions": ("/trivia_qa", "/natural_qa"),
    "planning": ("/planbench/blocksworld", "/planbench/blocksworld_3", "/agentverse-logicgrid"),
}  # fmt: skip
CHOSEN = GeneralSettings()
OFF = dataclasses.replace(CHOSEN, slopes=0.0, mix=0.0, length=0.0)
SHUT, OPEN = -50.0, 50.0
# What is scored: settings of the head, the weight of the ordinary direction, and the bias of a gate
# that is the same for all prompts; None: the gate that is fitted.
VARIANTS: dict[str, tuple[GeneralSettings, float, float | None]] = {
    "tokens alone": (dataclasses.replace(OFF, length=1.0), 0.0, OPEN),
    "slopes of cheap features": (dataclasses.replace(OFF, slopes=1.0), 0.0, OPEN),
    "ridge on difficulty": (dataclasses.replace(OFF, mix=1.0), 0.0, OPEN),
    "slopes + ridge": (dataclasses.replace(OFF, slopes=1.0, mix=0.5), 0.0, OPEN),
    "slopes + ridge + tokens": (CHOSEN, 0.0, OPEN),
    "ordinary prompts alone": (CHOSEN, 1.0, SHUT),
    "both, everywhere": (CHOSEN, 1.0, OPEN),
    "both, gate with equal priors": (dataclasses.replace(CHOSEN, prior=1.0), 1.0, None),
    "both, gated twice": (dataclasses.replace(CHOSEN, gated=2.0), 1.0, None),
    "both, gated thrice": (dataclasses.replace(CHOSEN, gated=3.0), 1.0, None),
    "both, gated (built-in)": (CHOSEN, 1.0, None),
}  # fmt: skip
BUILT_IN = list(VARIANTS)[-1]
TOLD = ("mean", "own", "in order", "adverse")  # beside the families, see the docstring
# Pairs of models of a task, spread over gaps and abilities; fewer where fewer have a clear gap.
PAIRS = (16, 9, 4, 1)


@dataclasses.dataclass(frozen=True)
class Data:
    """Representations and labels of the training split, and of the validation split."""

    labels: DifficultyTable
    x: npt.NDArray[np.float32]
    corpus: PairTable
    of_corpus: npt.NDArray[np.float32]
    held_out: PairTable
    held: npt.NDArray[np.float32]
    judged: PairTable
    of_judged: npt.NDArray[np.float32]
    family: npt.NDArray[np.str_]
    tasks: list[Task]


@dataclasses.dataclass(frozen=True)
class PairResult:
    """One pair of models on a task of a family that was left out: their mean scores, and APGR."""

    task: str
    family: str
    strong: float
    weak: float
    apgr: float

    @property
    def low(self) -> bool:
        """Whether the means add up to less than 1.

        With P(right) = sigma(ability - difficulty) the gain of strong grows with difficulty by
        p_weak (1 - p_weak) - p_strong (1 - p_strong), which is negative just there: strong wins the
        easier prompts.
        """
        return self.strong + self.weak < 1


def load(say: Progress) -> Data:
    """Everything of the built-in bundles' sources, decontaminated and split as for the bundles."""
    settings = settings_of("mf", Path("unused"))
    plain, _ = encoder_bundle(settings.encoder_name, max_tokens=settings.max_tokens)
    scorer = Scorer.load(plain)
    prepared = prepare(settings, scorer, say)
    pairs, held_out = split_tables(settings, prepared.pairs)
    labels = difficulty_table(read_data(settings, {}), pooled=POOLED)
    fine = difficulty_table(read_data(settings, {}))
    known = set(pairs.prompts)
    labels = labels.subset(np.array([prompt in known for prompt in labels.prompts]))
    corpus, judged = _of(pairs, ordinary=True), _of(held_out, ordinary=True)
    held_out = _of(held_out, ordinary=False)
    return Data(
        labels,
        embed(scorer, labels.prompts, representation=True),
        corpus,
        embed(scorer, corpus.inputs(), representation=True),
        held_out,
        embed(scorer, held_out.inputs(), representation=True),
        judged,
        embed(scorer, judged.inputs(), representation=True),
        np.array([_family(task) for task in labels.task]),
        _tasks(fine, labels.prompts),
    )


def _of(table: PairTable, *, ordinary: bool) -> PairTable:
    """The prompts of the corpus of ordinary prompts, or all others."""
    return table.subset(np.array([(source == ORDINARY) == ordinary for source in table.source]))


def measure(data: Data, say: Progress, seed: int = 0) -> dict[str, dict[str, float]]:
    """By variant: APGR by family, their mean ("mean"), and on the validation split ("own")."""
    names = list(VARIANTS)
    result: dict[str, dict[str, float]] = {name: {} for name in names}
    tasks = data.tasks
    families = [name for name in FAMILIES if any(data.family[i[0]] == name for i, _, _ in tasks)]
    with say.bar("leaving out") as update:
        for number, family in enumerate([*families, ""]):
            # The last round leaves nothing out: it is for the validation split.
            seen = (data.family != family) | (family == "")
            score = _heads(data, seen, seed)
            for name in names:
                if not family:
                    value = apgr(score[name](data.held), data.held_out.strong, data.held_out.weak)
                    result[name]["own"] = value
                    of_judged = score[name](data.of_judged)
                    result[name] |= pairs_in_order(of_judged, data.judged)
                    continue
                found = [
                    apgr(score[name](data.x[index]), strong, weak)
                    for index, strong, weak in tasks
                    if data.family[index[0]] == family
                ]
                result[name][family] = float(np.mean(found))
            update(number + 1, len(families) + 1)
    for name in names:
        result[name]["mean"] = float(np.mean([result[name][family] for family in families]))
    return result


def measure_pairs(
    data: Data, rows: Iterable[Row], say: Progress, seed: int = 0
) -> list[PairResult]:
    """Pairs of models of every task of a family, scored by the built-in head without that family.

    rows: the scores of single models; prompts that `data` does not know are passed over.
    """
    at = {prompt: i for i, prompt in enumerate(data.labels.prompts)}
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(row, PromptScore) and row.prompt in at:
            by_task.setdefault(data.labels.task[at[row.prompt]], []).append(row)
    families = [name for name in FAMILIES if (data.family == name).any()]
    result: list[PairResult] = []
    with say.bar("leaving out") as update:
        for number, family in enumerate(families):
            score = _heads(data, data.family != family, seed, {BUILT_IN})[BUILT_IN]
            for task in sorted(name for name in by_task if _family(name) == family):
                matrix = model_matrix(by_task[task])
                index = np.array([at[prompt] for prompt in matrix.prompts])
                margin = score(data.x[index])
                for pair in _pairs(matrix, seed):
                    strong, weak = pair.strong_score, pair.weak_score
                    value = apgr(margin[pair.index], strong, weak)
                    means = float(strong.mean()), float(weak.mean())
                    result.append(PairResult(task, family, *means, value))
            update(number + 1, len(families))
    return result


def _pairs(matrix: ModelMatrix, seed: int) -> tuple[Pair, ...]:
    """As many of a task's pairs as there are, up to the first of PAIRS."""
    for count in PAIRS:
        try:
            return choose_pairs(matrix, count, seed=seed).pairs
        except EvaluationError:
            continue
    return ()


def _heads(
    data: Data,
    seen: npt.NDArray[np.bool_],
    seed: int,
    names: Collection[str] = VARIANTS,
) -> dict[str, Callable[[npt.NDArray[np.float32]], Floats]]:
    x, labels = data.x[seen], data.labels.subset(seen)
    weight = np.array([DIFFICULTY_WEIGHTS.get(source, 1.0) for source in labels.source])
    ordinary = ordinary_direction(data.of_corpus, data.corpus, CHOSEN, seed)
    scores: dict[str, Callable[[npt.NDArray[np.float32]], Floats]] = {}
    abilities = {"strong": 0.5, "weak": -0.5}
    for name, (settings, share, bias) in VARIANTS.items():
        if name not in names:
            continue
        general = general_direction(x, labels, weight, settings)
        gate = Gate(np.zeros(x.shape[1], np.float32), bias or 0.0)
        if bias is None:
            gate = fit_gate(data.of_corpus, x, settings)
        own = Direction(share * ordinary.weights, share * ordinary.intercept)
        head = built_in_head(own, general, gate, abilities, settings)
        scores[name] = lambda asked, head=head: head.margin(  # type: ignore[misc]
            asked, "strong", "weak"
        )
    return scores


def _tasks(fine: DifficultyTable, known: Sequence[str]) -> list[Task]:
    """The tasks that are easy enough, with indices into the prompts `known`.

    fine: labels with every subject of an exam as a task of its own; its easy subjects are measured
    together, since telling subjects apart is part of the work.
    """
    at = {prompt: i for i, prompt in enumerate(known)}
    result: list[Task] = []
    exams: dict[str, list[Task]] = {}
    task = np.array(fine.task)
    for name in sorted(set(fine.task)):
        rows = np.flatnonzero(task == name)
        rows = rows[[fine.prompts[i] in at for i in rows]]
        if not len(rows):
            continue
        strong, weak = fine.bands[rows, -1], fine.bands[rows, 1]
        source = fine.source[rows[0]]
        if not _family(source if source in POOLED else name):
            continue
        if not (strong.mean() > MIN_STRONG and strong.mean() > weak.mean()):
            continue
        found = (np.array([at[fine.prompts[i]] for i in rows]), strong, weak)
        if source in POOLED:
            exams.setdefault(source, []).append(found)
        else:
            result.append(found)
    for parts in exams.values():
        index, strong, weak = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        result.append((index, strong, weak))
    return result


def _family(task: str) -> str:
    for name, ends in FAMILIES.items():
        if task.endswith(ends):
            return name
    return ""


def _print_pairs(results: Sequence[PairResult], n: int, seed: int) -> None:
    table = Table("left out", "sum < 1: pairs", "APGR", "sum >= 1: pairs", "APGR")
    means: dict[bool, list[float]] = {True: [], False: []}
    for family in FAMILIES:
        cells = []
        for low in (True, False):
            found = [one.apgr for one in results if (one.family, one.low) == (family, low)]
            cells += [str(len(found)), f"{np.mean(found):.3f}" if found else "-"]
            means[low] += [float(np.mean(found))] if found else []
        if cells[0] != "0" or cells[2] != "0":
            table.add_row(family, *cells)
    Console(width=max(Console().width, 100)).print(table)
    for low, name in ((True, "sum < 1"), (False, "sum >= 1")):
        values = np.array([one.apgr for one in results if one.low == low])
        if len(means[low]) < 2:
            continue
        error = float(np.std(means[low], ddof=1)) / len(means[low]) ** 0.5
        above = int(np.sum(values > 0.5))
        Console().print(
            f"{name}: {len(values)} pairs, {above} above .5 (sign test p = "
            f"{sign_test(above, int(np.sum(values < 0.5))):.2g}); mean over {len(means[low])} "
            f"families {np.mean(means[low]):.3f}, standard error {error:.3f}"
        )
    Console().print(
        f"{n:,} prompts, {len({one.task for one in results})} tasks; sum: of the two models' mean "
        f"scores on the task; seed {seed}. Random: 0.5; what is below, its reverse is above."
    )


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", action="store_true", help="pairs of single models, by task")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        say = Progress(Console(stderr=True))
        data = load(say)
        if arguments.pairs:
            rows = read_data(settings_of("mf", Path("unused")), {})
            found = measure_pairs(data, rows, say, arguments.seed)
            if arguments.json:
                Console().print_json(json.dumps([dataclasses.asdict(one) for one in found]))
            else:
                _print_pairs(found, data.labels.n, arguments.seed)
            return
        result = measure(data, say, arguments.seed)
    except ThriftrouteError as error:
        raise SystemExit(f"error: {error}") from error
    lengths = np.array([len(prompt) for prompt in data.held_out.prompts], dtype=np.float64)
    of_length = apgr(lengths, data.held_out.strong, data.held_out.weak)
    if arguments.json:
        Console().print_json(json.dumps({**result, "prompt length": {"own": of_length}}))
        return
    families = [name for name in next(iter(result.values())) if name not in TOLD]
    table = Table("left out", *(str(i + 1) for i in range(len(families))), *TOLD)
    for name, row in result.items():
        table.add_row(name, *(f"{row[f]:.3f}" for f in [*families, *TOLD]))
    out = Console()
    # Rows of a figure table that wrap cannot be read.
    Console(width=max(out.width, 120)).print(table)
    out.print("; ".join(f"{i + 1} {name}" for i, name in enumerate(families)))
    out.print(
        f"{data.labels.n:,} prompts, {len(data.tasks)} tasks with strong above {MIN_STRONG}; "
        f"validation n = {data.held_out.n:,}, characters alone {of_length:.3f} there; "
        f"{len(FEATURES)} features; seed {arguments.seed}. Random: 0.5."
    )


if __name__ == "__main__":
    main()
