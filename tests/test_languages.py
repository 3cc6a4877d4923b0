"""The multilingual sample, and what a router makes of it: figures on constructed scores."""

import io
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thriftroute
from rich.console import Console
from thriftroute.data.readers import read_prompts, read_rows
from thriftroute.errors import DataError, EvaluationError
from thriftroute.eval.bootstrap import interval, resample_counts
from thriftroute.eval.metrics import Floats, auc
from thriftroute.research.languages import (
    SAMPLE,
    LanguageFigures,
    LanguageReport,
    MultilingualPrompt,
    average_ranks,
    language_report,
    load_multilingual,
    print_languages,
    spearman,
)
from thriftroute.router.scorer import Scorer

LANGUAGES = ("en", "de", "es", "fr", "zh", "ru", "ar")
KINDS = {
    "chat", "writing", "facts", "word-problems", "mathematics", "code", "reasoning",
    "domain-knowledge",
}  # fmt: skip
# Letters that a text in the language cannot do without.
SCRIPTS = {"zh": "[\u4e00-\u9fff]", "ru": "[\u0400-\u04ff]", "ar": "[\u0600-\u06ff]"}
FORMULAS = {
    "mathematics-1-short": ("12 × 11",),
    "mathematics-2-short": ("x^2 - 5x + 3 = 0",),
    "mathematics-2-long": ("f(x) = x^3 - 6x^2 + 9x + 2", "[0, 5]"),
    "mathematics-3-short": ("[0, 1]", "∫_0^1 f(x) x^(2n) dx = 0", "n = 5, 6, 7, ...", "f = 0"),
    "mathematics-3-long": ("a(n)", "a(4) = 4", "1+1+1+1", "1+3", "3+1", "a(2k)", "a(n+1)/a(n)"),
    "code-3-long": ("PostgreSQL",),
    "word-problems-3-long": ("A", "B", "C"),
}

Rows = list[MultilingualPrompt]


@pytest.fixture(scope="module")
def sample() -> Rows:
    return load_multilingual()


def normal(text: str) -> str:
    return " ".join(text.lower().split())


class TestSample:
    def test_every_prompt_is_there_in_every_language(self, sample: Rows) -> None:
        assert len(sample) == 48 * 7
        by_id: dict[str, list[str]] = {}
        for row in sample:
            by_id.setdefault(row.id, []).append(row.language)
        assert len(by_id) == 48
        assert all(tuple(languages) == LANGUAGES for languages in by_id.values())

    def test_kinds_levels_and_lengths_are_balanced(self, sample: Rows) -> None:
        english = [row for row in sample if row.language == "en"]
        assert {row.kind for row in english} == KINDS
        cells = Counter((row.kind, row.level, row.id.rpartition("-")[2]) for row in english)
        assert cells == Counter(product(KINDS, (1, 2, 3), ("short", "long")))
        assert all(row.id.startswith(f"{row.kind}-{row.level}-") for row in english)

    def test_length_does_not_give_the_level_away(self, sample: Rows) -> None:
        for row in language_report(lambda prompts: np.full(len(prompts), 0.5)).languages:
            low, high = row.length_auc_ci
            assert low < 0.5 < high, row.language
            assert row.length_auc < 0.7, row.language
        english = [row for row in sample if row.language == "en"]
        easiest = max(len(row.prompt) for row in english if row.level == 1)
        hardest = min(len(row.prompt) for row in english if row.level == 3)
        assert easiest > 6 * hardest

    def test_no_prompt_is_there_twice(self, sample: Rows) -> None:
        assert len({normal(row.prompt) for row in sample}) == len(sample)

    def test_none_is_in_the_training_samples(self, sample: Rows) -> None:
        folder = SAMPLE.parent
        known = [row.prompt for row in read_rows(folder / "comparisons.jsonl")]
        known += [json.dumps(p, ensure_ascii=False) for p in read_prompts(folder / "prompts.jsonl")]
        texts = [normal(text) for text in known]
        # Not the same, and no passage in common either: 30 characters are about 5 words.
        passages = {text[i : i + 30] for text in texts for i in range(max(len(text) - 29, 1))}
        for row in sample:
            text = normal(row.prompt)
            assert text not in texts
            shared = [
                text[i : i + 30] for i in range(len(text) - 29) if text[i : i + 30] in passages
            ]
            assert not shared, (row.id, row.language, shared[0])

    def test_translations_keep_numbers_code_and_formulas(self, sample: Rows) -> None:
        originals = {row.id: row.prompt for row in sample if row.language == "en"}
        for row in sample:
            original = originals[row.id]
            number, code = re.compile(r"\d+"), original.partition("\n\n")[2]
            lost = Counter(number.findall(original)) - Counter(number.findall(row.prompt))
            assert not lost, (row.id, row.language, lost)
            assert row.prompt.partition("\n\n")[2] == code, (row.id, row.language)
            for formula in FORMULAS.get(row.id, ()):
                assert formula in row.prompt, (row.id, row.language, formula)

    def test_prompts_are_in_their_language(self, sample: Rows) -> None:
        originals = {row.id: row.prompt for row in sample if row.language == "en"}
        for row in sample:
            prose = row.prompt.partition("\n\n")[0]
            for language, letters in SCRIPTS.items():
                assert bool(re.search(letters, prose)) == (row.language == language), row
            if row.language != "en":
                # Translated, and not the original with a few words changed; names may stay.
                words = re.compile(r"\b[a-z]{4,}\b")
                original = set(words.findall(originals[row.id].partition("\n\n")[0]))
                assert len(original & set(words.findall(prose))) <= 1 + len(original) / 3, row

    def test_the_package_ships_it(self) -> None:
        root = Path(thriftroute.__file__).resolve().parent
        build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
        patterns = build["package-data"]["thriftroute"]
        assert any(SAMPLE in root.glob(pattern) for pattern in patterns)


