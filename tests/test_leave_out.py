"""One family of tasks left out: which prompts make a task, and what a head makes of a new one."""

import dataclasses
import json
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data.schema import PromptScore
from thriftroute.data.sources import JUDGED_STRONG, JUDGED_WEAK
from thriftroute.data.tables import PairTable, pair_table
from thriftroute.eval.metrics import apgr
from thriftroute.research.difficulty import DifficultyTable, difficulty_table
from thriftroute.router.features import FEATURES
from thriftroute.router.threshold import ORDINARY

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")

from thriftroute.research.leave_out import (
    BUILT_IN,
    FAMILIES,
    MIN_STRONG,
    TOLD,
    VARIANTS,
    Data,
    PairResult,
    _family,
    _print_pairs,
    _tasks,
    main,
    measure,
    measure_pairs,
)
from thriftroute.training.progress import Progress

Floats = npt.NDArray[np.float64]
LAYERS, DIM = 32, 8
WIDTH = LAYERS + len(FEATURES)
# Eight models, the weakest first.
MODELS = [f"m{i}" for i in range(8)]
SLOPES, RIDGE = "slopes of cheap features", "ridge on difficulty"
GENERAL, ALONE = "slopes + ridge + tokens", "ordinary prompts alone"
OPEN, GATED = "both, everywhere", "both, gated (built-in)"


def rows_of(
    name: str, hard: Floats, seed: int, ease: float = 3.0, step: float = 0.4
) -> list[PromptScore]:
    """Scores of the models on the prompts of a task, "source/category"."""
    random = np.random.default_rng(seed)
    source, _, category = name.partition("/")
    return [
        PromptScore(f"{name} {i}", model, float(random.random() < chance), source=source,
                    category=category)
        for i, h in enumerate(hard)
        for k, model in enumerate(MODELS)
        for chance in [1 / (1 + np.exp(-(ease + step * (k - 4) - 2.5 * h)))]
    ]  # fmt: skip


class TestFamilies:
    @pytest.mark.parametrize(
        ("task", "family"),
        [
            ("mmlu_pro", "exam"),
            ("llmrouter/gsm8k", "grade-school mathematics"),
            ("llmrouter/agentverse-mgsm", "grade-school mathematics"),
            ("zeroeval/math-l5", "competition mathematics"),
            ("llmrouter/math", "competition mathematics"),
            ("zeroeval/crux", "code"),
            ("kor_bench/kor/cipher", "rules and puzzles"),
            ("llmrouter/mmlu", "choice questions"),
            ("llmrouter/trivia_qa", "open questions"),
            ("planbench/planbench/blocksworld_3", "planning"),
            ("zeroeval/numersense-v2", ""),
            ("mmlu_pro/law", ""),
            ("", ""),
        ],
    )
    def test_a_task_belongs_to_one(self, task: str, family: str) -> None:
        assert _family(task) == family

    def test_no_name_belongs_to_two(self) -> None:
        ends = [(family, end) for family, names in FAMILIES.items() for end in names]
        clashes = [(one, two) for one, a in ends for two, b in ends if one != two and a.endswith(b)]
        assert not clashes


def fine_of(*rows: Iterable[PromptScore]) -> DifficultyTable:
    return difficulty_table(row for part in rows for row in part)


def spread(n: int = 60) -> Floats:
    return np.linspace(-1, 1, n)


