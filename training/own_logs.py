"""The own-logs protocol on a bundle: `thriftroute evaluate --protocol own-logs`.

N labels of a benchmark stand in for a user's logs; a router started from the bundle and fitted on
them is measured on the rest.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..eval import benchmarks
from ..eval.benchmarks import Benchmark
from ..eval.metrics import Floats
from ..eval.own_logs import Method, OwnLogs, OwnLogsReport, embedding_methods, own_logs
from ..router.routers import BundleRouter, load_router
from ..router.scorer import Scorer
from .embed import embed
from .export import read_base
from .models.mf import fit_pair
from .progress import Progress

FOLDS = 5
# Further methods, from the embeddings [n, dim] of a benchmark's prompts.
MoreMethods = Callable[[npt.NDArray[np.float32]], Mapping[str, Method]]


def run_protocol(
    router: str,
    *,
    benchmark_names: Sequence[str],
    sizes: Sequence[int] = (),
    draws: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
    more: MoreMethods = lambda embeddings: {},
) -> list[OwnLogsReport]:
    """Run it on a bundle; a report for each benchmark.

    sizes: numbers of labels. Raises ConfigError, EvaluationError, and what the loaders raise.
    """
    say = progress or Progress()
    scorer = bundle_scorer(router)
    if not benchmark_names:
        raise ConfigError("--protocol own-logs needs --benchmark")
    reports = []
    for benchmark in [benchmarks.load(name) for name in benchmark_names]:
        methods = own_logs_methods(scorer, benchmark, say, more)
        with say.bar(f"{benchmark.name}: fitting") as update:
            reports.append(own_logs(benchmark, methods, sizes or (100, 300), draws, seed, update))
    return reports


def bundle_scorer(router: str) -> Scorer:
    """The scorer of a bundle by its name or folder. Raises ConfigError where it is no bundle."""
    loaded = load_router(router)
    if not isinstance(loaded, BundleRouter):
        raise ConfigError(f"--protocol needs a bundle as --router, and {router!r} is none")
    return loaded.scorer


def own_logs_methods(
    scorer: Scorer, benchmark: Benchmark, say: Progress, more: MoreMethods
) -> dict[str, Method]:
    """The methods of the protocol.

    "general" is the bundle as it is; "own" what `thriftroute train mf` makes of the labels,
    starting from it; "ridge" and "knn" know the same labels and the plain embeddings.
    """
    inputs = benchmark.inputs()
    with say.bar(f"{benchmark.name}: representations") as update:
        x = embed(scorer, inputs, progress=update, representation=True)
    with say.bar(f"{benchmark.name}: embeddings") as update:
        embeddings = embed(scorer, inputs, progress=update)
    known = read_base(scorer.bundle)(x)

    def own(logs: OwnLogs) -> Floats:
        fold = np.random.default_rng(logs.seed).permutation(len(logs.labelled)) % FOLDS
        found = fit_pair(
            x[logs.labelled],
            logs.strong - logs.weak,
            fold,
            known=known[logs.labelled],
            features=len(scorer.bundle.manifest.features),
            seed=logs.seed,
        )
        return found.margin(x[logs.rest], known[logs.rest])

    return {
        "general": lambda logs: known[logs.rest],
        "own": own,
        **more(embeddings),
        **embedding_methods(embeddings),
    }
