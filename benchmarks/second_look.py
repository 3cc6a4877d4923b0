"""Milliseconds of a second look's own work, beside one scoring of a prompt in the same process.

    python benchmarks/second_look.py
    python benchmarks/second_look.py --router mf --json

Timed is `judge`, which reads a completion and gives the probability; the calls of models are not
in it. The answers have 40 and 400 words with a log-probability each. Every round runs all cases one
after the other, so that a busy moment of the machine falls on all of them.
"""

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace as Space
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from thriftroute import Scorer
from thriftroute.router.extractors import EXTRACTORS
from thriftroute.router.looking import judge
from thriftroute.router.routers import BundleRouter, load_router
from thriftroute.router.second_look import LookPolicy, SecondLook

WORDS = (40, 400)
VARIANTS = 16  # answers of each length, taken in turn
# p50 of confidence and checks, and of the signal `answer`.
TARGET_MS, TARGET_ANSWER_MS = 2.0, 25.0
TOOL = {"name": "weather", "parameters": {"properties": {"city": {}}, "required": ["city"]}}
VOCABULARY = ("first", "then", "add", "carry", "because", "therefore", "total", "17", "and", "391")
REQUEST = {"tools": [{"type": "function", "function": TOOL}]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--router", default="fast", help="mf, fast or a bundle's folder")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    router = load_router(given.router)
    if not isinstance(router, BundleRouter):
        parser.error(f"--router {given.router}: no bundle")
    scorer = router.scorer
    cases = cases_of(scorer)
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(-20, given.rounds):  # the first ones warm up
        for name, case in cases.items():
            start = time.perf_counter()
            case(index % VARIANTS)
            if index >= 0:
                taken[name].append((time.perf_counter() - start) * 1000)
    show(taken, given)


def cases_of(scorer: Scorer) -> dict[str, Callable[[int], object]]:
    """What is timed, by name; each is called with the number of an answer."""
    prompts = [_text(random.Random(i), 60) for i in range(VARIANTS)]
    cases: dict[str, Callable[[int], object]] = {
        "one scoring": lambda i: scorer.scores([prompts[i]])
    }
    width = scorer.bundle.manifest.width

    def add(name: str, signals: tuple[str, ...], words: int, extractor: str | None = None) -> None:
        look = look_of(signals, width, extractor)
        said = [_completion(i, words) for i in range(VARIANTS)]
        again = said[1:] + said[:1] if extractor else [None] * VARIANTS
        cases[f"{name}, {words} words"] = lambda i: judge(
            look, scorer, 0.4, said[i], again[i], REQUEST
        )

    for words in WORDS:
        add("confidence, checks", ("prompt", "confidence", "unknown", "checks"), words)
        add("and answer", ("prompt", "confidence", "unknown", "checks", "answer"), words)
        for extractor in EXTRACTORS:
            add(f"agreement by {extractor}", ("prompt", "agreement"), words, extractor)
    return cases


def look_of(signals: tuple[str, ...], width: int, extractor: str | None) -> SecondLook:
    """A look by these signals, with weights that say nothing: its speed does not depend on them."""
    n = len(signals)
    return SecondLook(
        strong="s", weak="w", signals=signals, center=(0.0,) * n, scale=(1.0,) * n,
        weights=(0.1,) * n, bias=0.0, policy=LookPolicy(0.0, 2.0, 0.5), sample=((0.0, 0.5, 0.0),),
        gain={"score": (0.0, 0.0), "look": (0.0, 0.0)}, tells=True, extractor=extractor,
        answer_weights=(0.01,) * width if "answer" in signals else None,
    )  # fmt: skip


def show(taken: dict[str, list[float]], given: argparse.Namespace) -> None:
    """Print percentiles, and the ratio of each median to that of one scoring."""
    base = float(np.median(taken["one scoring"]))
    rows = []
    for name, values in taken.items():
        p50, p99 = np.percentile(values, (50, 99)).tolist()
        bar = TARGET_ANSWER_MS if "answer" in name else TARGET_MS
        if "agreement" in name or name == "one scoring":
            bar = None
        met = "" if bar is None else f"p50 <= {bar:g} ms: {'met' if p50 <= bar else 'MISSED'}"
        rows.append({"case": name, "p50_ms": p50, "p99_ms": p99, "ratio": p50 / base, "bar": met})
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    if given.json:
        print(json.dumps({"router": given.router, "machine": machine, "rows": rows}, indent=1))
        return
    table = Table("case", "p50 ms", "p99 ms", "of one scoring", "bar")
    for row in rows:
        times = (f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}", f"{row['ratio']:.2f}")
        table.add_row(str(row["case"]), *times, str(row["bar"]))
    console = Console()
    console.print(table)
    console.print(f"router {given.router}, {given.rounds} rounds; {machine}", highlight=False)


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(words))


def _completion(seed: int, words: int) -> Any:
    """An answer as LiteLLM gives it, as far as a look reads it."""
    rng = random.Random(seed)
    text = f"{_text(rng, words - 4)} The answer is {rng.randint(1, 999)}."
    tokens = [Space(token=f"{w} ", logprob=-rng.random()) for w in text.split()]
    message = Space(content=text, tool_calls=None)
    return Space(choices=[Space(message=message, logprobs=Space(content=tokens))])


if __name__ == "__main__":
    main()
