"""What a bundle does beyond one pair: python -m thriftroute.research.protocols NAME --router mf

own-logs     N labels of a benchmark stand in for a user's logs; a router started from the bundle
             and fitted on them is measured on the rest, RouteLLM's own recipe beside it
other-pairs  one bundle, many pairs of models
new-model    a model that the bundle has not seen, fitted from few comparisons and from all
calibration  ECE on a benchmark before and after calibrating on a few of its labels
int8         APGR of the bundle's graph against the same graph before quantization
languages    scores of one set of prompts in several languages
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from ..data import sources
from ..data.schema import Row
from ..data.vectors import content_key
from ..errors import ConfigError, EvaluationError
from ..eval import benchmarks
from ..eval.benchmarks import Benchmark
from ..eval.metrics import Floats, apgr
from ..eval.own_logs import Method, OwnLogs
from ..router.scorer import Scorer
from ..training import own_logs
from ..training.embed import embed
from ..training.encoder import encoder_bundle
from ..training.export import graft_head, read_base, read_head, run_graph, without_head
from ..training.models.mf import fit_pair
from ..training.own_logs import FOLDS, bundle_scorer
from ..training.prepare import prepare, read_data, split_tables
from ..training.progress import Progress
from . import protocol_report
from .languages import language_report
from .model_pairs import ModelMatrix, PairSet, choose_pairs, join_pairs, model_matrix, vote_pairs
from .new_model import NewModelLogs, NewModelReport, new_model_curve
from .other_pairs import PairsReport, other_pairs
from .own_calibration import CalibrationReport, Int8Report, own_calibration
from .protocol_report import ProtocolReport
from .routellm_mf import fit_routellm_pair

PROTOCOLS = ("own-logs", "other-pairs", "new-model", "calibration", "int8", "languages")
# The validation split of the training sources, as data for the protocols on many models.
HELD_OUT = "built-in-held-out"


@dataclass(frozen=True)
class ProtocolSettings:
    """What a protocol runs on, and how often. sizes: numbers of labels, by default its own."""

    benchmark_names: Sequence[str] = ()
    data: Sequence[str] = ()
    sizes: Sequence[int] = ()
    draws: int = 10
    pairs: int = 20
    seed: int = 0
    bootstraps: int = 1000


def run_protocol(
    name: str, router: str, settings: ProtocolSettings, progress: Progress | None = None
) -> list[ProtocolReport]:
    """Run one protocol on a bundle; a report for each benchmark, or one for all data.

    Raises ConfigError, EvaluationError, and what the loaders raise.
    """
    say = progress or Progress()
    data, seed, draws, sizes = settings.data, settings.seed, settings.draws, settings.sizes
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol {name!r}; there are: {', '.join(PROTOCOLS)}")
    scorer = bundle_scorer(router)
    if name == "languages":
        return [language_report(scorer.scores, seed=seed)]
    if name in ("other-pairs", "new-model"):
        if not data:
            raise ConfigError(
                f"--protocol {name} needs --data: results of many models, such as zeroeval_gsm8k"
            )
        if name == "other-pairs":
            return [_other_pairs(scorer, settings, say)]
        return [_new_model(scorer, one, settings, say) for one in data]
    names = settings.benchmark_names
    if name == "own-logs":
        return list(own_logs.run_protocol(
            router, benchmark_names=names, sizes=sizes, draws=draws, seed=seed,
            progress=say, more=_routellm,
        ))  # fmt: skip
    if not names:
        raise ConfigError(f"--protocol {name} needs --benchmark")
    found = [benchmarks.load(one) for one in names]
    if name == "calibration":
        return [_calibration(scorer, one, sizes or (200,), draws, seed, say) for one in found]
    return [_int8(scorer, one, say) for one in found]


def _other_pairs(scorer: Scorer, settings: ProtocolSettings, say: Progress) -> PairsReport:
    data, seed, bootstraps = settings.data, settings.seed, settings.bootstraps
    sets = [_pair_set(name, settings.pairs, seed) for name in data]
    chosen = sets[0] if len(sets) == 1 else join_pairs(sets)
    inputs = _inputs(chosen)
    margins = _margins(scorer, inputs, say)
    at = {content_key(one): i for i, one in enumerate(inputs)}

    def score(asked: Sequence[Any], strong: str, weak: str) -> Floats:
        return margins[[at[content_key(one)] for one in asked]]

    with say.bar("pairs") as update:
        return other_pairs(
            chosen, score, data=", ".join(data), seed=seed, bootstraps=bootstraps, progress=update
        )


def _new_model(
    scorer: Scorer, data: str, settings: ProtocolSettings, say: Progress
) -> NewModelReport:
    sizes, draws, seed = settings.sizes or (50,), settings.draws, settings.seed
    matrix = model_matrix(read_source(data))
    chosen = choose_pairs(matrix, settings.pairs, seed=seed)
    with say.bar("representations") as update:
        x = embed(scorer, _inputs(matrix), progress=update, representation=True)
    known = read_base(scorer.bundle)(x)

    def fit(logs: NewModelLogs) -> Callable[[npt.NDArray[np.int64]], Floats]:
        gain = logs.new_score - logs.known_score
        # What is hard for all tells for the stronger of the two.
        sign = 1.0 if gain.mean() >= 0 else -1.0
        fold = np.arange(len(gain)) % FOLDS
        found = fit_pair(x[logs.index], gain, fold, known=sign * known[logs.index], seed=logs.seed)
        return lambda index: found.margin(x[index], sign * known[index])

    pairs = [(pair.strong, pair.weak) for pair in chosen.pairs]
    with say.bar("fitting") as update:
        return new_model_curve(
            matrix, pairs, fit, sizes=sizes, draws=draws, data=data, seed=seed, progress=update
        )


def _calibration(
    scorer: Scorer,
    benchmark: Benchmark,
    sizes: Sequence[int],
    draws: int,
    seed: int,
    say: Progress,
) -> CalibrationReport:
    margins = _margins(scorer, benchmark.inputs(), say)
    scores = np.asarray(scorer.calibrated(margins))
    return own_calibration(benchmark, margins, scores, sizes, draws, seed)


def _int8(scorer: Scorer, benchmark: Benchmark, say: Progress) -> Int8Report:
    bundle = scorer.bundle
    head = read_head(bundle.graph(), bundle.manifest.models)
    encoder, fp32 = encoder_bundle(bundle.manifest.encoder, max_tokens=bundle.manifest.max_tokens)
    ours, theirs = (without_head(one.graph()) for one in (bundle, encoder))
    if ours != theirs:
        raise EvaluationError(
            f"{bundle} does not stand on {bundle.manifest.encoder} as it is (a tuned encoder?): "
            "its fp32 graph is not at hand; its card says what int8 changed"
        )
    whole = graft_head(fp32.read_bytes(), head)
    inputs = benchmark.inputs()
    margins = _margins(scorer, inputs, say)
    at = [bundle.manifest.models.index(one) for one in (scorer.strong, scorer.weak)]
    parts = []
    with say.bar(f"{benchmark.name}: fp32") as update:
        for start in range(0, len(inputs), 256):
            feeds = [scorer.feeds(prompt) for prompt in inputs[start : start + 256]]
            quality = run_graph(whole, feeds, ["quality"])[0]
            parts.append(quality[:, at[0]] - quality[:, at[1]])
            update(min(start + 256, len(inputs)), len(inputs))
    values = [apgr(m, benchmark.strong, benchmark.weak) for m in (margins, np.concatenate(parts))]
    return Int8Report(benchmark.name, benchmark.n, values[0], values[1])


def read_source(name: str) -> Iterable[Row]:
    """Rows as `data.sources.read_source`, or of HELD_OUT."""
    return _held_out() if name == HELD_OUT else sources.read_source(name)


def _held_out() -> Iterable[Row]:
    """Rows of the training sources on the prompts that the built-in bundles were validated on."""
    from .built_in import settings_of

    settings = settings_of("mf", Path("unused"))
    encoder, _ = encoder_bundle(settings.encoder_name, max_tokens=settings.max_tokens)
    prepared = prepare(settings, Scorer.load(encoder), Progress())
    held_out = set(split_tables(settings, prepared.pairs)[1].prompts)
    return (row for row in read_data(settings, {}) if row.prompt in held_out)


def _routellm(embeddings: npt.NDArray[np.float32]) -> dict[str, Method]:
    """RouteLLM's own recipe on the same labels, beside the methods of the product."""

    def method(logs: OwnLogs) -> Floats:
        rows = embeddings[logs.labelled]
        fitted = fit_routellm_pair(rows, logs.strong, logs.weak, seed=logs.seed)
        return fitted.margins(embeddings[logs.rest])

    return {"routellm-mf": method}