class TestTasks:
    def test_indices_point_at_the_prompts_that_are_known(self) -> None:
        fine = fine_of(rows_of("z/crux", spread(), 0))
        known = [*(f"z/crux {i}" for i in reversed(range(40))), "another"]
        ((index, strong, weak),) = _tasks(fine, known)
        assert sorted(index.tolist()) == list(range(40))
        for i, s, w in zip(index, strong, weak, strict=True):
            at = fine.prompts.index(known[i])
            assert (s, w) == (fine.bands[at, -1], fine.bands[at, 1])
        assert strong.mean() > weak.mean()

    def test_tasks_that_are_too_hard_for_strong_are_left_out(self) -> None:
        easy, hard = rows_of("z/crux", spread(), 0), rows_of("z/mbpp", spread(), 1, ease=-0.5)
        fine = fine_of(easy, hard)
        of_hard = [task == "z/mbpp" for task in fine.task]
        assert fine.bands[of_hard, -1].mean() < MIN_STRONG
        (task,) = _tasks(fine, fine.prompts)
        assert {fine.task[i] for i in task[0]} == {"z/crux"}

    def test_tasks_on_which_strong_is_no_better_are_left_out(self) -> None:
        """On the prompts that are known, those that the weaker models happen to know."""
        fine = fine_of(rows_of("z/crux", spread(), 0))
        ahead = fine.bands[:, 1] >= fine.bands[:, -1]
        assert 0 < ahead.sum() < fine.n
        assert not _tasks(fine, [p for p, keep in zip(fine.prompts, ahead, strict=True) if keep])

    def test_easy_subjects_of_an_exam_are_one_task(self) -> None:
        fine = fine_of(
            rows_of("mmlu_pro/law", spread(), 0),
            rows_of("mmlu_pro/art", spread(), 1),
            rows_of("mmlu_pro/physics", spread(), 2, ease=-0.5),
            rows_of("z/crux", spread(), 3),
        )
        found = [
            sorted({fine.task[i] for i in index}) for index, _, _ in _tasks(fine, fine.prompts)
        ]
        assert found == [["z/crux"], ["mmlu_pro/art", "mmlu_pro/law"]]

    def test_tasks_of_no_family_are_left_out(self) -> None:
        fine = fine_of(rows_of("z/numersense-v2", spread(), 0))
        assert _tasks(fine, fine.prompts) == []

    def test_tasks_of_which_no_prompt_is_known(self) -> None:
        fine = fine_of(rows_of("z/crux", spread(), 0), rows_of("z/mbpp", spread(), 1))
        (task,) = _tasks(fine, [p for p in fine.prompts if p.startswith("z/mbpp")])
        assert len(task[0]) == 60


# Tasks of four families; where the layers of one point is where no other's do.
NAMES = ("mmlu_pro/law", "z/crux", "z/planbench/blocksworld", "z/math")
PLANTED, OF_ORDINARY = FEATURES.index("numbers"), FEATURES.index("code")


def judged(n: int, seed: int) -> tuple[PairTable, npt.NDArray[np.float32]]:
    """Ordinary prompts and their representations: a place of the layers is theirs alone, one cheap
    feature makes them hard, and the one that makes items of benchmarks hard only varies."""
    random = np.random.default_rng(seed)
    cheap = random.normal(size=(n, len(FEATURES)))
    weak = 1 / (1 + np.exp(2.5 * cheap[:, OF_ORDINARY]))
    cheap[:, PLANTED] *= 3
    last = np.eye(DIM)[5] + 0.05 * random.normal(size=(n, DIM))
    last /= np.linalg.norm(last, axis=1, keepdims=True)
    layers = np.concatenate((0.01 * random.normal(size=(n, LAYERS - DIM)), last), axis=1)
    x = np.concatenate((layers, cheap), axis=1).astype(np.float32)
    lengths = random.choice([20, 150, 500], n)
    rows = [
        PromptScore(f"{i} ".ljust(length, "."), model, score, source=ORDINARY)
        for i, (length, value) in enumerate(zip(lengths, weak.tolist(), strict=True))
        for model, score in ((JUDGED_STRONG, 1 - (1 - value) / 3), (JUDGED_WEAK, value))
    ]
    return pair_table(rows, (JUDGED_STRONG,), (JUDGED_WEAK,)), x


@cache
def synthetic(seed: int = 0) -> tuple[Data, dict[str, Floats]]:
    """The data and how hard each task's prompts are."""
    return with_rows(seed)[:2]


