"""Milliseconds of one routing decision, beside RouteLLM's BERT router in the same process.

    python benchmarks/latency.py                          # the built-in mf router
    python benchmarks/latency.py --router DIR --startup --json
    python benchmarks/latency.py --router encoder:192 --no-rival

Ours is `Controller.decide`, tokenising included, one thread. The rival is the architecture of
RouteLLM's BERT router (XLM-RoBERTa base, 278 M parameters, three labels, softmax) in torch, with
random weights: its speed does not depend on them. Its tokenizer cannot be had without a network,
so it is given as many token ids (at most 512, as it truncates) and its tokenising is not counted,
which favours it. Every round runs all cases one after the other, so that a busy moment of the
machine falls on both sides. `encoder[:MAX_TOKENS]` times the bare sentence encoder instead of a
router: the head and the calibration that it lacks take microseconds.
"""

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from thriftroute import Controller, Scorer

LENGTHS = (32, 128, 512)
LONG_CHARS = 20_000
LONG = f"{LONG_CHARS:,} chars"
RIVAL_MAX_TOKENS = 512
RIVAL_VOCABULARY = 250_002
# p99 at any length; p50 at 128 tokens against the rival at one thread; then a fresh process.
TARGET_P99_MS, TARGET_RATIO = 50.0, 20.0
TARGET_IMPORT_S, TARGET_FIRST_S, TARGET_RSS_MB = 0.5, 1.5, 250.0

SETTLE_S = 0.1
WARM_UPS = 3  # decisions of each length
WORDS = (  # noqa: SIM905  prose
    "the a this that every some river market window theorem integral engine garden matrix "
    "committee because although whenever compute explain derive compare translate write prove "
    "quickly carefully seventeen 42 3.14 x=y+1 (see above) latency; budget, and or not only "
    "internationalisation photosynthesis"
).split()

Decide = Callable[[str], object]

