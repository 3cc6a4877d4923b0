"""Seconds that training takes, as whole `thriftroute train` processes, on text of its own making.

    python benchmarks/training.py                     # mf cold and cached on 10,000; bert on 1,000
    python benchmarks/training.py --full              # and bert on all 10,000: half an hour or so
    python benchmarks/training.py --only mf --prompts 500

Each prompt has 10 to about 190 tokens of the default encoder, about 100 on average (the measured
mean is printed), and one comparison whose outcome follows from its words, with noise. Cold: the
cache is empty, so the encoder is exported and every prompt embedded. Cached: the same command
again with another --seed, as one trains again with other settings. Without --full, bert is measured
for one epoch on --bert-prompts and on half of them, and the time for all is a straight line
through the two: a projection, printed as such.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGET_PROMPTS = 10_000
TARGETS_S = {"mf, cold": 300.0, "mf, embeddings cached": 20.0, "bert": 1800.0}
MEAN_WORDS = 70
HARD = (  # noqa: SIM905  prose
    "prove theorem derive integral asymptotic invariant eigenvalue concurrency deadlock compiler "
    "optimise refactor jurisdiction diagnosis counterexample convergence"
).split()
EASY = (  # noqa: SIM905  prose
    "hello translate spell rhyme capital list colour weekday greet rename lowercase birthday "
    "recipe synonym holiday weather"
).split()
FILLER = (  # noqa: SIM905  prose
    "the a this that every some and or but because while river market window engine garden matrix "
    "committee budget latency 42 3.14 (see above) please explain compare quickly carefully 2019 "
    "between within international photosynthesis customer database station morning question"
).split()

_TRAIN = "from thriftroute.cli import main; main()"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments ask for and print it beside the targets."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--prompts", type=int, default=TARGET_PROMPTS)
    parser.add_argument("--bert-prompts", type=int, default=1000, help="of the measured fraction")
    parser.add_argument("--full", action="store_true", help="bert on all prompts, all epochs")
    parser.add_argument("--only", choices=("mf", "bert"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.prompts < 100 or given.bert_prompts < 500:
        parser.error("at least 100 --prompts and 500 --bert-prompts are needed")

    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        data = home / "comparisons.jsonl"
        prompts = write_comparisons(data, given.prompts, given.seed)
        report["mean_tokens"] = round(mean_tokens(prompts), 1)
        if given.only != "bert":
            report["runs"] += mf_runs(home, data, given.prompts)
        if given.only != "mf":
            report["runs"] += bert_runs(home, data, given.prompts, given.bert_prompts, given.full)
    if given.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


def write_comparisons(path: Path, n: int, seed: int) -> list[str]:
    """Write n comparisons of distinct prompts as JSONL; returns the prompts."""
    rng = random.Random(seed)
    prompts = []
    with path.open("w", encoding="utf-8") as file:
        for index in range(n):
            hardness = rng.random()
            words = [f"Request {index}:"]
            for _ in range(max(5, round(rng.triangular(5, 2 * MEAN_WORDS, MEAN_WORDS)))):
                telling = HARD if rng.random() < hardness else EASY
                words.append(rng.choice(telling if rng.random() < 0.2 else FILLER))
            prompts.append(" ".join(words))
            wins = rng.random() < 0.1 + 0.8 * (hardness > 0.5)
            row = {
                "prompt": prompts[-1],
                "model_a": "strong",
                "model_b": "weak",
                "outcome": "a" if wins else rng.choice(("b", "tie")),
            }
            file.write(json.dumps(row) + "\n")
    return prompts


def mean_tokens(prompts: Sequence[str]) -> float:
    """Mean length in tokens of the default encoder, special tokens included."""
    from thriftroute.training.encoder import resolve_encoder, DEFAULT_ENCODER  # isort: skip
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(resolve_encoder(DEFAULT_ENCODER) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    sample = prompts[:2000]
    return sum(len(tokenizer.encode(prompt).ids) for prompt in sample) / len(sample)


def train(home: Path, kind: str, data: Path, name: str, *options: str) -> dict[str, Any]:
    """One `thriftroute train` process: seconds of the process, of the loop, and its summary."""
    command = [
        *(sys.executable, "-c", _TRAIN, "train", kind, "--data", str(data)),
        *("--strong", "strong", "--weak", "weak", "--out", str(home / name), "--json", *options),
    ]
    environment = {**os.environ, "THRIFTROUTE_CACHE": str(home / "cache")}
    begin, usage = time.perf_counter(), os.times()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - begin, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    cpu = after.children_user + after.children_system - usage.children_user - usage.children_system
    summary = json.loads(done.stdout)
    return {
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "loop_s": summary["seconds"],
        "epochs": summary["epochs"],
        # mf is cross-validated on the prompts that it is fitted on.
        "prompts": summary["prompts"]["train"]
        + (0 if "validated" in summary else summary["prompts"]["validation"]),
        "validation_apgr": summary["validation"]["apgr"],
    }


def mf_runs(home: Path, data: Path, n: int) -> list[dict[str, Any]]:
    """mf with an empty cache, and again with all embeddings in it."""
    cold = train(home, "mf", data, "mf-cold", "--seed", "0")
    cached = train(home, "mf", data, "mf-cached", "--seed", "1")
    return [
        {"what": "mf, cold", "measured": True, **cold},
        {"what": "mf, embeddings cached", "measured": True, **cached},
    ]


def bert_runs(home: Path, data: Path, n: int, fraction: int, full: bool) -> list[dict[str, Any]]:
    """bert on everything, or one epoch on two fractions and what they project to."""
    # The export of the encoder is cached for all runs, as it is after the first of a user's.
    rows = data.read_text(encoding="utf-8").splitlines(keepends=True)
    if full:
        return [{"what": "bert", "measured": True, **train(home, "bert", data, "bert")}]
    from thriftroute.training.models.bert import BertSettings

    runs = []
    for size in (min(fraction, n) // 2, min(fraction, n)):
        part = home / f"{size}.jsonl"
        part.write_text("".join(rows[:size]), encoding="utf-8")
        # A share of a fifth keeps enough validation prompts in the smaller one.
        options = ("--epochs", "1", "--validation", "0.2")
        result = train(home, "bert", part, f"bert-{size}", *options)
        runs.append({"what": "bert, 1 epoch", "measured": True, **result})
    small, large = runs
    rest = [run["seconds"] - run["loop_s"] for run in runs]
    slope = max((rest[1] - rest[0]) / (large["prompts"] - small["prompts"]), 0.0)
    outside = rest[1] + slope * (TARGET_PROMPTS - large["prompts"])
    epochs = BertSettings().epochs
    inside = large["loop_s"] / large["prompts"] * TARGET_PROMPTS * epochs
    projection = {
        "what": "bert",
        "measured": False,
        "seconds": round(outside + inside, 1),
        "prompts": TARGET_PROMPTS,
        "epochs": epochs,
    }
    return [*runs, projection]


def show(report: dict[str, Any]) -> None:
    """The report as text."""
    print(f"{report['machine']}; prompts of {report['mean_tokens']:g} tokens on average")
    for run in report["runs"]:
        kind = "measured " if run["measured"] else "PROJECTED"
        line = f"{kind}  {run['what']:<22} n = {run['prompts']:>6,}  {run['seconds']:>7.1f} s"
        if run["measured"]:
            line += (
                f"  (CPU {run['cpu_s']:.0f} s; loop {run['loop_s']:.1f} s, {run['epochs']} epochs; "
                f"validation APGR {run['validation_apgr']})"
            )
        target = TARGETS_S.get(run["what"])
        if target is not None:
            line += f"  target {target:,.0f} s on 2 cores for {TARGET_PROMPTS:,}: "
            if run["prompts"] != TARGET_PROMPTS:
                line += "not judged at this n"
            else:
                line += "met" if run["seconds"] <= target else "MISSED"
                line += "" if run["measured"] else ", if the projection holds"
        print(line)


if __name__ == "__main__":
    main()
