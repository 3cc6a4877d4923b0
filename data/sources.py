"""Public sources by name: per-prompt results of real models, as Parquet files in one folder,
which the environment variable THRIFTROUTE_DATA names. Files that judge a router are refused as
training data, unless a part of one stands in for a user's own logs (`own_logs=True`).
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import DataError
from ..router.threshold import ORDINARY
from .readers import read_rows
from .schema import PromptScore, Row

ENVIRONMENT = "THRIFTROUTE_DATA"
# The corpus of ordinary prompts, which a clone has (its README: how it was written and rated).
CORPUS = Path(__file__).with_name("ordinary") / "prompts.jsonl"
# The tiers that its ratings are about, as names of models.
JUDGED_STRONG, JUDGED_WEAK = "strong tier (judged)", "weak tier (judged)"


@dataclass(frozen=True, slots=True)
class Source:
    """One file. `publishable` is False where a checkpoint that is given to others must not be
    trained on it (an unclear licence). `weight` multiplies the weight of its rows; `leave_out`
    names models whose scores show format failures, not answers.
    """

    name: str
    what: str
    role: Literal["train", "eval"]
    licence: str
    publishable: bool = True
    weight: float = 1.0
    leave_out: frozenset[str] = frozenset()

    def path(self) -> Path:
        """Where the file is. Raises DataError where the folder is not set, or it is not there."""
        if self.name == ORDINARY:
            if CORPUS.is_file():
                return CORPUS
            raise DataError("is part of a clone, not of the installed package", path=CORPUS)
        file = f"{self.name}.parquet"
        folder = os.environ.get(ENVIRONMENT, "")
        if not folder:
            told = f"{ENVIRONMENT} is not set; set it to the folder that holds {file}"
            raise DataError(f"{told}, or give the path of a file of your own")
        path = Path(folder) / file
        if not path.is_file():
            problem = f"is missing; put {file} ({self.what}) there, or set {ENVIRONMENT}"
            raise DataError(problem, path=path)
        return path

    def rows(self, *, for_training: bool = False, own_logs: bool = False) -> Iterator[Row]:
        """Stream the rows; scores without the models in `leave_out`, weights times `weight`.
        Raises DataError: a missing file, or an evaluation file for training."""
        if for_training:
            self.check_training(own_logs=own_logs)
        if self.name == ORDINARY:
            return judged_rows(self.path())
        rows = read_rows(self.path(), format="parquet")
        kept = (r for r in rows if not isinstance(r, PromptScore) or r.model not in self.leave_out)
        if self.weight == 1.0:
            return kept
        return (replace(row, weight=row.weight * self.weight) for row in kept)

    def check_training(self, *, own_logs: bool = False) -> None:
        """Raises DataError unless the source may be trained on (see the module's docstring)."""
        if self.role == "eval" and not own_logs:
            raise DataError(
                f"{self.name} is for evaluation only: a router that trained on it would be "
                "measured on what it has seen. Train on one of "
                f"{', '.join(train_sources())}; or, where a random part of it stands in for your "
                "own logs and only the rest is evaluated on, say own_logs=True"
            )


def judged_rows(path: Path) -> Iterator[Row]:
    """Two scores for each prompt of the corpus, the means of its two ratings."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            for model, key in ((JUDGED_STRONG, "strong_ok"), (JUDGED_WEAK, "weak_ok")):
                score = (one[key] + one[f"{key}_blind"]) / 200
                yield PromptScore(
                    one["prompt"], model, score, source=ORDINARY, category=one["area"]
                )


_APACHE = "Apache-2.0"
_ALL = (
    Source(ORDINARY, "ordinary prompts, rated by language models", "train", _APACHE),
    Source("routellm_mmlu", "MMLU, 14,042 questions, 2 models", "eval", _APACHE),
    Source("routellm_gsm8k", "GSM8K test, 1,319 questions, 2 models", "eval", _APACHE),
    # The score is the judge's grade scaled; raw_score has 1 to 10.
    Source("routellm_mtbench", "MT-Bench, 80 questions, 2 turns, 2 models", "eval", _APACHE),
    Source("zeroeval_gsm8k", "GSM8K test, 44 models", "eval", _APACHE),
    Source("mtbench_pairs", "MT-Bench, pairwise votes, 6 models", "eval", "CC-BY-4.0"),
    # More than half of its questions are MMLU test questions with more options.
    Source("mmlu_pro", "MMLU-Pro, 11,279 questions, 32 models", "train", _APACHE),
    Source("zeroeval_math_l5", "MATH level 5, 662 problems, 43 models", "train", _APACHE),
    Source("zeroeval_crux", "code output prediction, 730, 51 models", "train", _APACHE),
    # Tiny synthetic prompts of one skill.
    Source(
        "zeroeval_numersense_v2", "which is bigger, 512, 9 models", "train", _APACHE, weight=0.25
    ),
    # The repository states no licence.
    Source(
        "routerbench_arc_mbpp_winogrande",
        "ARC, MBPP, Winogrande, 2,830 prompts, 11 models, with costs",
        "train",
        "unknown",
        publishable=False,
    ),
    # Prompts repeat with other tools: an item is its item_id.
    Source(
        "bfcl_v1",
        "tool calls, 1,419 prompts, 71 models",
        "train",
        "results unknown, questions Apache-2.0",
        publishable=False,
        leave_out=frozenset(
            ("gpt-4o-2024-08-06", "mistral-large-2407", "NousResearch_Hermes-2-Theta-Llama-3-70B")
        ),
    ),
    # Long synthetic prompts.
    Source("kor_bench", "rule-following logic, 1,129 prompts, 37 models", "train", _APACHE),
    Source(
        "livecodebench",
        "contest problems, 400, 72 models",
        "train",
        "results MIT and CC-BY-SA, statements unclear",
        publishable=False,
    ),
    # Four templates: prompts embed close together.
    Source("planbench", "planning, 1,201 prompts, 13 models", "train", "MIT"),
    # Noisy, reworded items of GSM8K, MMLU, ARC and MBPP; no model of frontier class.
    Source("llmrouter_fusionbench", "mixed, 5,989 prompts, 9 models", "train", "MIT", weight=0.25),
)
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}


def source(name: str) -> Source:
    """The source of that name. Raises DataError, listing all, where there is none."""
    found = SOURCES.get(name)
    if found is None:
        raise DataError(f"unknown source {name!r}; expected one of {', '.join(SOURCES)}")
    return found


def train_sources(*, publishable: bool = False) -> tuple[str, ...]:
    """Names of the sources that may be trained on; only those for a published checkpoint if so."""
    return tuple(s.name for s in _ALL if s.role == "train" and (s.publishable or not publishable))


def eval_sources() -> tuple[str, ...]:
    """Names of the sources that are for evaluation only."""
    return tuple(s.name for s in _ALL if s.role == "eval")


def is_evaluation_file(path: str | Path) -> bool:
    """Whether a path, wherever it lies, has the name of an evaluation source's file."""
    return Path(path).stem in eval_sources()


def read_source(name: str) -> Iterable[Row]:
    """Rows of a known source by its name, or of a file. Raises DataError."""
    return SOURCES[name].rows() if name in SOURCES else read_rows(name)