def scoring(
    rows: Iterable[MultilingualPrompt], of: Callable[[MultilingualPrompt], float]
) -> Callable[[list[str]], Floats]:
    """A router that knows the rows: `of` gives the score of each."""
    known = {row.prompt: of(row) for row in rows}
    return lambda prompts: np.array([known[prompt] for prompt in prompts])


def figures(report: LanguageReport, language: str) -> LanguageFigures:
    [row] = [row for row in report.languages if row.language == language]
    return row


def made(levels: Sequence[int], languages: Sequence[str] = ("en", "de")) -> Rows:
    return [
        MultilingualPrompt(str(i), "chat", level, language, f"{language} {i} " + "x" * (i % 4))
        for i, level in enumerate(levels)
        for language in languages
    ]


class TestFigures:
    def test_a_score_that_is_the_level(self, sample: Rows) -> None:
        report = language_report(scoring(sample, lambda row: row.level / 4))
        assert (report.n, report.levels, report.seed) == (48, (16, 16, 16), 0)
        assert tuple(row.language for row in report.languages) == LANGUAGES
        # A third or two thirds are equally near to half: the cheaper share.
        assert 0.5 < report.threshold <= 0.75
        for row in report.languages:
            assert (row.n, row.mean) == (48, 0.5)
            assert row.sd == pytest.approx(math.sqrt(1 / 24))
            assert (row.auc, row.auc_ci) == (1.0, (1.0, 1.0))
            assert row.spearman == pytest.approx(1.0)
            assert (row.minus_english, row.minus_english_ci) == (0.0, (0.0, 0.0))
            assert row.strong_share == pytest.approx(1 / 3)

    def test_a_constant_score(self, sample: Rows) -> None:
        report = language_report(lambda prompts: np.full(len(prompts), 0.3))
        for row in report.languages:
            assert (row.mean, row.sd) == (pytest.approx(0.3), pytest.approx(0.0))
            assert (row.auc, row.auc_ci) == (0.5, (0.5, 0.5))
            assert math.isnan(row.spearman)
            assert row.strong_share == 0.0
        dumped = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert [row["spearman"] for row in dumped["languages"]] == [None] * 7

    def test_each_language_is_held_against_english(self, sample: Rows) -> None:
        def score(row: MultilingualPrompt) -> float:
            base = (row.level + len(row.id) / 100) / 4
            return {"de": 1 - base, "fr": base + 0.02, "es": 0.0}.get(row.language, base)

        report = language_report(scoring(sample, score))
        assert figures(report, "en").strong_share == 0.5
        german, french, spanish = (figures(report, code) for code in ("de", "fr", "es"))
        assert (german.auc, german.minus_english) == (0.0, -1.0)
        assert german.spearman == pytest.approx(-1.0)
        assert french.spearman == pytest.approx(1.0)
        assert french.minus_english == 0.0
        assert french.mean - figures(report, "en").mean == pytest.approx(0.02)
        assert french.strong_share > 0.5
        assert (spanish.auc, spanish.strong_share) == (0.5, 0.0)
        assert math.isnan(spanish.spearman)

    def test_figures_and_intervals_by_hand(self) -> None:
        rng = np.random.default_rng(5)
        levels = rng.permutation([1] * 9 + [2] * 5 + [3] * 7).tolist()
        rows = made(levels)
        # Few distinct values, so that there are ties.
        drawn_scores = rng.integers(0, 9, len(rows)) / 10
        values = {row.prompt: float(v) for row, v in zip(rows, drawn_scores, strict=True)}
        report = language_report(
            lambda prompts: [values[p] for p in prompts], rows, seed=3, resamples=200
        )
        assert (report.levels, report.seed, report.resamples) == ((9, 5, 7), 3, 200)
        draws = np.concatenate(list(resample_counts(21, 200, seed=3)))
        kept = np.array([level != 2 for level in levels])
        label = np.array([level == 3 for level in levels], dtype=float)
        samples: dict[str, list[float]] = {}
        for language in ("en", "de"):
            group = [row for row in rows if row.language == language]
            for name, scores in (
                ("score", np.array([values[row.prompt] for row in group])),
                ("length", np.array([float(len(row.prompt)) for row in group])),
            ):
                again = []
                for count in draws.astype(int):
                    drawn = np.repeat(np.arange(21), count)
                    drawn = drawn[kept[drawn]]
                    again.append(auc(scores[drawn], label[drawn]))
                samples[f"{language} {name}"] = again
                row = figures(report, language)
                found = (row.auc, row.auc_ci)
                if name == "length":
                    found = (row.length_auc, row.length_auc_ci)
                assert found[0] == pytest.approx(auc(scores[kept], label[kept]))
                assert found[1] == pytest.approx(interval(again))
        paired = np.subtract(samples["de score"], samples["en score"])
        german = figures(report, "de")
        assert german.minus_english == pytest.approx(german.auc - figures(report, "en").auc)
        assert german.minus_english_ci == pytest.approx(interval(paired))

    def test_the_seed_decides_the_intervals_alone(self, sample: Rows) -> None:
        rng = np.random.default_rng(0)
        score = scoring(sample, lambda row: float(rng.random()))
        one, same, other = (language_report(score, seed=seed) for seed in (1, 1, 2))
        assert one == same
        assert figures(one, "de").auc_ci != figures(other, "de").auc_ci
        assert figures(one, "de").auc == figures(other, "de").auc

    def test_the_router_is_asked_once(self, sample: Rows) -> None:
        asked: list[list[str]] = []

        def score(prompts: list[str]) -> Floats:
            asked.append(prompts)
            return np.linspace(0, 1, len(prompts))

        language_report(score, resamples=10)
        [prompts] = asked
        assert sorted(prompts) == sorted(row.prompt for row in sample)

    def test_the_order_of_rows_does_not_matter(self, sample: Rows) -> None:
        score = scoring(sample, lambda row: len(row.prompt) % 97 / 97)
        mixed = [sample[i] for i in np.random.default_rng(0).permutation(len(sample))]
        english = [row for row in sample if row.language == "en"]
        others = [row for row in mixed if row.language != "en"]
        first = language_report(score, resamples=50)
        again = language_report(score, others + english, resamples=50)
        assert again.languages[0].language == "en"
        by_name = {row.language: row for row in again.languages}
        assert [by_name[row.language] for row in first.languages] == list(first.languages)

    def test_without_hard_prompts_nothing_is_ordered(self) -> None:
        report = language_report(lambda prompts: np.linspace(0, 1, len(prompts)), made([1, 2, 1]))
        row = figures(report, "de")
        assert math.isnan(row.auc) and all(math.isnan(end) for end in row.auc_ci)
        assert math.isfinite(row.spearman)
        assert report.to_dict()["languages"][0]["auc"] is None

    def test_a_real_bundle(self, tiny_bundle: Path) -> None:
        rows = [
            MultilingualPrompt("1", "chat", 1, "en", "hello easy"),
            MultilingualPrompt("2", "chat", 3, "en", "prove the hard theorem"),
            MultilingualPrompt("1", "chat", 1, "de", "hello"),
            MultilingualPrompt("2", "chat", 3, "de", "hard integral"),
        ]
        report = language_report(Scorer.load(tiny_bundle).scores, rows)
        assert [row.auc for row in report.languages] == [1.0, 1.0]
        assert figures(report, "de").strong_share == 0.5


