"""The machine's faults: a full disk, kill -9, SIGTERM while streams run."""

import asyncio
import contextlib
import resource
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .harness import Row, Server, crowd, serving, settings
from .provider import PAUSE_S, PIECES, Provider

DISK_MB = 4


async def disk(scale: float) -> list[Row]:
    """Records on a disk that is full, then has room again (else: a limit on the file's size)."""
    n = max(100, round(1000 * scale))
    rows = []
    for mounted in (True, False):
        with contextlib.ExitStack() as kept:
            folder = kept.enter_context(_small_disk()) if mounted else None
            if mounted and folder is None:
                rows.append(Row("full disk under SQLite", note="skipped: not root, no tmpfs"))
                continue
            kind = f"tmpfs of {DISK_MB} MB" if mounted else "RLIMIT_FSIZE"
            row = Row(f"full disk under SQLite ({kind})")
            async with Provider().serve() as provider:  # noqa: SIM117
                async with serving(lambda at: settings(provider.url, at), folder) as server:
                    await crowd(row, n // 4, 16, lambda i: server.ask("auto", f"{i}"))
                    await server.settled()
                    await asyncio.to_thread(_fill, server, mounted)
                    await crowd(row, n // 2, 16, lambda i: server.ask("auto", f"{i}"))
                    await asyncio.sleep(1.0)
                    waiting = (await server.get("/ready"))["records_pending"]
                    await asyncio.to_thread(_free, server, mounted)
                    await crowd(row, n // 4, 16, lambda i: server.ask("auto", f"{i}"))
                    row.budget, row.in_flight = await server.settled()
                    kept_rows = (await server.get("/stats"))["totals"]["requests"]
                    row.losses += row.n - kept_rows
                    row.note = f"{waiting} rows waited; {kept_rows} of {row.n} recorded"
            rows.append(row)
    return rows


async def kill(scale: float) -> list[Row]:
    """kill -9 under load; then the server starts again on the same records."""
    row = Row("kill -9 under load")
    n = max(100, round(2000 * scale))
    with tempfile.TemporaryDirectory(prefix="thriftroute-") as name:
        folder = Path(name)
        async with Provider().serve() as provider:
            answered = 0
            async with serving(lambda at: settings(provider.url, at), folder) as server:
                work = asyncio.create_task(
                    crowd(row, n, 16, lambda i: server.ask("weak", f"{i}"), good=(200, "lost"))
                )
                while row.statuses[200] < n // 2:
                    await asyncio.sleep(0.01)
                server.running.kill()
                await work
                answered = row.statuses[200]
            row.n, kept = row.statuses[200] + min(16, row.statuses["lost"]), _ids(folder)
            row.statuses = Counter({200: answered, "cut": min(16, row.statuses["lost"])})
            async with serving(lambda at: settings(provider.url, at), folder) as server:
                again = Row("")
                await crowd(again, 50, 16, lambda i: server.ask("weak", f"{i}"))
                row.losses = again.losses
                row.budget, row.in_flight = await server.settled()
            whole = _check(folder)
            row.note = (
                f"{answered - kept} of {answered} answered requests have no record "
                f"(`flush_s` 0.2); database {whole}; {again.statuses[200]} of 50 answered "
                f"after the restart"
            )
    return [row]


async def sigterm(scale: float) -> list[Row]:
    """SIGTERM while streams run: short ones end, endless ones are cut at `shutdown_s`."""
    row, n = Row("SIGTERM during streams"), max(10, round(100 * scale))
    shutdown_s = 3 * PIECES * PAUSE_S
    with tempfile.TemporaryDirectory(prefix="thriftroute-") as name:
        folder, more = Path(name), {"shutdown_s": shutdown_s}
        async with (
            Provider().serve() as provider,
            serving(
                lambda at: settings(provider.url, at, ("slow", "endless"), server=more), folder
            ) as server,
        ):
            models = ["slow"] * n + ["endless"] * (n // 5)
            work = asyncio.create_task(
                crowd(
                    row,
                    len(models),
                    len(models),
                    lambda i: server.ask(models[i], stream=True),
                    good=(200, "broken"),
                )
            )
            while provider.asked["slow"] + provider.asked["endless"] < len(models):
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            start = time.monotonic()
            server.running.process.send_signal(signal.SIGTERM)
            await work
            code = await asyncio.to_thread(server.running.process.wait, 120)
            took = time.monotonic() - start
            traces = sum("Traceback" in line for line in server.running.said)
        kept = Counter(_column(folder, "status"))
        row.losses += len(models) - sum(kept.values())
        told = ", ".join(f"{status}: {count}" for status, count in sorted(kept.items()))
        row.note = (
            f"ended with {code} after {took:.0f} s (`shutdown_s` {shutdown_s:g}); "
            f"recorded as {told}; tracebacks in the log: {traces}"
        )
    return [row]


@contextlib.contextmanager
def _small_disk() -> Iterator[Path | None]:
    """A folder with DISK_MB of room; None where none can be mounted."""
    with tempfile.TemporaryDirectory(prefix="thriftroute-") as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", name]
        try:
            done = subprocess.run(command, check=False, capture_output=True).returncode == 0
        except OSError:
            done = False
        try:
            yield Path(name) if done else None
        finally:
            if done:
                subprocess.run(["umount", "-l", name], check=False)


def _fill(server: Server, mounted: bool) -> None:
    if not mounted:
        size = max(path.stat().st_size for path in server.folder.glob("records.db*"))
        _limit(server, size)
        return
    with (server.folder / "filler").open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(b"x" * 4096)


def _free(server: Server, mounted: bool) -> None:
    if mounted:
        (server.folder / "filler").unlink()
    else:
        _limit(server, resource.RLIM_INFINITY)


def _limit(server: Server, size: int) -> None:
    pid, kind = server.running.process.pid, resource.RLIMIT_FSIZE
    resource.prlimit(pid, kind, (size, resource.RLIM_INFINITY))


def _column(folder: Path, name: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(folder / "records.db")) as connection:
        return [row[0] for row in connection.execute(f"SELECT {name} FROM thriftroute_decisions")]


def _ids(folder: Path) -> int:
    return len(set(_column(folder, "id")))


def _check(folder: Path) -> str:
    with contextlib.closing(sqlite3.connect(folder / "records.db")) as connection:
        (found,) = connection.execute("PRAGMA integrity_check").fetchone()
    return "whole" if found == "ok" else f"damaged: {found}"
