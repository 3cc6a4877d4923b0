"""What a second look is worth on real answers: `thriftroute.research.second_look --draws 5`

The own-logs protocol on the files of THRIFTROUTE_DATA/answers: N labelled prompts at random stand
in for a user's logs, a router and a look are fitted on them as `train second-look` does, and both
are measured on the rest as `evaluate --second-look` does. Printed for each pair and price ratio:
the mean cost-APGR of the draws, and in how many draws the second look was significantly below the
prompt alone (95%, paired bootstrap). `answers/` is for evaluation only: no bundle that is published
is fitted on it.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..errors import ConfigError
from ..eval.look_command import LookOptions, run_look
from ..router.bundle import Bundle
from ..router.second_look import SecondLook
from ..training.progress import Progress
from ..training.second_look import LookSettings, train_second_look
from ..training.settings import TrainSettings

RATIOS = (5.0, 20.0, 50.0)
COLUMNS = ("prompt_id", "prompt", "model", "answer", "score", "confidence", "functions")
SECOND = "second"  # what the second model is called here: it may be another file's weak one


@dataclass(frozen=True)
class AnswerPair:
    """Two models of one file of answers, and (file, model) of a second cheap one."""

    file: str
    strong: str
    weak: str
    second: tuple[str, str] | None = None
    source: str | None = None


_MIXTRAL, _LLAMA = "Mixtral-8x7B-Instruct-v0.1", "Meta-Llama-3.1-8B-Instruct"
PAIRS = {
    "RouteLLM GSM8K, GPT-4/Mixtral": AnswerPair(
        "routellm_gsm8k", "gpt-4-1106-preview", f"mistralai/{_MIXTRAL}",
        ("zeroeval_gsm8k", _MIXTRAL),
    ),
    "GSM8K, gpt-4o/Llama-3.1-8B": AnswerPair(
        "zeroeval_gsm8k", "gpt-4o-2024-08-06", _LLAMA, ("zeroeval_gsm8k", "gpt-3.5-turbo-0125")
    ),
    "MMLU, gpt-4o/4o-mini": AnswerPair(
        "rational_cascades", "gpt-4o", "gpt-4o-mini", source="rational/mmlu"
    ),
    "MedMCQA, gpt-4o/4o-mini": AnswerPair(
        "rational_cascades", "gpt-4o", "gpt-4o-mini", source="rational/medmcqa"
    ),
    "BFCL, GPT-4/Mixtral": AnswerPair(
        "bfcl_v1", "gpt-4-1106-preview", "open-mixtral-8x7b", ("bfcl_v1", "gpt-3.5-turbo-0125-FC")
    ),
    "MMLU-Pro, Gemini pro/flash": AnswerPair(
        "mmlu_pro", "gemini-1.5-pro-002", "gemini-1.5-flash-002"
    ),
    "CRUX, gpt-4o/4o-mini": AnswerPair(
        "zeroeval_crux", "gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18",
        ("zeroeval_crux", "gpt-3.5-turbo-0125"),
    ),
    "MATH-5, gpt-4o/Llama-3.1-8B": AnswerPair(
        "zeroeval_math_l5", "gpt-4o-2024-08-06", _LLAMA,
        ("zeroeval_math_l5", "gpt-3.5-turbo-0125"),
    ),
    "KOR, gpt-4o/Qwen2.5-7B": AnswerPair(
        "kor_bench", "gpt-4o", "Qwen2.5-7B-Instruct", ("kor_bench", _LLAMA)
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """A bundle that was fitted on some labelled prompts, and the file of all others, as long as the
    next draw is not asked for."""

    bundle: str
    rest: str


def draws_of(pair: AnswerPair, frame: Any, router: str, size: int, draws: int) -> Iterator[Draw]:
    """A look for each draw of `size` prompts at random, seed (draw, size)."""
    with tempfile.TemporaryDirectory() as folder:
        for draw in range(draws):
            yield fit(pair, frame, router, (size, draw), Path(folder))


def fit(
    pair: AnswerPair, frame: Any, router: str, size_draw: tuple[int, int], folder: Path
) -> Draw:
    """A bundle with a look of `size` prompts at random, and a file of all others, in `folder`."""
    (size, draw), ids = size_draw, shared_ids(pair, frame)
    mixed = np.random.default_rng((draw, size)).permutation(len(ids))
    own, rest = (str(folder / f"{part}.jsonl") for part in ("own", "rest"))
    for file, part in ((own, ids[mixed[:size]]), (rest, ids[mixed[size:]])):
        kept = frame[frame.prompt_id.isin(set(part.tolist()))]
        kept.to_json(file, orient="records", lines=True)
    out = folder / "bundle"
    pairs = (pair.strong,), (pair.weak,)
    settings = TrainSettings("mf", [own], *pairs, out, base=router, overwrite=True)
    look = LookSettings(pair.second and SECOND)
    train_second_look(settings, look, Progress(Console(quiet=True)))
    return Draw(str(out), rest)


def shared_ids(pair: AnswerPair, frame: Any) -> Any:
    """The prompts that both models have answered, sorted."""
    both = [set(frame[frame.model == model].prompt_id) for model in (pair.strong, pair.weak)]
    return np.array(sorted(both[0] & both[1]))


def measure(name: str, router: str, size: int, draws: int, bootstraps: int) -> dict[str, Any]:
    """A pair's mean figures over the draws, by price ratio."""
    pair = PAIRS[name]
    frame, models = rows_of(pair), ((pair.strong,), (pair.weak,))
    found: dict[float, list[list[float]]] = {ratio: [] for ratio in RATIOS}
    used: list[str] = []
    for draw in draws_of(pair, frame, router, size, draws):
        look = SecondLook.of(Bundle.open(draw.bundle))
        assert look is not None
        used.extend(look.signals)
        for ratio in RATIOS:
            options = LookOptions(draw.bundle, draw.rest, *models, price_ratio=ratio)
            rows = run_look(options, bootstraps=bootstraps).results
            values = [row.apgr_cost for row in rows] + [row.cost_at_90 for row in rows[:2]]
            found[ratio].append([*values, float(rows[1].difference_ci[1] < 0)])
    signals = {name: used.count(name) for name in dict.fromkeys(used)}
    figures = {ratio: np.array(rows) for ratio, rows in found.items()}
    n = len(shared_ids(pair, frame))
    return {"pair": name, "n": n, "signals": signals, "figures": figures}