class TestRanks:
    @pytest.mark.parametrize(
        ("values", "ranks"),
        [([5.0], [1]), ([2.0, 1.0, 2.0, 7.0], [2.5, 1, 2.5, 4]), ([3.0, 3.0, 3.0], [2, 2, 2])],
    )
    def test_ties_share_the_mean_of_their_ranks(
        self, values: list[float], ranks: list[float]
    ) -> None:
        assert average_ranks(np.array(values)).tolist() == ranks

    def test_spearman_is_that_of_scipy(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        rng = np.random.default_rng(1)
        for n in (2, 7, 60):
            a, b = rng.integers(0, 5, n) + 0.0, rng.random(n)
            a[0], a[1] = -1.0, 9.0
            assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)

    def test_only_the_order_counts(self) -> None:
        a = np.array([0.1, 0.4, 0.2, 0.9])
        assert spearman(a, a**3) == 1.0
        assert spearman(a, -np.exp(a)) == -1.0
        assert math.isnan(spearman(a, [1, 1, 1, 1]))
        assert math.isnan(spearman([1], [2]))

    @pytest.mark.parametrize(
        ("first", "second", "says"),
        [
            ([], [], "lengths > 0"),
            ([1, 2], [1], "equal lengths"),
            ([1, math.nan], [1, 2], "finite"),
        ],
    )
    def test_what_has_no_ranks(self, first: list[float], second: list[float], says: str) -> None:
        with pytest.raises(EvaluationError, match=says):
            spearman(first, second)