@cache
def with_rows(seed: int = 0) -> tuple[Data, dict[str, Floats], list[PromptScore]]:
    """What is hard is so for two reasons: a cheap feature, in every task alike; and a direction of
    the layers that means the contrary in mathematics. Tokens say nothing."""
    random = np.random.default_rng(seed)
    rows: list[PromptScore] = []
    xs: dict[str, npt.NDArray[np.float32]] = {}
    hard_of: dict[str, Floats] = {}
    for number, name in enumerate(NAMES):
        n = 160
        cheap = random.normal(size=(n, len(FEATURES)))
        twist = random.normal(size=n)
        sign = -1.0 if name == "z/math" else 1.0
        hard = 0.7 * cheap[:, PLANTED] + 0.7 * sign * twist
        last = np.eye(DIM)[number] + 0.3 * twist[:, None] * np.eye(DIM)[6]
        last += 0.05 * random.normal(size=(n, DIM))
        last /= np.linalg.norm(last, axis=1, keepdims=True)
        layers = np.concatenate((0.01 * random.normal(size=(n, LAYERS - DIM)), last), axis=1)
        x = np.concatenate((layers, cheap), axis=1).astype(np.float32)
        found = rows_of(name, hard, 10 + number, ease=2.5, step=0.8)
        rows += found
        hard_of[name] = hard
        xs |= {f"{name} {i}": row for i, row in enumerate(x)}
    labels = difficulty_table(rows, pooled=("mmlu_pro",))
    fine = difficulty_table(rows)
    every = pair_table(rows, ("m6", "m7"), ("m1", "m2"))
    held = np.array([int(prompt.split()[-1]) % 4 == 3 for prompt in every.prompts])
    held_out = every.subset(held)
    corpus, of_corpus = judged(400, seed + 1)
    asked, of_asked = judged(300, seed + 2)
    labels = labels.subset(
        np.array([int(prompt.split()[-1]) % 4 != 3 for prompt in labels.prompts])
    )
    family = np.array([_family(task) for task in labels.task])
    data = Data(
        labels=labels,
        x=np.stack([xs[prompt] for prompt in labels.prompts]),
        corpus=corpus,
        of_corpus=of_corpus,
        held_out=held_out,
        held=np.stack([xs[prompt] for prompt in held_out.prompts]),
        judged=asked,
        of_judged=of_asked,
        family=family,
        tasks=_tasks(fine, labels.prompts),
    )
    return data, hard_of, rows


@cache
def measured() -> dict[str, dict[str, float]]:
    return measure(synthetic()[0], Progress())


class TestMeasure:
    families = ("exam", "competition mathematics", "code", "planning")

    def test_a_row_for_each_variant_and_a_column_for_each_family(self) -> None:
        found = measured()
        assert set(found) == set(VARIANTS)
        for row in found.values():
            assert set(row) == {*self.families, *TOLD}
            assert row["mean"] == pytest.approx(np.mean([row[name] for name in self.families]))
        json.dumps(found, allow_nan=False)

    @pytest.mark.parametrize("family", families)
    def test_slopes_find_what_is_planted_in_a_family_that_was_left_out(self, family: str) -> None:
        found = measured()
        assert found[SLOPES][family] > 0.6
        assert abs(found["tokens alone"][family] - 0.5) < 0.1

    def test_what_means_the_contrary_elsewhere_does_not_carry_over(self) -> None:
        found = measured()
        family = "competition mathematics"
        assert found[RIDGE][family] < 0.5
        assert found[RIDGE][family] < found[SLOPES][family] - 0.05
        assert found[RIDGE]["code"] > found[RIDGE][family] + 0.05

    def test_the_gate_keeps_what_benchmarks_teach_to_prompts_like_theirs(self) -> None:
        found = measured()
        # What is hard in benchmarks says nothing of ordinary prompts.
        assert found[ALONE]["in order"] > 0.95
        assert found[GENERAL]["in order"] < 0.7
        assert found[GATED]["in order"] > found[OPEN]["in order"] + 0.05
        assert found[GATED]["adverse"] > found[OPEN]["adverse"]
        # And ordinary prompts nothing of these.
        for family in ("code", "planning"):
            assert found[GATED][family] > found[ALONE][family] + 0.05

    def test_own_is_the_split_that_no_head_saw(self) -> None:
        data, hard_of = synthetic()
        at = [prompt.rpartition(" ") for prompt in data.held_out.prompts]
        hard = [hard_of[name][int(i)] for name, _, i in at]
        best = apgr(hard, data.held_out.strong, data.held_out.weak)
        for name, row in measured().items():
            assert row["own"] < best + 0.05, name
        assert measured()[GATED]["own"] > 0.6

    def test_one_seed_one_result(self) -> None:
        assert measure(synthetic()[0], Progress()) == measured()

    def test_a_family_that_is_left_out_is_not_looked_at(self) -> None:
        """Labels of a family may say anything: what the others' heads make of it stays."""
        data, _ = synthetic()
        code = data.family == "code"
        changed: dict[str, Any] = {
            name: np.where(code[:, None] if column.ndim == 2 else code, 1 - column, column)
            for name, column in (("bands", data.labels.bands),
                                 ("difficulty", data.labels.difficulty))
        }  # fmt: skip
        labels = dataclasses.replace(data.labels, **changed)
        found = measure(dataclasses.replace(data, labels=labels), Progress())
        for name, row in measured().items():
            assert found[name]["code"] == row["code"]
        assert found[SLOPES]["exam"] != measured()[SLOPES]["exam"]


