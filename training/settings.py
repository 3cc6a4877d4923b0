"""What a training run is asked for: one frozen value, and how the command's options become it."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.readers import read_prompts
from ..data.sources import SOURCES
from ..errors import ConfigError, TrainingError
from ..eval import benchmarks

KINDS = ("mf", "bert", "fast")
DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# The longest that stays under 50 ms on one core, with room for a busy machine.
MAX_TOKENS = 160


@dataclass(frozen=True)
class MFSettings:
    """folds: of the cross-validation that calibrates and gives the card's figures. min_labels:
    with fewer the base bundle's own direction stands as it is. min_evidence: it stands too where
    the evidence (`ridge.BlockFit`) is no more than this; None takes the labels at any. On families
    left out, 100 labels, 0 makes harm rarer and the mean no better (docs/results.md)."""

    folds: int = 5
    min_labels: int = 50
    min_evidence: float | None = None


@dataclass(frozen=True)
class BertSettings:
    """frozen_layers counts from the bottom, the embeddings always with them."""

    epochs: int = 3
    patience: int = 1
    lr: float = 1e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.06
    batch: int = 32
    frozen_layers: int = 0
    train_tokens: int = 160


@dataclass(frozen=True)
class TrainSettings:
    """What to train, on what. `strong` and `weak` are models, or tiers of several.

    options: of the kind; None for its defaults.
    against: evaluation prompts by name; training prompts that match one are dropped.
    weak_fails: share, in [0, 1], of the label "the weak answer falls short" (1 - its score) beside
        "strong wins". Where strong often fails too, as on hard problems, "strong wins" teaches that
        hard prompts need it less, which is wrong for ordinary traffic. Scores are calibrated to
        "strong wins" either way.
    source_weights: factor on the weight of a source's prompts (default 1).
    dedupe: drop prompts that repeat an earlier one in other words or with other options.
    assume_strong: the rows are of the weak model alone, and strong is taken to be right on all.
    own_logs: allow evaluation-only data as training data, for the own-logs protocol.
    notes: lines for the card (what is known of the data, limits).
    base: the bundle that mf or fast starts from, by name or folder: its encoder, and its direction,
        from which few labels depart little. None: the built-in one of the kind, or none where
        `encoder` is given.
    encoder: the encoder of bert, and of an mf that starts from no bundle.
    """

    kind: str
    data: Sequence[str]
    strong: tuple[str, ...]
    weak: tuple[str, ...]
    out: Path
    seed: int = 0
    encoder: str | None = None
    base: str | None = None
    max_tokens: int = MAX_TOKENS
    validation: float = 0.1
    options: MFSettings | BertSettings | None = None
    against: dict[str, list[str]] = field(default_factory=dict)
    source_weights: dict[str, float] = field(default_factory=dict)
    weak_fails: float = 0.0
    assume_strong: bool = False
    own_logs: bool = False
    dedupe: bool = False
    skip_bad: bool = False
    rejects: Path | None = None
    overwrite: bool = False
    command: str = ""
    notes: tuple[str, ...] = ()

    @property
    def encoder_name(self) -> str:
        """The encoder that is meant: the one that is named, or the default."""
        return DEFAULT_ENCODER if self.encoder is None else self.encoder

    @property
    def pair(self) -> tuple[str, str]:
        """Names of the two tiers: the model's own where a tier is one model."""
        strong = self.strong[0] if len(self.strong) == 1 else "strong"
        return strong, self.weak[0] if len(self.weak) == 1 else "weak"

    @property
    def work(self) -> Path:
        """The folder that keeps the state of an unfinished run."""
        return self.out.with_name(self.out.name + ".run")

    @property
    def taken(self) -> bool:
        """Whether `out` is a folder that holds anything."""
        return self.out.is_dir() and any(self.out.iterdir())

    def check(self) -> None:
        """Raise TrainingError for what can be told to be wrong before anything is read."""
        taken = {*self.strong, *self.weak} & {"strong", "weak"}
        tiers = [tier for tier in ("strong", "weak") if len(getattr(self, tier)) > 1 and taken]
        problems = {
            f"kind {self.kind!r}: expected one of {', '.join(KINDS)}": self.kind not in KINDS,
            f"{self.out} is a file; --out is a folder to write the bundle to": (
                self.out.exists() and not self.out.is_dir()
            ),
            f"{self.out} exists already; give --overwrite or another --out": (
                self.taken and not self.overwrite
            ),
            f"weak_fails {self.weak_fails}: expected a share from 0 to 1": (
                not 0 <= self.weak_fails <= 1
            ),
            "give a base bundle or an encoder, not both: a bundle has its encoder": (
                self.base is not None and self.encoder is not None
            ),
            "mf and fast start from a bundle; bert starts from an --encoder": (
                self.base is not None and self.kind == "bert"
            ),
            f"{min(taken, default='')!r} is the name of a tier of several models "
            f"({', '.join(tiers)}), and of a model; rename the model in the data": bool(tiers),
            f"validation share {self.validation}: expected between 0 and 0.9": (
                not 0 < self.validation < 0.9
            ),
        }
        for problem, found in problems.items():
            if found:
                raise TrainingError(problem)


def settings_from_options(
    *,
    kind: str,
    epochs: int | None,
    min_evidence: float | None = None,
    max_tokens: int | None = None,
    against: Sequence[str],
    source_weights: Sequence[str],
    **fields: Any,
) -> TrainSettings:
    """The settings that the command's options say. Raises ConfigError for those that do not fit.

    against: names of benchmarks or of evaluation sources, or files of prompts.
    source_weights: "SOURCE=FACTOR" each. fields: of `TrainSettings`, as they are.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r} of router to train; give mf, bert or fast")
    if kind == "bert" and min_evidence is not None:
        raise ConfigError("--min-evidence is for mf and fast, which depart from a bundle")
    if kind != "bert" and epochs is not None:
        raise ConfigError(f"--epochs is for bert: {kind} is fitted in closed form")
    for side in ("strong", "weak"):
        if not fields[side]:
            raise ConfigError(f"--{side} names no model")
    options: MFSettings | BertSettings = MFSettings(min_evidence=min_evidence)
    if kind == "bert":
        options = BertSettings() if epochs is None else BertSettings(epochs=epochs)
    return TrainSettings(
        kind=kind,
        options=options,
        max_tokens=MAX_TOKENS if max_tokens is None else max_tokens,
        against={name: evaluation_prompts(name) for name in against},
        source_weights=dict(_weight(text) for text in source_weights),
        command=shlex.join(["thriftroute", *sys.argv[1:]]),
        **fields,
    )


def evaluation_prompts(name: str) -> list[str]:
    """The prompts of a benchmark, of a source of `data.sources`, or of a file.

    Of a benchmark these are the items that are evaluated on; a source has all of its rows.
    """
    if name in SOURCES:
        return list(dict.fromkeys(row.prompt for row in SOURCES[name].rows()))
    if name in benchmarks.BENCHMARKS:
        return benchmarks.load(name).prompts
    return list(read_prompts(name))


def _weight(text: str) -> tuple[str, float]:
    source, sep, factor = text.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not sep or not 0 <= value < float("inf"):
        raise ConfigError(
            f"--source-weight {text!r}: expected SOURCE=FACTOR, such as kor_bench=0.3"
        )
    return source, value
