"""`thriftroute train`: from the command's options to a TrainRequest."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ..data.readers import read_prompts
from ..data.sources import SOURCES
from ..errors import ConfigError
from ..eval import benchmarks
from .models.bert import BertSettings
from .models.mf import MFSettings
from .progress import Progress
from .run import KINDS, TrainRequest, TrainResult, train


def run_training(
    *,
    kind: str,
    epochs: int | None,
    min_evidence: float | None = None,
    against: Sequence[str],
    source_weights: Sequence[str],
    console: Console | None,
    **fields: Any,
) -> TrainResult:
    """Train as the options say. Raises ConfigError for those that do not fit, and as `run.train`.

    against: names of benchmarks or of evaluation sources, or files of prompts.
    source_weights: "SOURCE=FACTOR" each.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r} of router to train; give mf or bert")
    settings: MFSettings | BertSettings = MFSettings(min_evidence=min_evidence)
    if kind == "bert":
        if min_evidence is not None:
            raise ConfigError("--min-evidence is for mf, which departs from a bundle")
        settings = BertSettings() if epochs is None else BertSettings(epochs=epochs)
    elif epochs is not None:
        raise ConfigError("--epochs is for bert: mf is fitted in closed form")
    for side in ("strong", "weak"):
        if not fields[side]:
            raise ConfigError(f"--{side} names no model")
    request = TrainRequest(
        kind=kind,
        settings=settings,
        against={name: evaluation_prompts(name) for name in against},
        source_weights=dict(_weight(text) for text in source_weights),
        command=shlex.join(["thriftroute", *sys.argv[1:]]),
        **fields,
    )
    return train(request, Progress(console))


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