def printed(report: LanguageReport, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_languages(report, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


class TestTable:
    @pytest.mark.parametrize("width", [80, 140])
    def test_a_line_a_language(self, sample: Rows, width: int) -> None:
        report = language_report(scoring(sample, lambda row: (row.level + len(row.prompt) % 3) / 6))
        text = printed(report, width)
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        for row in report.languages:
            [line] = [line for line in lines if line.strip().startswith(f"{row.language} ")]
            low, high = row.auc_ci
            assert f"{row.auc:.3f} [{low:.3f}, {high:.3f}]" in line
            assert f"{row.strong_share:.0%}" in line
            assert (f"{row.length_auc:.3f} [" in line) == (width == 140)
        told = " ".join(text.split())
        assert "n = 48 prompts in each of 7" in told
        assert "levels are our own judgement, not results of models" in told
        assert f"{report.threshold:g}, which sends {report.languages[0].strong_share:.0%}" in told
        assert "1,000 bootstrap resamples of the prompts, seed 0" in told

    def test_what_is_undefined_is_a_dash(self) -> None:
        rows = made([1, 2, 1], ("en", "xx"))
        text = printed(language_report(lambda p: np.full(len(p), 0.5), rows, resamples=9), 140)
        [line] = [line for line in text.splitlines() if line.strip().startswith("xx ")]
        assert "nan" not in text
        assert line.split()[:4] == ["xx", "0.500", "0.000", "-"]


def row_of(**fields: Any) -> dict[str, Any]:
    plain = {"id": "a", "kind": "chat", "level": 1, "language": "en", "prompt": "Hello!"}
    return {**plain, **fields}


def written(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class TestErrors:
    @pytest.mark.parametrize(
        ("bad", "field", "says"),
        [
            (row_of(level=4), "level", "4 is no level; expected 1, 2 or 3"),
            (row_of(level=True), "level", "True is no level"),
            (row_of(level="1"), "level", "'1' is no level"),
            (row_of(language="DE"), "language", "expected two letters of ISO 639-1"),
            (row_of(language="deu"), "language", "'deu' is no language"),
            (row_of(language=None), "language", "missing; expected text"),
            (row_of(prompt=" \n"), "prompt", "is empty"),
            (row_of(prompt=["a"]), "prompt", "is not text"),
            ({k: v for k, v in row_of().items() if k != "kind"}, "kind", "is missing"),
            ([1, 2], None, "expected an object"),
            ('{"id": "a"', None, "is no JSON"),
        ],
    )
    def test_a_bad_row_says_where(
        self, tmp_path: Path, bad: object, field: str | None, says: str
    ) -> None:
        path = written(tmp_path / "rows.jsonl", row_of(), "", bad)
        with pytest.raises(DataError, match=re.escape(says)) as caught:
            load_multilingual(path)
        assert (caught.value.path, caught.value.line) == (str(path), 3)
        assert caught.value.field == field

    @pytest.mark.parametrize(
        ("rows", "says"),
        [
            ([row_of(), row_of(prompt="Hi!")], "'a' is there twice in language 'en'"),
            ([row_of(language="de")], "has no prompt in 'en'"),
            (
                [row_of(), row_of(id="b"), row_of(language="de")],
                "'b' is missing in language 'de'",
            ),
            (
                [row_of(), row_of(language="de"), row_of(id="b", language="de")],
                "'b' is missing in language 'en'",
            ),
            ([row_of(), row_of(language="de", level=2)], "another kind or level in 'de'"),
            ([row_of(), row_of(language="de", kind="code")], "another kind or level in 'de'"),
        ],
    )
    def test_a_set_that_is_not_whole(self, tmp_path: Path, rows: list[Any], says: str) -> None:
        path = written(tmp_path / "rows.jsonl", *rows)
        with pytest.raises(DataError, match=says) as caught:
            load_multilingual(path)
        assert caught.value.path == str(path)
        with pytest.raises(DataError, match=says):
            language_report(
                lambda prompts: [0.5] * len(prompts), [MultilingualPrompt(**r) for r in rows]
            )

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read: No such file"):
            load_multilingual(tmp_path / "absent.jsonl")
        (tmp_path / "latin.jsonl").write_bytes('{"id": "ä"}'.encode("latin-1"))
        with pytest.raises(DataError, match="is not UTF-8: byte 8"):
            load_multilingual(tmp_path / "latin.jsonl")

    def test_what_is_written_is_read_again(self, tmp_path: Path, sample: Rows) -> None:
        rows = [row for row in sample if row.language in ("en", "ru")]
        path = written(tmp_path / "rows.jsonl", *({**asdict(row), "more": 1} for row in rows))
        assert load_multilingual(path) == rows
        assert load_multilingual(str(path)) != [replace(row, kind="other") for row in rows]

    @pytest.mark.parametrize(
        ("scores", "says"),
        [
            (lambda prompts: [0.5], r"the router gave scores of shape \(1,\)"),
            (lambda prompts: [[0.5]] * len(prompts), r"shape \(336, 1\)"),
            (lambda prompts: [math.nan] * len(prompts), "336 of them not finite"),
            (
                lambda prompts: [2.0, *[0.5] * 335],
                r"1 of 336 scores are not in \[0, 1\].*not its margins",
            ),
        ],
    )
    def test_a_router_that_gives_no_scores(
        self, scores: Callable[[list[str]], Any], says: str
    ) -> None:
        with pytest.raises(EvaluationError, match=says):
            language_report(scores)

    def test_no_resamples(self) -> None:
        with pytest.raises(EvaluationError, match="and one resample, got 48, 0"):
            language_report(lambda prompts: [0.5] * len(prompts), resamples=0)
