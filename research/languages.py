"""Prompts in other languages: what a router makes of faithful translations of one set of prompts.

    report = language_report(Scorer.load(bundle).scores)
    print_languages(report)

The sample, `data/samples/multilingual.jsonl`, has 48 prompts of the project's own making: 8 kinds,
3 levels of difficulty, and for each of these one short and one long prompt; in English and
translated into 6 languages. For every language, over its n prompts:

mean, sd        of the scores. A mean that moves from language to language means that one threshold
                sends other shares of the same requests to the strong model.
spearman        rank correlation of the scores with those of the English originals: 1 where the
                language leaves the order of the prompts as it was, 0 where it leaves nothing of it.
auc             share of the pairs of a prompt of level 3 and one of level 1 in which the harder
                scores higher, ties half. 0.5 is chance.
length_auc      the same for the number of characters of the prompt, the baseline that needs no
                router.
minus_english   auc minus that of the English originals.
strong_share    share of prompts with a score at or above the threshold that sends half of the
                English ones (or the nearest share that tied scores allow).

Intervals are 95% percentile bootstrap over prompts, n drawn with replacement; all languages and the
length see the same draws, so that differences are paired.

What none of this says: whether routing pays in a language. The levels are our own judgement and not
measured results of models; a weak model may also fail on an easy prompt because of its language,
which levels that are the same in all of them cannot show. The sample is harder to order than real
traffic: every kind and both lengths are equally frequent at every level, so that a router which
only tells mathematics from chat, or long from short, gets little for it. And n is small: with 16
prompts of either level an AUC is known to about +-0.2, and a kind has too few prompts for a figure
of its own.

Sources
    Spearman   Spearman 1904, American Journal of Psychology 15: the Pearson correlation of ranks;
               tied values share the mean of their ranks
    AUC        see `metrics`
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data.schema import check_text, shown
from ..errors import DataError, EvaluationError
from ..eval.baselines import length_scores
from ..eval.bootstrap import checked_scores, interval, resample_counts
from ..eval.metrics import Floats, Interval, auc_of_groups, tied_groups
from ..eval.printing import difference_text, interval_text, json_safe, number_text
from ..router.threshold import format_threshold, threshold_for_share
from ..terminal import new_console

if TYPE_CHECKING:
    from rich.console import Console

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "samples" / "multilingual.jsonl"
ORIGINAL = "en"
EASY, HARD = 1, 3
RESAMPLES = 1000

NAMES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "ru": "Russian",
    "zh": "Chinese",
}

# A terminal of 80 columns holds the narrow table; the rest is in the JSON.
NARROW = ("language", "mean", "sd", "Spearman", "AUC [95% CI]", "to strong")
WIDE = (*NARROW, "AUC - English [95% CI]", "length AUC [95% CI]")
WIDE_FROM = 120

Score = Callable[[list[str]], npt.ArrayLike]


@dataclass(frozen=True, slots=True)
class MultilingualPrompt:
    """One prompt in one language. `id` is that of the original, shared by all its translations.

    `level` is 1 (easy) to 3 (hard), `language` two letters of ISO 639-1, "en" for the original.
    Raises DataError, naming the field, for anything else.
    """

    id: str
    kind: str
    level: int
    language: str
    prompt: str

    def __post_init__(self) -> None:
        for field in ("id", "kind", "language", "prompt"):
            check_text(getattr(self, field), field)
        code = self.language
        if not (len(code) == 2 and code.isascii() and code.isalpha() and code.islower()):
            raise DataError(
                f"{shown(code)} is no language; expected two letters of ISO 639-1, such as 'de'",
                field="language",
            )
        # bool is a whole number to Python, and no level.
        if type(self.level) is not int or not EASY <= self.level <= HARD:
            raise DataError(
                f"{shown(self.level)} is no level; expected {EASY}, 2 or {HARD}", field="level"
            )


@dataclass(frozen=True, slots=True)
class LanguageFigures:
    """One language; the module's docstring says what each figure means. NaN where undefined."""

    language: str
    n: int
    mean: float
    sd: float
    spearman: float
    auc: float
    auc_ci: Interval
    length_auc: float
    length_auc_ci: Interval
    minus_english: float
    minus_english_ci: Interval
    strong_share: float


