"""`thriftroute logs import` of a log of ten million rows, killed in the middle and run again.

    python benchmarks/long_import.py --folder /tmp/long --rows 10000000
    python benchmarks/long_import.py --folder /tmp/long --rows 10000000 --workers 2 --json

A log of its own making (OpenAI-style requests and answers, `raw.jsonl`; every 32nd request is one
of the last thousand again) is written into the folder, imported by the command itself, killed with
SIGKILL when half of it is read, and the same command is run again to the end. Then the scoring of
the whole import is begun, which cuts it into chunks first, and stopped after `--score` rows or
`--score-s` seconds. Of each run are told its time, rows a second, CPU microseconds a row, the peak
memory of all its processes (proportional set size, twice a second) and of its first one (VmHWM).

Times are those of the machine as it was, with all else that ran on it: see the load that is told.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scale import tree

REPEATED = 32
REMEMBERED = 1000
MEDIAN_WORDS, SIGMA, MOST_WORDS, PHRASE = 40, 1.0, 600, 6
SUBJECTS = (
    "the river|every market|this window|a theorem|the integral|an engine|their garden|the matrix|"
    "our committee|some customer|the database|a station|that morning|the question|her contract|"
    "an invoice|the photograph|a recipe|the function foo(x, y)|the year 1987|his manager"
)
VERBS = (
    "computes|explains|derives|compares|translates|writes|proves|asks about|changes|sells|"
    "summarises|does not fit|depends on|is larger than|would improve|breaks|replaces|belongs to"
)
RESTS = (
    "carefully and quickly|because of the weather|in three steps|for a child of ten|as JSON|"
    "with x=y+1 (see above)|until seventeen o'clock|at 42 or 3.14 percent|and nothing else|"
    "although it rains|in Norwegian; then in French|without internationalisation|, please|"
    "where latency matters|by photosynthesis|against all advice"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments ask for and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="for some 2.5 kB a row")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--score", type=int, default=20_000, help="rows; 0 scores none")
    parser.add_argument("--score-s", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    raw, out = given.folder / "raw.jsonl", given.folder / "imported.jsonl"
    if not raw.exists():
        write(raw, given.rows, given.seed)
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rows": given.rows,
        "workers": given.workers,
        "raw_bytes": raw.stat().st_size,
    }
    command = ["import", str(raw), "--out", str(out), "--workers", str(given.workers), "--json"]
    work = given.folder / "imported.jsonl.work"

    def entries() -> int:
        return committed(work / "import.db")

    killed = run(command, stop=lambda: entries() >= given.rows // 2, signal_=signal.SIGKILL)
    half = entries()
    report["killed"] = rates(killed, half)
    report["work_bytes"] = sum(path.stat().st_size for path in work.iterdir())
    tell(report["killed"], "killed")
    resumed = run(command)
    summary = json.loads(resumed.pop("output"))
    assert summary["entries"] == given.rows, "the log in the folder is another one"
    assert summary["resumed"] == half
    report["resumed"] = {**rates(resumed, given.rows - half), "resumed": half}
    tell(report["resumed"], "resumed")
    report["imported"] = {n: summary[n] for n in ("entries", "distinct", "requests", "written")}
    report["out_bytes"] = out.stat().st_size
    if given.score:
        scores = given.folder / "scores.parquet"
        chunks = given.folder / "scores.parquet.work" / "chunks.jsonl"

        def scored() -> int:
            lines = chunks.read_bytes().splitlines() if chunks.exists() else []
            return sum(json.loads(line)["rows"] for line in lines)

        until = time.monotonic() + given.score_s
        command = ["score", str(out), "--out", str(scores), "--workers", "1", "--overwrite"]
        found = run(
            command,
            stop=lambda: scored() >= given.score or time.monotonic() > until,
            signal_=signal.SIGTERM,
        )
        report["scored"] = rates(found, scored())
        tell(report["scored"], "scored")
    if given.json:
        print(json.dumps(report, indent=1))


def run(
    command: Sequence[str], *, stop: Callable[[], bool] | None = None, signal_: int = 0
) -> dict[str, Any]:
    """Run `thriftroute logs ...` to its end, or until `stop`; what it took."""
    load = os.getloadavg()[0]
    begin = time.perf_counter()
    arguments = [str(Path(sys.executable).with_name("thriftroute")), "logs", *command]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    together = first = 0.0
    spent: dict[tuple[int, float], float] = {}
    stopped = False
    while process.poll() is None:
        size, now = tree(process.pid)
        # Those that have ended spent their time, too.
        spent.update(now)
        together, first = max(together, size), max(first, high_water(process.pid))
        if stop is not None and not stopped and stop():
            process.send_signal(signal_)
            stopped = True
        time.sleep(0.5)
    assert process.stdout is not None
    output = process.stdout.read()
    if process.returncode and not stopped:
        raise SystemExit(f"{' '.join(arguments)} failed with status {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_s": round(sum(spent.values()), 1),
        "peak_mb": round(together),
        "peak_first_mb": round(first),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "output": output,
    }


def rates(found: dict[str, Any], rows: int) -> dict[str, Any]:
    """What a run took, with the rows that it was for."""
    told = {name: value for name, value in found.items() if name != "output"}
    told["rows"] = rows
    told["rows_per_s"] = round(rows / found["seconds"])
    told["cpu_us_per_row"] = round(1e6 * found["cpu_s"] / max(rows, 1), 1)
    return told


def tell(found: dict[str, Any], name: str) -> None:
    """A line of it on stderr, as soon as it is known."""
    print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)


def high_water(pid: int) -> float:
    """The largest size that a process had in memory, in MB; 0 where nobody tells."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM:"))


def committed(store: Path) -> int:
    """The entries that an import has written down; 0 while it cannot be asked."""
    if not store.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(store, timeout=1.0)) as database:
            found = database.execute("SELECT value FROM state").fetchone()
    except sqlite3.OperationalError:  # no table yet, or a commit that is under way
        return 0
    return int(json.loads(found[0])["entries"]) if found else 0


def write(path: Path, count: int, seed: int) -> None:
    """The log, complete under its name or not there."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for request in requests(count, seed):
            file.write(json.dumps(request, separators=(",", ":")) + "\n")
    part.replace(path)


def requests(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Entries as an OpenAI-style client logs them, of log-normal lengths, as chats have."""
    rng = random.Random(seed)
    phrases = [
        f"{subject} {verb} {rest}"
        for subject in SUBJECTS.split("|")
        for verb in VERBS.split("|")
        for rest in RESTS.split("|")
    ]
    recent: deque[str] = deque(maxlen=REMEMBERED)
    for i in range(count):
        if i % REPEATED == REPEATED - 1:
            prompt = recent[rng.randrange(len(recent))]
        else:
            words = min(MOST_WORDS, MEDIAN_WORDS * math.exp(SIGMA * rng.gauss(0, 1)))
            said = rng.choices(phrases, k=max(1, round(words / PHRASE)))
            prompt = f"Ticket {i}: {', and '.join(said)}?"
        recent.append(prompt)
        yield {
            "id": f"request-{i}",
            "time": f"2026-{1 + i % 12:02}-{1 + i % 28:02}T{i % 24:02}:{i % 60:02}:00+00:00",
            "request": {"model": "gpt-4o", "messages": [{"role": "user", "content": prompt}]},
            "response": {
                "choices": [{"message": {"role": "assistant", "content": rng.choice(phrases)}}],
                "usage": {"prompt_tokens": 60, "completion_tokens": 10},
            },
        }


if __name__ == "__main__":
    sys.exit(main())
