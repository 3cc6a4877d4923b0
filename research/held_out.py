"""Eight sets of real results that no built-in bundle was trained on, for one pair of models each.

    python -m thriftroute.research.held_out --router mf --router fast

APGR of each router and of prompt length, with 95% bootstrap intervals, and the ECE of its scores
for "strong wins"; the mean over the sets. Three are RouteLLM's benchmarks; the five others were
left out of training for their unclear licences. Needs THRIFTROUTE_DATA; minutes on two cores.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..data.sources import SOURCES
from ..data.tables import pair_table
from ..eval import benchmarks
from ..eval.baselines import length_scores
from ..eval.benchmarks import Benchmark
from ..eval.bootstrap import bootstrap, interval
from ..eval.metrics import Floats, apgr, ece
from ..router.routers import load_router
from ..router.text import as_conversation
from ..training.progress import Progress

GPT4, MIXTRAL = "gpt-4-1106-preview", "mistralai/mixtral-8x7b-chat"
# Source, task (the end of its name; '' for all), strong and weak model.
FILES = {
    "arc-challenge": ("routerbench_arc_mbpp_winogrande", "arc-challenge", GPT4, MIXTRAL),
    "winogrande": ("routerbench_arc_mbpp_winogrande", "winogrande", GPT4, MIXTRAL),
    "mbpp": ("routerbench_arc_mbpp_winogrande", "mbpp", GPT4, MIXTRAL),
    "bfcl": ("bfcl_v1", "", GPT4, "open-mixtral-8x7b"),
    "livecodebench": ("livecodebench", "", "GPT-4-Turbo-1106", "GPT-3.5-Turbo-0125"),
}
RESAMPLES = 1000
LENGTH = "prompt length"


def held_out() -> Iterator[Benchmark]:
    """The eight sets."""
    for name in ("mmlu", "gsm8k", "mt-bench"):
        yield benchmarks.load(name)
    for name, (source, task, strong, weak) in FILES.items():
        rows = (row for row in SOURCES[source].rows() if row.category.endswith(task))
        yield benchmarks.from_table(pair_table(rows, strong, weak), name)


def measure(names: Sequence[str], say: Progress, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each set: its name, n, and {"apgr", "low", "high", "ece"} of each router."""
    routers = {name: load_router(name) for name in names}
    result: list[dict[str, Any]] = []
    for bench in held_out():
        say.note(f"{bench.name}: {len(bench.prompts):,} prompts")
        asked = [as_conversation(prompt) for prompt in bench.inputs()]
        scores: dict[str, Floats] = {name: one.scores(asked) for name, one in routers.items()}
        scores[LENGTH] = length_scores(bench.prompts)
        row: dict[str, Any] = {"name": bench.name, "n": len(bench.prompts)}
        for name, found in scores.items():
            samples = bootstrap(found, bench.strong, bench.weak, resamples=RESAMPLES, seed=seed)
            low, high = interval(samples.apgr)
            row[name] = {"apgr": apgr(found, bench.strong, bench.weak), "low": low, "high": high}
            if name != LENGTH:
                row[name] |= {"ece": ece(found, bench.strong > bench.weak)}
        result.append(row)
    return result


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", action="append", required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = measure(arguments.router, Progress(Console(stderr=True)), arguments.seed)
    out = Console()
    if arguments.json:
        out.print_json(json.dumps(rows))
        return
    names = [*arguments.router, LENGTH]
    table = Table("set", "n", *names)
    for row in rows:
        cells = [_cell(row[name]) for name in names]
        table.add_row(str(row["name"]), f"{row['n']:,}", *cells)
    means = [np.mean([row[name]["apgr"] for row in rows]) for name in names]
    table.add_row("mean", "", *(f"{mean:.3f}" for mean in means))
    out.print(table)
    out.print(
        f"APGR [95% interval], ECE; {RESAMPLES:,} resamples, seed {arguments.seed}; random: .5"
    )


def _cell(found: dict[str, float]) -> str:
    text = f"{found['apgr']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{text} {found['ece']:.3f}" if "ece" in found else text


if __name__ == "__main__":
    main()
