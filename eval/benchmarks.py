"""Benchmarks: prompts with the reward of a strong and a weak model on each.

A new one is a function from `Files` to `Benchmark` with `@register("name")`; see `mmlu`. Items that
the RouteLLM release (arXiv 2406.18665) lists as contaminated are dropped and counted.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.schema import Message
from ..data.tables import PairTable, pair_table
from ..errors import EvaluationError, require_extra
from .fetch import Files

Floats = npt.NDArray[np.float64]
STRONG = "gpt-4-1106-preview"
WEAK = "mistralai/Mixtral-8x7B-Instruct-v0.1"


@dataclass(frozen=True, eq=False)
class Benchmark:
    """n prompts and what either model earns on each.

    `strong`, `weak` float64[n]: rewards, higher is better, in any one unit. `labels` float64[n]:
    share of comparisons that strong wins strictly, in [0, 1]. `dropped` counts left-out items by
    reason. `strong_cost`, `weak_cost` float64[n] in USD, None unless known for every prompt.
    `input_tokens`, `strong_tokens`, `weak_tokens` (of the answers) float64[n], NaN where unknown.
    `messages[i]` replaces prompt i where the whole conversation is scored.
    Raises EvaluationError where there is no prompt or lengths differ.
    """

    name: str
    prompts: list[str]
    strong: Floats
    weak: Floats
    strong_model: str
    weak_model: str
    labels: Floats = field(default_factory=lambda: np.empty(0))
    dropped: Mapping[str, int] = field(default_factory=dict)
    strong_cost: Floats | None = None
    weak_cost: Floats | None = None
    input_tokens: Floats | None = None
    strong_tokens: Floats | None = None
    weak_tokens: Floats | None = None
    messages: Sequence[Sequence[Message] | None] | None = None

    def __post_init__(self) -> None:
        if self.labels.size == 0:
            # Ties count for the weak model: calling the strong one there buys nothing.
            object.__setattr__(self, "labels", (self.strong > self.weak).astype(np.float64))
        if not self.prompts:
            raise EvaluationError(f"benchmark {self.name}: no prompt is left to evaluate on")
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray | list) and len(column) != self.n:
                raise EvaluationError(
                    f"benchmark {self.name}: {name} has {len(column)} entries, prompts {self.n}"
                )

    def __str__(self) -> str:
        return f"benchmark {self.name} ({self.strong_model} against {self.weak_model})"

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.prompts)

    def inputs(self) -> list[Any]:
        """What a router scores, n entries: the prompt, or the messages where there are any."""
        if self.messages is None:
            return list(self.prompts)
        pairs = zip(self.prompts, self.messages, strict=True)
        return [prompt if said is None else list(said) for prompt, said in pairs]


Loader = Callable[[Files], Benchmark]
BENCHMARKS: dict[str, Loader] = {}


def register(name: str) -> Callable[[Loader], Loader]:
    """Make a loader available to `load` under `name`."""

    def add(loader: Loader) -> Loader:
        BENCHMARKS[name] = loader
        return loader

    return add


def load(name: str, files: Files | None = None) -> Benchmark:
    """The benchmark `name`, from THRIFTROUTE_DATA, or fetched where that is unset.

    Raises EvaluationError for an unknown name (lists those there are) or unreadable data.
    """
    if name not in BENCHMARKS:
        raise EvaluationError(
            f"unknown benchmark {name!r}; available: {', '.join(sorted(BENCHMARKS))}; "
            "your own data: --data FILE --strong MODEL --weak MODEL"
        )
    return BENCHMARKS[name](Files.from_environment() if files is None else files)


@register("mmlu")
def mmlu(files: Files) -> Benchmark:
    """MMLU, 14,042 questions less 5 contaminated; rewards are 0 or 1. Duplicates stay."""
    names = [f"mmlu/responses/mmlu_{domain}.csv" for domain in MMLU_DOMAINS]
    return _right_or_wrong("mmlu", files, names)


@register("gsm8k")
def gsm8k(files: Files) -> Benchmark:
    """GSM8K test, 1,319 questions less 12 contaminated; rewards are 0 or 1."""
    return _right_or_wrong("gsm8k", files, ["gsm8k/gsm8k_responses.csv"])


@register("mt-bench")
def mt_bench(files: Files) -> Benchmark:
    """MT-Bench, 80 questions less 8 contaminated; rewards are GPT-4 grades from 1 to 10.

    As in RouteLLM a question is routed by its first turn alone. Both turns then go to the model
    that was chosen, so a question is one row, with the mean grade of its two turns.
    """
    if files.local is not None:
        rows = _parquet(files.parquet("routellm_mtbench.parquet"))
        grades = [(r["question_id"], r["model"], r["turn"], r["raw_score"]) for r in rows]
        prompts = {r["question_id"]: r["turn1_prompt"] for r in rows}
        contaminated = {r["question_id"] for r in rows if r["contaminated"]}
    else:
        questions = _json_rows(files.remote("mt_bench/question.jsonl"))
        bad = _contaminated(files, "mt_bench")
        judged = _json_rows(files.remote("mt_bench/judgements.jsonl"))
        grades = [(r["question_id"], r["model"], r["turn"], r["score"]) for r in judged]
        prompts = {q["question_id"]: q["turns"][0] for q in questions}
        contaminated = {q["question_id"] for q in questions if bad & set(q["turns"])}
    turns: dict[tuple[int, str], dict[int, float]] = {}
    for question, model, turn, grade in grades:
        turns.setdefault((question, _plain(model)), {})[turn] = float(grade)

    def mean_grade(question: int, model: str) -> float:
        graded = turns.get((question, _plain(model)), {})
        if sorted(graded) != [1, 2]:
            raise EvaluationError(
                f"mt-bench: question {question} has grades of {model} for turns {sorted(graded)}, "
                "expected 1 and 2; the files do not belong together"
            )
        return sum(graded.values()) / 2

    return _routellm("mt-bench", prompts, contaminated, mean_grade)


def from_table(table: PairTable, name: str = "data") -> Benchmark:
    """A benchmark of a pair or of two tiers, from rows in the scores or the comparisons format.

    From comparisons, `strong` is the mean score of the strong side and `weak` its complement, so
    that a positive gap means that the strong model is preferred. Each distinct prompt counts once,
    however many rows it had.
    """
    same = ("strong", "weak", "input_tokens", "strong_tokens", "weak_tokens", "messages")
    costs = {name: getattr(table, name) for name in ("strong_cost", "weak_cost")}
    known = all(np.isfinite(one).all() for one in costs.values())
    left_out = {
        "row of another model": table.usage.other_model,
        "row within one tier": table.usage.same_tier,
        "row on a prompt without both models": table.usage.unpaired,
    }
    return Benchmark(
        name=name,
        prompts=list(table.prompts),
        strong_model=", ".join(table.strong_models),
        weak_model=", ".join(table.weak_models),
        labels=table.win,
        dropped={reason: count for reason, count in left_out.items() if count},
        **{column: getattr(table, column) for column in same},
        **(costs if known else {}),
    )


def from_file(
    path: str | Path, strong: str | Sequence[str], weak: str | Sequence[str], name: str = ""
) -> Benchmark:
    """A benchmark from any file, folder or dataset that `data.readers.read_rows` knows.

    Raises DataError for a bad row, an unknown model, or where no prompt has both models.
    """
    from ..data.readers import read_rows

    return from_table(pair_table(read_rows(path), strong, weak), name or Path(path).stem)


def _right_or_wrong(name: str, files: Files, responses: Iterable[str]) -> Benchmark:
    """From Parquet rows of a question and model, else from CSV rows of a question with a True or
    False for each model; questions in their order."""
    key: Any
    prompts: dict[Any, str] = {}
    rewards: dict[Any, dict[str, float | None]] = {}
    contaminated = set()
    if files.local is not None:
        columns = ["task", "row", "model", "score", "prompt", "contaminated"]
        for row in _parquet(files.parquet(f"routellm_{name}.parquet"), columns):
            key = (row["task"], row["row"])
            prompts[key] = row["prompt"]
            rewards.setdefault(key, {})[_plain(row["model"])] = row["score"]
            if row["contaminated"]:
                contaminated.add(key)
    else:
        bad = _contaminated(files, name)
        for one in responses:
            with files.remote(one).open(encoding="utf-8", newline="") as file:
                for answers in csv.DictReader(file):
                    key = len(prompts)
                    prompts[key] = answers["prompt"]
                    # A short row has None in its last columns.
                    rewards[key] = {
                        _plain(model): {"true": 1.0, "false": 0.0}.get(str(said).strip().lower())
                        for model, said in answers.items()
                    }
        contaminated = {key for key, prompt in prompts.items() if prompt in bad}

    def reward(key: Any, model: str) -> float:
        found = rewards[key].get(_plain(model))
        if found is None:
            raise EvaluationError(f"{name}: no column, no row, or no True or False, for {model}")
        return found

    return _routellm(name, prompts, contaminated, reward)


def _routellm(
    name: str, prompts: Mapping[Any, str], contaminated: set[Any], reward: Callable[..., float]
) -> Benchmark:
    kept = sorted(set(prompts) - contaminated)
    strong, weak = (np.array([reward(q, model) for q in kept], float) for model in (STRONG, WEAK))
    return Benchmark(
        name=name,
        prompts=[prompts[q] for q in kept],
        strong=strong,
        weak=weak,
        strong_model=STRONG,
        weak_model=WEAK,
        dropped={"contaminated": len(contaminated)},
    )


def _plain(model: str) -> str:
    """A model's name without its provider, in lower case: the files differ in both."""
    return model.rsplit("/", 1)[-1].lower()


def _parquet(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    pq: Any = require_extra("pyarrow.parquet", "eval")
    rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        try:
            return [json.loads(line) for line in file if line.strip()]
        except json.JSONDecodeError as error:
            raise EvaluationError(
                f"{path}: not JSON lines: {error}; delete it to fetch it again"
            ) from error


def _contaminated(files: Files, folder: str) -> set[str]:
    rows = _json_rows(files.remote(f"{folder}/contaminated_prompts.jsonl"))
    return {row["eval_prompt"] for row in rows}


# The 57 subjects of MMLU (Hendrycks et al. 2021, arXiv 2009.03300), by the names of their files.
MMLU_DOMAINS: tuple[str, ...] = tuple(
    """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology
    college_chemistry college_computer_science college_mathematics college_medicine college_physics
    computer_security conceptual_physics econometrics electrical_engineering elementary_mathematics
    formal_logic global_facts high_school_biology high_school_chemistry
    high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality international_law
    jurisprudence logical_fallacies machine_learning management marketing medical_genetics
    miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory
    professional_accounting professional_law professional_medicine professional_psychology
    public_relations security_studies sociology us_foreign_policy virology world_religions
    """.split()  # noqa: SIM905
)