@dataclass(frozen=True, slots=True)
class LanguageReport:
    """All languages, English first. `n` prompts in each, `levels` how many of level 1, 2 and 3.

    `threshold` is the one that sends half of the English prompts to the strong model.
    """

    n: int
    levels: tuple[int, int, int]
    threshold: float
    seed: int
    resamples: int
    languages: tuple[LanguageFigures, ...]

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN becomes None."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


def load_multilingual(path: str | Path = SAMPLE) -> list[MultilingualPrompt]:
    """The prompts of the sample that ships with the package, or of a JSONL file of the same form.

    A row is {"id", "kind", "level", "language", "prompt"}; further fields are ignored. Raises
    DataError, naming path, line and field, for a bad row, and where a prompt is missing in one of
    the languages or twice in it, or differs from its original in kind or level.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: byte {error.start} is wrong", path=path) from error
    rows = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            rows.append(_row(content))
        except DataError as error:
            raise DataError(error.problem, path=path, line=line, field=error.field) from error
    try:
        _by_language(rows)
    except DataError as error:
        raise DataError(error.problem, path=path) from error
    return rows


def language_report(
    score: Score,
    rows: Iterable[MultilingualPrompt] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> LanguageReport:
    """Measure a router on every language of `rows`, by default the sample.

    `score` gives a score in [0, 1] for each of a list of prompts: `Scorer.scores`, or
    `CachedScorer.scores`. It is called once, with all prompts. Raises DataError for rows as
    `load_multilingual`, EvaluationError where the scores are not what is expected or resamples < 1.
    """
    languages = _by_language(load_multilingual() if rows is None else rows)
    prompts = [row.prompt for group in languages.values() for row in group]
    scores = dict(zip(languages, _scored(score, prompts, len(languages)), strict=True))
    english = scores[ORIGINAL]
    threshold, _ = threshold_for_share(english, 0.5)
    levels = np.array([row.level for row in languages[ORIGINAL]])
    n = levels.size
    draws = np.concatenate(list(resample_counts(n, resamples, seed=seed)))
    # The first row is the sample itself, the rest are its resamples.
    counts = np.vstack((np.ones(n), draws))
    reference = _ordered_right(english, levels, counts)
    figures = []
    for language, group in languages.items():
        ordered = _ordered_right(scores[language], levels, counts)
        length = _ordered_right(length_scores([row.prompt for row in group]), levels, counts)
        difference = ordered - reference
        figures.append(
            LanguageFigures(
                language=language,
                n=n,
                mean=float(scores[language].mean()),
                sd=float(scores[language].std()),
                spearman=spearman(scores[language], english),
                auc=float(ordered[0]),
                auc_ci=interval(ordered[1:]),
                length_auc=float(length[0]),
                length_auc_ci=interval(length[1:]),
                minus_english=float(difference[0]),
                minus_english_ci=interval(difference[1:]),
                strong_share=float(np.mean(scores[language] >= threshold)),
            )
        )
    by_level = np.bincount(levels, minlength=HARD + 1)
    return LanguageReport(
        n=n,
        levels=(int(by_level[1]), int(by_level[2]), int(by_level[3])),
        threshold=threshold,
        seed=seed,
        resamples=resamples,
        languages=tuple(figures),
    )


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Rank correlation of two lists of n numbers, ties with average ranks.

    NaN where one of them is constant (also for n = 1): there is no order to compare. Raises
    EvaluationError unless both are n > 0 finite numbers.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.size == 0 or a.shape != b.shape:
        raise EvaluationError(f"need equal lengths > 0, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise EvaluationError("rank correlation: every number must be finite")
    x, y = average_ranks(a), average_ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip(x @ y / scale, -1.0, 1.0)) if scale > 0 else float("nan")


def average_ranks(values: Floats) -> Floats:
    """Ranks 1 .. n of n numbers, the lowest first; tied numbers share the mean of their ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    ranks: Floats = (ends - (sizes - 1) / 2)[group]
    return ranks


