"""Rows a second of importing, embedding and scoring a long log, and the memory that it takes.

    python benchmarks/scale.py                       # one worker, two, Ray with two
    python benchmarks/scale.py --rows 20000 --rounds 1 --only "1 worker" --embeddings

A log of its own making (OpenAI-style requests and answers, distinct prompts, their tokens printed)
is imported, cut into chunks and scored with the built-in bundle, each time by a fresh process,
the cases in turn, round after round, so that a busy moment of the machine falls on all of them.
What stands between a worker and its cores is its memory, so that is watched: the sum over all
processes of the run (proportional set size: shared pages count once), twice a second.

Rows a second are those from the moment when as many chunks are done as there are workers, so that
start-up, which a long log does not feel, is not in them; it is printed beside them. The projection
is arithmetic: rows / (rows a second), with reading through and joining in proportion to the rows.
CPU milliseconds a row, of all processes in the same stretch of time, depend little on what else
runs on the machine: where it is busy, compare those, and what follows from them for free cores.
"""

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

PROJECTED = 10_000_000
CASES = {"1 worker": (1, None), "2 workers": (2, None), "Ray, 2 workers": (2, "local")}
WORDS = (  # noqa: SIM905  prose
    "the a this that every some river market window theorem integral engine garden matrix "
    "committee because although whenever compute explain derive compare translate write prove "
    "quickly carefully seventeen 42 3.14 x=y+1 (see above) latency; budget, and or not only "
    "internationalisation photosynthesis customer database station morning question"
).split()
MEDIAN_WORDS, SIGMA, MOST_WORDS = 40, 1.0, 600
_SAMPLE_S = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments ask for and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=4000, help="rows to score in each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case, in turn")
    parser.add_argument("--import-rows", type=int, default=200_000, help="rows to import")
    parser.add_argument("--cut-rows", type=int, default=1_000_000, help="rows to cut into chunks")
    parser.add_argument("--chunk-rows", type=int, default=256)
    parser.add_argument("--only", choices=tuple(CASES), action="append")
    parser.add_argument("--router", default="mf")
    parser.add_argument("--embeddings", action="store_true", help="write them, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        child(json.loads(given.child))
        return
    cores, load = os.cpu_count(), os.getloadavg()[0]
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {cores} cores, load {load:.1f} at the start",
        "rows": given.rows,
        "rounds": given.rounds,
        "chunk_rows": given.chunk_rows,
        "embeddings": given.embeddings,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.import_rows:
            report["import"] = importing(folder, given.import_rows, given.seed)
        if given.cut_rows:
            report["cut"] = cutting(folder, given.cut_rows, given.seed)
        if given.rows:
            log = folder / "log.jsonl"
            write(log, rows(given.rows, given.seed))
            report["log"] = described(log, given.router)
            runs: dict[str, list[dict[str, Any]]] = {}
            for _ in range(given.rounds):
                for case in given.only or CASES:
                    runs.setdefault(case, []).append(scoring(folder, log, given, *CASES[case]))
            report["cases"] = {case: middle_of(found) for case, found in runs.items()}
    if given.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a log as `logs import` writes them; lengths are log-normal, as those of chats are."""
    rng = random.Random(seed)
    for i in range(count):
        n = min(MOST_WORDS, max(2, round(MEDIAN_WORDS * math.exp(SIGMA * rng.gauss(0, 1)))))
        yield {
            "id": f"request-{i}",
            "time": f"2026-{1 + i % 12:02}-{1 + i % 28:02}T{i % 24:02}:00:00+00:00",
            "prompt": f"{i}: {' '.join(rng.choices(WORDS, k=n))}?",
            "answer": " ".join(rng.choices(WORDS, k=30)),
            "model": "gpt-4o",
        }


def requests(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """The same as an OpenAI-style client logs them."""
    for row in rows(count, seed):
        yield {
            "id": row["id"],
            "time": row["time"],
            "request": {
                "model": row["model"],
                "messages": [{"role": "user", "content": row["prompt"]}],
            },
            "response": {
                "choices": [{"message": {"role": "assistant", "content": row["answer"]}}],
                "usage": {"prompt_tokens": 60, "completion_tokens": 40},
            },
        }


def write(path: Path, found: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in found:
            file.write(json.dumps(row) + "\n")


def described(log: Path, router: str) -> dict[str, Any]:
    """Size of the log, and tokens of its first 2,000 prompts as the graph sees them."""
    from thriftroute import Scorer
    from thriftroute.router.routers import BUNDLED, CHECKPOINTS

    scorer = Scorer.load(CHECKPOINTS / router if router in BUNDLED else router)
    with log.open(encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for _, line in zip(range(2000), file, strict=False)]
    whole = [scorer.count_tokens(prompt) for prompt in prompts]
    seen = [len(scorer.token_ids(prompt)) for prompt in prompts]
    most = scorer.bundle.manifest.max_tokens
    return {
        "bytes_per_row": round(log.stat().st_size / sum(1 for _ in log.open("rb"))),
        "tokens": round(sum(whole) / len(whole), 1),
        "tokens_seen": round(sum(seen) / len(seen), 1),
        "truncated": round(sum(n >= most for n in seen) / len(seen), 3),
    }


def importing(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """`logs import` of half as many rows, and of all: what a row adds in memory is the difference
    of the two peaks."""
    found: dict[str, Any] = {"rows": count}
    peaks = []
    for n in (count // 2, count):
        raw = folder / "raw.jsonl"
        write(raw, requests(n, seed))
        told, memory = watched({"what": "import", "raw": str(raw), "out": str(folder / "i.jsonl")})
        peaks.append(memory["peak_mb"])
        found |= {"seconds": told["seconds"], "rows_per_s": round(n / told["seconds"])}
        found["cpu_us_per_row"] = round(1e6 * told["cpu_s"] / n, 1)
        assert told["written"] == n
    found["peak_mb"] = peaks[-1]
    found["bytes_per_row"] = round((peaks[1] - peaks[0]) * 1e6 / (count - count // 2))
    found["projected_hours"] = round(PROJECTED / found["rows_per_s"] / 3600, 2)
    found["projected_mb"] = round(peaks[1] + (PROJECTED - count) * found["bytes_per_row"] / 1e6)
    return found


def cutting(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Reading a log through to cut it, before anything is scored."""
    log = folder / "cut.jsonl"
    write(log, rows(count, seed))
    told, memory = watched({"what": "cut", "log": str(log)})
    size = log.stat().st_size
    log.unlink()
    return {"rows": count, "mb": round(size / 1e6), **told, "peak_mb": memory["peak_mb"]}


def scoring(
    folder: Path, log: Path, given: argparse.Namespace, workers: int, ray: str | None
) -> dict[str, Any]:
    """One run over the log, and what it would be for the projected rows."""
    out = folder / "scores.parquet"
    out.unlink(missing_ok=True)
    options = {
        "router": given.router,
        "workers": workers,
        "ray": ray,
        "chunk_rows": given.chunk_rows,
        "embeddings": given.embeddings,
    }
    begin = time.perf_counter()
    told, memory = watched({"what": "score", "log": str(log), "out": str(out), **options})
    wall = time.perf_counter() - begin
    states: list[list[float]] = told["states"]
    first = states[min(workers, len(states) - 1) - 1]
    last = states[-1]
    scored = last[1] - first[1]
    rate = scored / (last[0] - first[0])
    cpu = memory.pop("cpu")
    spent = at_time(cpu, last[0]) - at_time(cpu, first[0])
    summary = told["summary"]
    share = PROJECTED / given.rows
    hours = (PROJECTED / rate + share * (summary["plan_s"] + summary["join_s"])) / 3600
    cpu_ms = 1000 * spent / scored
    return {
        "rows_per_s": round(rate, 1),
        "cpu_ms_per_row": round(cpu_ms, 2),
        "rows_per_s_free": round(1000 * workers / cpu_ms, 1),
        "wall_s": round(wall, 1),
        "first_chunk_s": round(states[0][0] - told["began"], 1),
        "plan_s": summary["plan_s"],
        "join_s": summary["join_s"],
        **memory,
        "out_bytes_per_row": round(out.stat().st_size / given.rows, 1),
        "projected_hours": round(hours, 1),
        "projected_hours_free": round(PROJECTED * cpu_ms / 1000 / workers / 3600, 1),
    }


def middle_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds, and the slowest and the fastest rate."""
    found: dict[str, Any] = {name: round(statistics.median(r[name] for r in runs), 2)
                             for name in runs[0]}  # fmt: skip
    rates = [run["rows_per_s"] for run in runs]
    return {**found, "slowest": min(rates), "fastest": max(rates), "rounds": len(runs)}


def watched(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a job in a fresh process; what it printed, and the memory (MB) and the CPU time (a list
    of (time, seconds so far)) of it and all below it."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", json.dumps(job)], stdout=subprocess.PIPE, text=True
    )
    sizes: list[float] = []
    cpu: list[tuple[float, float]] = []
    spent: dict[tuple[int, float], float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_S):
            size, now = tree(process.pid)
            # Those that have ended spent their time, too.
            spent.update(now)
            sizes.append(size)
            cpu.append((time.perf_counter(), sum(spent.values())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stdout is not None
    text = process.stdout.read()
    status = process.wait()
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"{job['what']} failed with status {status}")
    third = len(sizes) // 3
    return json.loads(text), {
        "peak_mb": round(max(sizes, default=0.0), 1),
        "peak_mb_end": round(max(sizes[2 * third :], default=0.0), 1),
        "cpu": cpu,
    }


def tree(pid: int) -> tuple[float, dict[tuple[int, float], float]]:
    """Memory of a process and all below it in MB, and CPU seconds of each by its id and start."""
    total = 0.0
    seconds: dict[tuple[int, float], float] = {}
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0, {}
    for process in processes:
        try:
            memory = process.memory_full_info()
            times = process.cpu_times()
            seconds[process.pid, process.create_time()] = times.user + times.system
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        # Only Linux tells what is shared with whom.
        total += getattr(memory, "pss", memory.rss)
    return total / 1e6, seconds


def at_time(samples: Sequence[tuple[float, float]], moment: float) -> float:
    """What was measured nearest to a moment."""
    return min(samples, key=lambda sample: abs(sample[0] - moment))[1] if samples else 0.0


def child(job: dict[str, Any]) -> None:
    """What a fresh process does: prints one JSON object."""
    what: Callable[[dict[str, Any]], dict[str, Any]] = {
        "import": do_import,
        "cut": do_cut,
        "score": do_score,
    }[job.pop("what")]
    print(json.dumps(what(job)))


def do_import(job: dict[str, Any]) -> dict[str, Any]:
    from thriftroute.data.logs.importing import import_logs

    begin, spent = time.perf_counter(), time.process_time()
    result = import_logs([job["raw"]], job["out"])
    seconds, cpu = time.perf_counter() - begin, time.process_time() - spent
    return {"seconds": round(seconds, 2), "cpu_s": round(cpu, 2), "written": result.written}


def do_cut(job: dict[str, Any]) -> dict[str, Any]:
    from thriftroute.data.batch.chunks import plan_chunks

    begin = time.perf_counter()
    planned = plan_chunks([job["log"]])
    return {"seconds": round(time.perf_counter() - begin, 2), "chunks": len(planned.chunks)}


def do_score(job: dict[str, Any]) -> dict[str, Any]:
    import dataclasses

    from thriftroute.data.batch.run import ScoreProgress, score_logs
    from thriftroute.data.batch.settings import ScoreSettings

    states: list[tuple[float, int]] = []

    def progress(state: ScoreProgress) -> None:
        # A clock that all processes of the machine share.
        states.append((time.perf_counter(), state.done))

    began = time.perf_counter()
    summary = score_logs(ScoreSettings(inputs=[job.pop("log")], **job), progress)
    return {"summary": dataclasses.asdict(summary), "states": states, "began": began}


def show(report: dict[str, Any]) -> None:
    """The report as text and a table."""
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(report["machine"])
    if "import" in report:
        i = report["import"]
        console.print(
            f"import: {i['rows']:,} rows in {i['seconds']:.0f} s, {i['rows_per_s']:,} rows/s, "
            f"{i['cpu_us_per_row']} us of CPU a row, one process; peak {i['peak_mb']:,.0f} MB, "
            f"{i['bytes_per_row']} bytes more for each row -> {PROJECTED:,} rows: "
            f"{i['projected_hours']} h, {i['projected_mb']:,} MB"
        )
    if "cut" in report:
        c = report["cut"]
        console.print(
            f"cut: {c['rows']:,} rows ({c['mb']:,} MB) into {c['chunks']:,} chunks in "
            f"{c['seconds']} s; peak {c['peak_mb']:,.0f} MB"
        )
    if "cases" not in report:
        return
    log = report["log"]
    console.print(
        f"score: {report['rounds']} rounds of {report['rows']:,} rows of {log['bytes_per_row']:,} "
        f"bytes; prompts of {log['tokens']} tokens on average, {log['tokens_seen']} after "
        f"truncation ({log['truncated']:.0%} are truncated), all distinct; chunks of "
        f"{report['chunk_rows']} rows" + (", embeddings written" if report["embeddings"] else "")
    )
    table = Table()
    for column in (
        "",
        "rows/s",
        "from .. to",
        "CPU ms/row",
        "free cores",
        f"{PROJECTED // 1_000_000} M rows, h",
        "free, h",
        "start, s",
        "peak MB",
    ):
        table.add_column(column, justify="right" if column else "left")
    for case, row in report["cases"].items():
        table.add_row(
            case,
            f"{row['rows_per_s']:,.0f}",
            f"{row['slowest']:,.0f} .. {row['fastest']:,.0f}",
            f"{row['cpu_ms_per_row']:.1f}",
            f"{row['rows_per_s_free']:,.0f}",
            f"{row['projected_hours']:,.1f}",
            f"{row['projected_hours_free']:,.1f}",
            f"{row['first_chunk_s']:.1f}",
            f"{row['peak_mb']:,.0f}",
        )
    console.print(table)
    console.print(
        "rows/s: median of the rounds, slowest and fastest; free cores: rows/s where each worker "
        "has a core of its own, from the CPU time; start: until the first chunk is done; peak MB: "
        "all processes of a run together"
    )


if __name__ == "__main__":
    main()
