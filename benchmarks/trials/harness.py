"""What every trial needs: a server in a process of its own, clients, a row of figures."""

import asyncio
import contextlib
import hashlib
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from ...tests.helpers.fuzzing import ADMIN_KEY, CANARIES, CLIENT_KEY, PROMPT, PROVIDER_KEY
from ...tests.helpers.running import Running, started
from ...tests.helpers.serving import pool
from .provider import ANSWER

ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
CLIENT = {"authorization": f"Bearer {CLIENT_KEY}"}


@dataclass
class Row:
    """One line of the table. Memory is the server's resident set in MB, its workers included."""

    trial: str
    n: int = 0
    losses: int = 0
    statuses: Counter[Any] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    budget: str = "-"
    in_flight: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """As text, in the order of HEAD."""
        told = ", ".join(f"{status}: {count}" for status, count in sorted(_named(self.statuses)))
        times = "-"
        if self.seconds:
            p50, p99 = np.percentile(np.array(self.seconds) * 1000, [50, 99])
            times = f"{p50:,.0f} / {p99:,.0f}"
        memory = "-"
        if self.memory:
            memory = f"{self.memory[0]:.0f} / {self.memory[-1]:.0f} ({max(self.memory):.0f})"
        left = "-" if self.in_flight is None else f"{self.in_flight:g}"
        return [
            *(self.trial, f"{self.n:,}", str(self.losses), told or "-", times, memory),
            *(self.budget, left, self.note or "-"),
        ]


HEAD = (
    *("trial", "n", "losses", "statuses", "p50 / p99 ms", "memory MB first / last (peak)"),
    *("budget", "in flight", "what else"),
)


class Server:
    """A running server with one client's key, one budget and an admin key."""

    def __init__(self, running: Running, folder: Path, session: aiohttp.ClientSession) -> None:
        self.running, self.folder, self.session = running, folder, session
        self.url = running.url
        self._process = psutil.Process(running.process.pid)

    @property
    def records(self) -> Path:
        """SQLite's file."""
        return self.folder / "records.db"

    def memory(self) -> float:
        """MB of the server and its workers."""
        total = 0.0
        with contextlib.suppress(psutil.Error):
            for process in (self._process, *self._process.children(recursive=True)):
                total += process.memory_info().rss / 1e6
        return total

    async def ask(
        self, model: str, prompt: str = "", *, stream: bool = False, **more: Any
    ) -> tuple[Any, float]:
        """(status, seconds); "lost" where no whole answer came, "broken" where a stream says so."""
        messages = [{"role": "user", "content": f"{prompt} {PROMPT}"}]
        body = {"model": model, "messages": messages, **more}
        start = time.perf_counter()
        try:
            async with self.session.post(
                f"{self.url}/v1/chat/completions", json={**body, "stream": stream}, headers=CLIENT
            ) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return "lost", time.perf_counter() - start
        seconds = time.perf_counter() - start
        if stream and answer.status == 200 and not text.endswith("data: [DONE]\n\n"):
            return ("broken" if '"error"' in text else "lost"), seconds
        if not stream and answer.status == 200 and ANSWER not in text and model in GOOD:
            return "lost", seconds
        return answer.status, seconds

    async def get(self, path: str) -> Any:
        """An admin's look; JSON, or text."""
        async with self.session.get(self.url + path, headers=ADMIN) as answer:
            kind = answer.headers.get("content-type", "")
            return await (answer.json() if kind.startswith("application/json") else answer.text())

    async def in_flight(self) -> float:
        """Requests in work, as /metrics says."""
        text = await self.get("/metrics")
        return sum(
            float(x) for x in re.findall(r"^thriftroute_in_flight(?:{.*})? (\S+)", text, re.M)
        )

    async def settled(self, wait_s: float = 60.0) -> tuple[str, float]:
        """(how the budget stands beside the records, requests in work), once nothing moves.

        The first is "settled" where nothing is held and what is spent is what the records say.
        """
        end = time.monotonic() + wait_s
        while True:
            ready = await self.get("/ready")
            busy = await self.in_flight()
            report = await self.get("/stats")
            budgets = [budget for budget in report["budgets"] if budget["unit"] == "usd"]
            spent, held = (sum(budget[name] for budget in budgets) for name in ("spent", "held"))
            cost, requests = report["totals"]["cost"], report["totals"]["requests"]
            gap = abs(spent - cost)
            still = not (ready["records_pending"] or busy or held)
            if still and gap <= 2e-9 * max(1, requests):  # each is rounded up to a nano-dollar
                return "settled", busy
            if time.monotonic() > end:
                return f"${held:.6g} held, ${spent:.6g} counted, ${cost:.6g} recorded", busy
            await asyncio.sleep(0.2)