def print_languages(report: LanguageReport, console: "Console | None" = None) -> None:
    """Print the table, with rich. `console`: a rich Console, by default stdout's."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    out = new_console() if console is None else console
    columns = WIDE if out.width >= WIDE_FROM else NARROW
    out.print(
        f"languages: n = {report.n} prompts in each of {len(report.languages)}",
        style="bold",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(escape(column), justify="left" if column == "language" else "right")
    for row in report.languages:
        cells = dict(zip(WIDE, _cells(row), strict=True))
        table.add_row(*(escape(cells[column]) for column in columns))
    out.print(table)
    for note in _notes(report):
        out.print(escape(note), style="dim", highlight=False)


def _row(content: str) -> MultilingualPrompt:
    try:
        record = json.loads(content)
    except ValueError as error:
        raise DataError(f"is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"expected an object, got {shown(record)}")
    fields = MultilingualPrompt.__slots__
    for field in fields:
        if field not in record:
            raise DataError("is missing", field=field)
    return MultilingualPrompt(**{field: record[field] for field in fields})


def _by_language(rows: Iterable[MultilingualPrompt]) -> dict[str, list[MultilingualPrompt]]:
    """Rows by language, English first, each in the order of the English ids."""
    found: dict[str, dict[str, MultilingualPrompt]] = {ORIGINAL: {}}
    for row in rows:
        group = found.setdefault(row.language, {})
        if row.id in group:
            raise DataError(f"prompt {row.id!r} is there twice in language {row.language!r}")
        group[row.id] = row
    originals = found[ORIGINAL]
    if not originals:
        raise DataError(f"has no prompt in {ORIGINAL!r}; the originals must be among the rows")
    for language, group in found.items():
        for id in [*originals, *group]:
            if id not in group or id not in originals:
                where = language if id in originals else ORIGINAL
                raise DataError(f"prompt {id!r} is missing in language {where!r}")
            if (group[id].kind, group[id].level) != (originals[id].kind, originals[id].level):
                raise DataError(
                    f"prompt {id!r} has another kind or level in {language!r} than in {ORIGINAL!r}"
                )
    return {language: [group[id] for id in originals] for language, group in found.items()}


def _scored(score: Score, prompts: list[str], languages: int) -> Floats:
    """Scores of all prompts, float64[languages, n]."""
    scores = checked_scores(score(prompts), len(prompts), "the router")
    outside = int(np.sum((scores < 0) | (scores > 1)))
    if outside:
        raise EvaluationError(
            f"{outside} of {len(prompts)} scores are not in [0, 1]; give the router's scores, not "
            "its margins"
        )
    return scores.reshape(languages, -1)


def _ordered_right(scores: Floats, levels: npt.NDArray[np.int64], counts: Floats) -> Floats:
    """AUC of level 3 against level 1 for each row of `counts` float64[b, n]: float64[b]."""
    order, starts = tied_groups(scores)
    drawn, ranked = counts[:, order], levels[order]
    return auc_of_groups(
        np.add.reduceat(drawn * (ranked == HARD), starts, axis=1),
        np.add.reduceat(drawn * (ranked == EASY), starts, axis=1),
    )


def _cells(row: LanguageFigures) -> Sequence[str]:
    name = NAMES.get(row.language)
    original = row.language == ORIGINAL
    difference = difference_text(row.minus_english, row.minus_english_ci)
    return (
        f"{row.language} {name}" if name else row.language,
        number_text(row.mean),
        number_text(row.sd),
        "-" if original else number_text(row.spearman),
        f"{number_text(row.auc)} {interval_text(row.auc_ci)}",
        f"{row.strong_share:.0%}",
        "-" if original else difference,
        f"{number_text(row.length_auc)} {interval_text(row.length_auc_ci)}",
    )


def _notes(report: LanguageReport) -> tuple[str, ...]:
    easy, middle, hard = report.levels
    return (
        "Spearman: with the scores of the English originals. AUC: how often a prompt of level "
        f"{HARD} ({hard} prompts) scores above one of level {EASY} ({easy}; {middle} lie between); "
        "levels are our own judgement, not results of models. To strong: at the threshold "
        f"{format_threshold(report.threshold)}, which sends "
        f"{report.languages[0].strong_share:.0%} of the English ones.",
        f"95% intervals: {report.resamples:,} bootstrap resamples of the prompts, seed "
        f"{report.seed}.",
    )
