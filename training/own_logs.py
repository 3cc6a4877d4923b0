"""The own-logs protocol on a bundle: `thriftroute evaluate --protocol own-logs`.

N labels of a benchmark stand in for a user's logs; a router started from the bundle and fitted on
them is measured on the rest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..eval import benchmarks
from ..eval.benchmarks import Benchmark
from ..eval.metrics import Floats
from ..eval.own_logs import OwnLogs, OwnLogsReport, embedding_methods, own_logs
from ..router.routers import BundleRouter, load_router
from ..router.scorer import Scorer
from .embed import embed
from .models.mf import MFSettings, fit_pair
from .models.routellm_mf import fit_rival_pair
from .progress import Progress
from .run import bundle_base

FOLDS = 5


def run_protocol(
    router: str,
    *,
    benchmark_names: Sequence[str],
    sizes: Sequence[int] = (),
    draws: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[OwnLogsReport]:
    """Run it on a bundle; a report for each benchmark.

    sizes: numbers of labels. Raises ConfigError, EvaluationError, and what the loaders raise.
    """
    say = progress or Progress()
    scorer = bundle_scorer(router)
    if not benchmark_names:
        raise ConfigError("--protocol own-logs needs --benchmark")
    found = [benchmarks.load(one) for one in benchmark_names]
    return [run_own_logs(scorer, one, sizes or (100, 300), draws, seed, say) for one in found]


def bundle_scorer(router: str) -> Scorer:
    """The scorer of a bundle by its name or folder. Raises ConfigError where it is no bundle."""
    loaded = load_router(router)
    if not isinstance(loaded, BundleRouter):
        raise ConfigError(f"--protocol needs a bundle as --router, and {router!r} is none")
    return loaded.scorer


def own_logs_methods(scorer: Scorer, benchmark: Benchmark, say: Progress) -> dict[str, Any]:
    """The methods of the own-logs protocol.

    "general" is the bundle as it is; "own" what `thriftroute train mf` makes of the labels,
    starting from it; "ridge" and "knn" know the same labels and the plain embeddings;
    "routellm-mf" is RouteLLM's own recipe on them (`training.rival`).
    """
    inputs = benchmark.inputs()
    with say.bar(f"{benchmark.name}: representations") as update:
        x = embed(scorer, inputs, progress=update, representation=True)
    with say.bar(f"{benchmark.name}: embeddings") as update:
        embeddings = embed(scorer, inputs, progress=update)
    known = bundle_base(scorer.bundle)(x)

    def own(logs: OwnLogs) -> Floats:
        fold = np.random.default_rng(logs.seed).permutation(len(logs.labelled)) % FOLDS
        found = fit_pair(
            x[logs.labelled],
            logs.strong - logs.weak,
            fold,
            known=known[logs.labelled],
            features=len(scorer.bundle.manifest.features),
            settings=MFSettings(),
            seed=logs.seed,
        )
        return found.margin(x[logs.rest], known[logs.rest])

    def rival(logs: OwnLogs) -> Floats:
        fitted = fit_rival_pair(embeddings[logs.labelled], logs.strong, logs.weak, seed=logs.seed)
        return fitted.margins(embeddings[logs.rest])

    return {
        "general": lambda logs: known[logs.rest],
        "own": own,
        "routellm-mf": rival,
        **embedding_methods(embeddings),
    }


def run_own_logs(
    scorer: Scorer,
    benchmark: Benchmark,
    sizes: Sequence[int],
    draws: int,
    seed: int,
    say: Progress,
) -> OwnLogsReport:
    """The report of one benchmark; see `eval.own_logs.own_logs`."""
    methods = own_logs_methods(scorer, benchmark, say)
    with say.bar(f"{benchmark.name}: fitting") as update:
        return own_logs(benchmark, methods, sizes, draws, seed, update)