GOOD = ("auto", "weak", "strong")


def settings(url: str, folder: Path, models: Iterable[str] = (), **more: Any) -> dict[str, Any]:
    """A configuration: weak and strong, `models` beside them, records, keys, one large budget."""
    base = pool(
        url,
        router={"name": "mf", "threshold": 0.3},
        records={"url": f"sqlite:///{folder}/records.db", "flush_s": 0.2},
        keys=[{"name": "ada", "sha256": _sha(CLIENT_KEY), "tenant": "acme", "tier": "all"}],
        tiers={"all": {"budgets": [{"usd": 1e6, "per": "month", "scope": "tenant"}]}},
        # All clients of a trial have one key, whose limit would end it.
        server={"port": 0, "admin_sha256": _sha(ADMIN_KEY), "max_concurrency_per_key": 1000},
    )
    for model in base["models"]:
        model["api_key"] = PROVIDER_KEY
    first = base["models"][1]
    base["models"] += [{**first, "name": name, "model": f"openai/{name}"} for name in models]
    for name, value in more.items():
        whole = isinstance(value, dict) and isinstance(base.get(name), dict)
        base[name] = {**base[name], **value} if whole else value
    return base


@contextlib.asynccontextmanager
async def serving(
    make: Callable[[Path], dict[str, Any]], folder: Path | None = None
) -> AsyncIterator[Server]:
    """A server of the settings that `make` gives for its folder, a new one where none is given."""
    with contextlib.ExitStack() as kept:
        if folder is None:
            folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="thriftroute-")))
        context = started(folder, make(folder))
        # In a thread, since starting and ending block: this loop serves the provider meanwhile.
        entering = asyncio.create_task(asyncio.to_thread(context.__enter__))
        try:
            running = await asyncio.shield(entering)
        except asyncio.CancelledError:  # interrupted: what was started has to end all the same
            (await entering).kill()
            await asyncio.to_thread(context.__exit__, None, None, None)
            raise
        timeout = aiohttp.ClientTimeout(total=300)
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
                yield Server(running, folder, session)
        except BaseException:
            running.kill()
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(context.__exit__, None, None, None))


async def crowd(
    row: Row, n: int, at_once: int, one: Callable[[int], Any], good: Sequence[Any] = (200,)
) -> None:
    """`one(index)` n times, so many at once; its (status, seconds) go into the row."""
    left = iter(range(n))

    async def client() -> None:
        for index in left:
            status, seconds = await one(index)
            row.statuses[status] += 1
            row.seconds.append(seconds)
            row.losses += status not in good

    row.n += n
    await asyncio.gather(*(client() for _ in range(at_once)))


@contextlib.asynccontextmanager
async def watched(row: Row, server: Server, every_s: float = 0.1) -> AsyncIterator[list[float]]:
    """Notes the server's memory; gives the seconds that /health took, asked all the time."""
    stalls: list[float] = []

    async def look() -> None:
        while True:
            row.memory.append(server.memory())
            start = time.perf_counter()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await server.get("/health")
            stalls.append(time.perf_counter() - start)
            await asyncio.sleep(every_s)

    row.memory.append(server.memory())
    task = asyncio.create_task(look())
    try:
        yield stalls
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        row.memory.append(server.memory())


def leaks(server: Server, *texts: str) -> list[str]:
    """The canaries that are in the server's log, in its records' files or in `texts`."""
    told = "".join((*server.running.said, *texts))
    for path in server.folder.glob("records.db*"):
        told += path.read_bytes().decode("latin-1")
    return [canary for canary in CANARIES if canary in told]


def table(rows: Iterable[Row]) -> str:
    """The rows in markdown."""
    lines = [HEAD, tuple("-" * 3 for _ in HEAD), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _named(statuses: Counter[Any]) -> list[tuple[str, int]]:
    return [(str(status), count) for status, count in statuses.items()]


def _sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