_STARTUP = """
import sys, time
begin = time.perf_counter()
import thriftroute
imported = time.perf_counter() - begin
router = sys.argv[1]
with thriftroute.Controller([router], "strong", "weak") as client:
    decision = client.decide(sys.argv[2], router=router, threshold=0.5)
    assert decision.score is not None, decision.reason
    print(time.time(), imported, "litellm" in sys.modules, flush=True)
    sys.stdin.readline()
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments ask for and print it."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
        epilog="See benchmarks/README.md for what is measured and how to read it.",
    )
    parser.add_argument("--router", default="mf", help="mf, bert, a bundle's folder, or encoder:N")
    parser.add_argument("--rounds", type=int, default=20, help="runs of the rival a length")
    parser.add_argument("--repeat", type=int, default=15, help="own runs for each of the rival's")
    parser.add_argument("--no-rival", action="store_true", help="needs no torch")
    parser.add_argument("--startup", action="store_true", help="fresh processes, too")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.repeat < 1:
        parser.error("--rounds and --repeat must be at least 1")

    scorer, decide, folder = load(given.router)
    report: dict[str, Any] = {
        "router": given.router,
        "max_tokens": scorer.bundle.manifest.max_tokens,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "lengths": lengths(scorer, decide, given.rounds, given.repeat, rival=not given.no_rival),
        "prompts_per_s": throughput(scorer),
    }
    if given.startup and folder is not None:
        report["startup"] = startup(folder)
    report["targets"] = targets(report)
    if given.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


def load(router: str) -> tuple[Scorer, Decide, str | None]:
    """Scorer, one decision, and the name for a fresh process (None for a bare encoder)."""
    if router.split(":", maxsplit=1)[0] == "encoder":
        from thriftroute.training.encoder import encoder_bundle

        bundle, _ = encoder_bundle(max_tokens=int(router.partition(":")[2] or 256))
        scorer = Scorer.load(bundle)
        return scorer, lambda prompt: scorer.embeddings([prompt], workers=1), None
    if Path(router).is_dir():
        router = str(Path(router).resolve())
    client = Controller([router], "strong", "weak")
    loaded = getattr(client.routers[router], "scorer", None)
    if not isinstance(loaded, Scorer):
        raise SystemExit(f"router {router!r} is no bundle: nothing to time")

    def decide(prompt: str) -> object:
        decision = client.decide(prompt, router=router, threshold=0.5)
        if decision.score is None:
            raise RuntimeError(decision.reason)
        return decision

    return loaded, decide, router


def prompts_of(scorer: Scorer, length: int | None, rng: random.Random) -> str:
    """A prompt of `length` of the encoder's tokens, specials included, or of LONG_CHARS."""
    if length is None:
        text = " ".join(rng.choice(WORDS) for _ in range(LONG_CHARS // 3))
        return text[:LONG_CHARS]
    specials = len(scorer.bundle.manifest.prefix_ids) + len(scorer.bundle.manifest.suffix_ids)
    words: list[str] = []
    count = specials
    while count < length:
        word = rng.choice(WORDS)
        more = scorer.count_tokens(word)
        if count + more <= length:
            words.append(word)
            count += more
    return " ".join(words)


def lengths(
    scorer: Scorer, decide: Decide, rounds: int, repeat: int, *, rival: bool
) -> dict[str, dict[str, Any]]:
    """Milliseconds for each length: ours, where they go, and the rival's."""
    # Not for secrets: the same prompts on every run.
    rng = random.Random(0)
    # None comes twice: scores of recent prompts are kept.
    count = WARM_UPS + rounds * (1 + repeat)
    cases: dict[str, list[str]] = {
        f"{n} tokens": [prompts_of(scorer, n, rng) for _ in range(count)] for n in LENGTHS
    }
    cases[LONG] = [prompts_of(scorer, None, rng) for _ in range(count)]
    ids = {
        case: min(RIVAL_MAX_TOKENS, scorer.count_tokens(prompts[0]) + 2)
        for case, prompts in cases.items()
    }
    runs: dict[str, Decide] = {"ours": decide, "tokenizing": scorer.token_ids}
    times: dict[tuple[str, str], list[float]] = {}
    one, many = _rivals() if rival else (None, None)
    fresh = {case: iter(prompts) for case, prompts in cases.items()}
    for prompts in fresh.values():
        for prompt in itertools.islice(prompts, WARM_UPS):
            decide(prompt)
    for step in range(rounds):
        for case, prompts in fresh.items():
            # The rival's idle threads spin for a while, and it leaves cold caches behind.
            time.sleep(SETTLE_S if rival else 0)
            decide(next(prompts))
            for prompt in itertools.islice(prompts, repeat):
                for name, run in runs.items():
                    times.setdefault((case, name), []).append(_ms(run, prompt))
            for name, call in (("rival, 1 thread", one), ("rival, default", many)):
                if call is not None:
                    times.setdefault((case, name), []).append(call(ids[case], step))
        if sys.stderr.isatty():
            print(f"\rround {step + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    report: dict[str, dict[str, Any]] = {}
    for case, prompts in cases.items():
        row: dict[str, Any] = {
            "tokens_seen": len(scorer.token_ids(prompts[0])),
            "rival_tokens": ids[case],
        }
        for (measured, name), values in times.items():
            if measured == case:
                p50, p95, p99 = np.percentile(values, [50, 95, 99]).round(3).tolist()
                row[name] = {"n": len(values), "p50": p50, "p95": p95, "p99": p99}
                if name.startswith("rival"):
                    row[name]["ratio_p50"] = round(p50 / row["ours"]["p50"], 1)
        report[case] = row
    return report


def _rivals() -> tuple[Callable[[int, int], float], Callable[[int, int], float]]:
    """RouteLLM's BERT router with one torch thread and with torch's default; each returns ms."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    config = XLMRobertaConfig(
        vocab_size=RIVAL_VOCABULARY,
        max_position_embeddings=RIVAL_MAX_TOKENS + 2,
        type_vocab_size=1,
    )
    config.num_labels = 3
    model = XLMRobertaForSequenceClassification(config)
    model.train(False)
    default = torch.get_num_threads()

    def timed(threads: int, tokens: int, seed: int) -> float:
        ids = torch.randint(5, RIVAL_VOCABULARY, (1, tokens), generator=_generator(torch, seed))
        mask = torch.ones_like(ids)
        torch.set_num_threads(threads)
        with torch.no_grad():
            # The pool of threads starts outside the clock.
            torch.ones(512, 512) @ torch.ones(512, 512)
            begin = time.perf_counter()
            logits = model(input_ids=ids, attention_mask=mask).logits.numpy()[0]
            exponents = np.exp(logits - logits.max())
            float((exponents / exponents.sum())[-2:].sum())
            return (time.perf_counter() - begin) * 1e3

    for threads in (1, default):
        timed(threads, 64, 0)
    return (
        lambda tokens, seed: timed(1, tokens, seed),
        lambda tokens, seed: timed(default, tokens, seed),
    )


def _generator(torch: Any, seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


def _ms(run: Decide, prompt: str) -> float:
    begin = time.perf_counter()
    run(prompt)
    return (time.perf_counter() - begin) * 1e3


def throughput(scorer: Scorer, n: int = 256, tokens: int = 100) -> dict[str, float]:
    """Prompts of `tokens` tokens a second, by number of workers; the better of two tries."""
    rng = random.Random(1)
    prompts = [prompts_of(scorer, tokens, rng) for _ in range(n)]
    rates = {}
    for workers in (1, 2):
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            scorer.embeddings(prompts, workers=workers)
            seconds.append(time.perf_counter() - begin)
        rates[str(workers)] = round(n / min(seconds), 1)
    return rates


def startup(router: str, runs: int = 5) -> dict[str, Any]:
    """Medians over fresh processes, after one that warms the disk's cache.

    import_s: `import thriftroute` alone. first_decision_s: from before the process starts to its
    first decision. rss_mb: resident memory then, LiteLLM not loaded.
    """
    rows = []
    for _ in range(runs + 1):
        begin = time.time()
        with subprocess.Popen(
            [sys.executable, "-c", _STARTUP, router, "Is 1003 a prime number? Prove it."],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            line = child.stdout.readline().split()
            if len(line) != 3:
                raise SystemExit("the fresh process made no decision; its error stands above")
            if line[2] != "False":
                raise SystemExit("LiteLLM was loaded before the first call to a model")
            rss = psutil.Process(child.pid).memory_info().rss / 2**20
            child.communicate("\n")
        rows.append((float(line[1]), float(line[0]) - begin, rss))
    names = ("import_s", "first_decision_s", "rss_mb")
    columns = zip(*rows[1:], strict=True)
    return {"n": runs} | {
        name: round(statistics.median(column), 3)
        for name, column in zip(names, columns, strict=True)
    }


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each stated target that was measured: name, value, limit and whether it is met."""
    cases = report["lengths"]
    found = [("p99 of one decision, ms", max(c["ours"]["p99"] for c in cases.values()), "<",
              TARGET_P99_MS)]  # fmt: skip
    if rival := cases["128 tokens"].get("rival, 1 thread"):
        found.append(
            ("p50 at 128 tokens, times faster than the rival", rival["ratio_p50"], ">=",
             TARGET_RATIO)
        )  # fmt: skip
    if fresh := report.get("startup"):
        found += [
            ("import thriftroute, s", fresh["import_s"], "<=", TARGET_IMPORT_S),
            ("process start to first decision, s", fresh["first_decision_s"], "<=", TARGET_FIRST_S),
            ("resident memory then, MB", fresh["rss_mb"], "<=", TARGET_RSS_MB),
        ]
    met = {"<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b}
    return [
        {"target": name, "measured": value, "limit": f"{sign} {limit:g}",
         "met": met[sign](value, limit)}
        for name, value, sign, limit in found
    ]  # fmt: skip


def show(report: dict[str, Any]) -> None:
    """The report as tables."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(
        f"router {report['router']} (max {report['max_tokens']} tokens, one thread); "
        f"{report['machine']}",
        highlight=False,
    )
    table = Table(title="One decision, milliseconds (the rival's tokenising is not counted)")
    for column in ("prompt", "what", "n", "tokens", "p50", "p95", "p99", "p50 / ours"):
        table.add_column(column, justify="left" if column in ("prompt", "what") else "right")
    for case, row in report["lengths"].items():
        for name, value in row.items():
            if isinstance(value, dict):
                tokens = row["rival_tokens" if name.startswith("rival") else "tokens_seen"]
                table.add_row(
                    case if name == "ours" else "",
                    "- tokenising" if name == "tokenizing" else name,
                    str(value["n"]),
                    str(tokens),
                    *(f"{value[p]:.2f}" for p in ("p50", "p95", "p99")),
                    f"{value['ratio_p50']:.1f} x" if "ratio_p50" in value else "",
                )
        table.add_section()
    console.print(table)
    rates = report["prompts_per_s"].items()
    console.print(
        "batch, 100-token prompts: "
        + ", ".join(f"{rate:g} prompts/s with {workers} worker(s)" for workers, rate in rates)
    )
    for item in report["targets"]:
        verdict = "met" if item["met"] else "MISSED"
        console.print(
            f"{verdict:>6}  {item['target']}: {item['measured']:g} (target {item['limit']})",
            highlight=False,
        )


if __name__ == "__main__":
    main()