def rows_of(pair: AnswerPair) -> Any:
    """The rows of both models and of the second one, as a pandas frame."""
    import pandas as pd  # type: ignore[import-untyped]

    root = os.environ.get("THRIFTROUTE_DATA")
    if not root:
        raise ConfigError("set THRIFTROUTE_DATA to the folder of the datasets")

    def read(file: str) -> Any:
        frame = pd.read_parquet(Path(root) / "answers" / f"{file}.parquet")
        return frame if pair.source is None else frame[frame.source == pair.source]

    whole = read(pair.file)
    parts = [whole[whole.model.isin([pair.strong, pair.weak])]]
    if pair.second is not None:
        other = read(pair.second[0])
        parts.append(other[other.model == pair.second[1]].assign(model=SECOND))
    frame = pd.concat(parts)
    return frame[[name for name in COLUMNS if name in frame]]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", default="fast")
    parser.add_argument("--pair", action="append", choices=list(PAIRS))
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--bootstraps", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    out = Console()
    table = Table("pair", "n", "price ratio", "prompt alone (sd)", "second look (sd)",
                  "always looked at", "cost for 90%: prompt, look", "worse", "signals")  # fmt: skip
    told = []
    for name in given.pair or PAIRS:
        row = measure(name, given.router, given.size, given.draws, given.bootstraps)
        for ratio, values in row["figures"].items():
            mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
            cells = [f"{mean[0]:.3f} ({sd[0]:.3f})", f"{mean[1]:.3f} ({sd[1]:.3f})"]
            cells += [f"{mean[2]:.3f}", f"{mean[3]:.0%}, {mean[4]:.0%}", f"{values[:, 5].sum():g}"]
            signals = ", ".join(f"{one} {count}" for one, count in row["signals"].items())
            table.add_row(name, f"{row['n']:,}", f"{ratio:g}", *cells, signals)
            told.append({"pair": name, "n": row["n"], "ratio": ratio, "draws": values.tolist()})
        Console(stderr=True).print(f"{name}: done")
    if given.json:
        out.print_json(json.dumps(told))
        return
    out.print(table)
    out.print(f"cost-APGR, mean of {given.draws} draws of {given.size} labels, tested on the rest")


if __name__ == "__main__":
    main()