@cache
def of_pairs() -> list[PairResult]:
    data, _, rows = with_rows()
    return measure_pairs(data, rows, Progress())


class TestPairs:
    def test_every_task_of_a_family_has_pairs(self) -> None:
        found = of_pairs()
        assert {(one.task, one.family) for one in found} == {
            ("mmlu_pro", "exam"), ("z/crux", "code"), ("z/planbench/blocksworld", "planning"),
            ("z/math", "competition mathematics"),
        }  # fmt: skip
        assert all(one.strong > one.weak for one in found)

    def test_a_direction_that_carries_over_is_right_where_both_models_are(self) -> None:
        """Easy for strong, not for weak: the harder prompts are where it helps."""
        found = [one for one in of_pairs() if one.family in ("code", "planning")]
        high = [one.apgr for one in found if not one.low]
        assert len(high) > 3
        assert np.mean(high) > 0.55

    def test_and_wrong_where_both_are_mostly_wrong(self) -> None:
        """The same task, harder: what weak fails at, strong fails at too, but for the easy ones."""
        data, _, _ = with_rows()
        rows = []
        for number, name in enumerate(NAMES):
            hard = synthetic()[1][name]
            ease = -3.5 if name == "z/crux" else 2.5
            rows += rows_of(name, hard, 10 + number, ease=ease, step=0.8)
        found = [one for one in measure_pairs(data, rows, Progress()) if one.task == "z/crux"]
        assert len(found) > 3
        assert all(one.low for one in found)
        assert np.mean([one.apgr for one in found]) < 0.45

    def test_rows_that_are_not_known_or_of_no_family_are_passed_over(self) -> None:
        data, _, rows = with_rows()
        others = rows_of("z/numersense-v2", spread(), 5) + rows_of("z/crux-not", spread(), 6)
        assert measure_pairs(data, [*rows, *others], Progress()) == of_pairs()

    def test_the_same_head_as_in_the_table(self) -> None:
        assert BUILT_IN == GATED

    def test_the_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        results = [
            PairResult("z/crux", "code", 0.6, 0.3, 0.4),
            PairResult("z/crux", "code", 0.5, 0.3, 0.6),
            PairResult("z/math", "competition mathematics", 0.4, 0.1, 0.3),
            PairResult("z/math", "competition mathematics", 0.9, 0.5, 0.7),
        ]
        _print_pairs(results, 123, 0)
        out = " ".join(capsys.readouterr().out.split())
        assert "sum < 1: 3 pairs, 1 above .5 (sign test p = 1); mean over 2 families 0.400" in out
        # Of one family there is no spread over families.
        assert "sum >= 1: 1 pairs" not in out
        assert "123 prompts, 2 tasks" in out


@pytest.mark.parametrize("arguments", [["--json"], ["--pairs"]])
def test_without_the_data_it_says_so(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.delenv("THRIFTROUTE_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["leave_out", *arguments])
    with pytest.raises(SystemExit, match=r"error: .*THRIFTROUTE_DATA"):
        main()