def _pair_set(name: str, count: int, seed: int) -> PairSet:
    rows = list(read_source(name))
    if rows and hasattr(rows[0], "model_a"):
        return vote_pairs(rows, seed=seed)
    return choose_pairs(model_matrix(rows), count, seed=seed)


def _inputs(found: PairSet | ModelMatrix) -> list[Any]:
    """What a router scores: the prompts, or the messages where there are any."""
    said = found.messages or [None] * len(found.prompts)
    return [p if m is None else list(m) for p, m in zip(found.prompts, said, strict=True)]


def _margins(scorer: Scorer, inputs: Sequence[Any], say: Progress) -> Floats:
    """Margins of the bundle's own pair, float64[n], through the cache where it has a head."""
    if scorer.bundle.manifest.width:
        with say.bar("representations") as update:
            x = embed(scorer, inputs, progress=update, representation=True)
        return read_base(scorer.bundle)(x)
    return np.array([scorer.margin(one) for one in inputs])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one protocol and print what it found."""
    parser = argparse.ArgumentParser(prog="python -m thriftroute.research.protocols")
    parser.add_argument("name", choices=PROTOCOLS)
    parser.add_argument("--router", default="mf", help="mf, bert, fast, or a bundle's folder")
    parser.add_argument("--benchmark", action="append", default=[], help="may be given again")
    parser.add_argument("--data", default="", help="results of many models; names, by commas")
    parser.add_argument("--sizes", default="", help="numbers of labels, as 100,300")
    for option, number in (("draws", 10), ("pairs", 20), ("seed", 0), ("bootstraps", 1000)):
        parser.add_argument(f"--{option}", type=int, default=number)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    settings = ProtocolSettings(
        benchmark_names=asked.benchmark,
        data=[part for part in asked.data.split(",") if part],
        sizes=[int(part) for part in asked.sizes.split(",") if part],
        draws=asked.draws,
        pairs=asked.pairs,
        seed=asked.seed,
        bootstraps=asked.bootstraps,
    )
    reports = run_protocol(asked.name, asked.router, settings, Progress(Console(stderr=True)))
    if asked.json:
        print(json.dumps([found.to_dict() for found in reports], indent=2))  # noqa: T201
        return
    for found in reports:
        protocol_report.print_protocol(found)


if __name__ == "__main__":
    main()
