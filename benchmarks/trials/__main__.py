"""Trials of the server under load, attack and fault: loopback only, bounded in count and time.

    python -m thriftroute.benchmarks.trials all
    python -m thriftroute.benchmarks.trials requests leavers --scale 0.1
    python -m thriftroute.benchmarks.trials list

Prints a table in markdown. `--scale` makes every trial's count smaller; `--limit-s` bounds each
trial's time. Ctrl-C and SIGTERM end it, and every process that it has started.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable

import psutil
from _pytest.outcomes import Skipped

from . import faults, fuzz, load, pages, stores, upstream
from .harness import Row, table

Trial = Callable[[float], Awaitable[list[Row]]]
TRIALS: dict[str, Trial] = {
    "requests": load.requests,
    "streams": load.streams,
    "stalled": load.stalled,
    "leavers": load.leavers,
    "upstream": upstream.hostile,
    "stores": stores.stores,
    "two-servers": stores.two_servers,
    "disk": faults.disk,
    "kill": faults.kill,
    "sigterm": faults.sigterm,
    "fuzz": fuzz.fuzz,
    "pages": pages.pages,
    "rights": pages.rights,
}


async def _run(names: list[str], scale: float, limit_s: float) -> int:
    """Every trial in turn; what it gives is printed when it is there. The number that failed."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for stop in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(stop, task.cancel)
    rows: list[Row] = []
    failed = 0
    before = psutil.getloadavg()[0]
    try:
        for name in names:
            start = time.monotonic()
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            try:
                async with asyncio.timeout(limit_s):
                    rows += await TRIALS[name](scale)
                told = "done"
            except Skipped as skipped:
                told = f"skipped: {skipped.msg}"
                rows.append(Row(name, note=told))
            except Exception as error:  # noqa: BLE001 - one trial's end is not the others'
                failed += 1
                told = f"failed: {type(error).__name__}: {error}"[:300]
                rows.append(Row(name, note=told.replace("\n", " ").replace("|", "/")))
            print(f"{told}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    except asyncio.CancelledError:
        print("interrupted", file=sys.stderr)
        failed += 1
    if rows:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        after = psutil.getloadavg()[0]
        print(
            f"{cores} cores, shared with clients and provider; load average {before:.1f} before, "
            f"{after:.1f} after; {time.strftime('%Y-%m-%d')}; scale {scale:g}.\n"
        )
        print(table(rows))
    return failed


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m thriftroute.benchmarks.trials",
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
    )
    parser.add_argument("trials", nargs="+", choices=[*TRIALS, "all", "list"], metavar="TRIAL")
    parser.add_argument("--scale", type=float, default=1.0, help="of every trial's count")
    parser.add_argument("--limit-s", type=float, default=900.0, help="for each trial")
    options = parser.parse_args()
    if "list" in options.trials:
        for name, trial in TRIALS.items():
            print(f"{name:12} {(trial.__doc__ or '').splitlines()[0]}")
        return
    names = list(TRIALS) if "all" in options.trials else options.trials
    sys.exit(1 if asyncio.run(_run(names, options.scale, options.limit_s)) else 0)


if __name__ == "__main__":
    main()
