"""A labelling run from end to end: rows drawn -> estimated -> asked -> voted -> written."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..data.logs.schema import LogRow, read_logs
from ..errors import ConfigError, DataError
from . import output
from .asking import CostEstimate, Outcome, label_rows, row_cost, sum_of
from .calls import PaidCaller
from .ledger import LabelError, LabelLedger, Purse
from .sampling import Floats, next_round, uncertainty
from .settings import SIDES, LabelSettings, LabelSetup, make_setup
from .votes import take_votes

LINE_EVERY_S = 30.0  # between lines of progress where there is no terminal


@dataclass(frozen=True)
class LabelResult:
    """`summary` as JSON; `error` why the run ended early, None where nothing failed."""

    summary: dict[str, Any]
    expected: CostEstimate
    error: LabelError | None = None

    @property
    def stopped(self) -> str | None:
        """None where all is done; else "estimate", "cap", "interrupted" or "failures"."""
        found: str | None = self.summary["stopped"]
        return found


def run_labels(settings: LabelSettings, *, console: Console, source: IO[str]) -> LabelResult:
    """Label a sample of a log, going on from what the state file holds.

    Notes and progress go to `console`, votes are read from `source`. What there is at the end,
    however it came, is written to `settings.out`.

    Raises ConfigError (an option that does not fit, no cap), DataError (a file), CalibrationError
    (a price that nobody knows, naming its option).
    """
    rows = _read(settings.log)
    setup = make_setup(settings, list(rows.values()))
    with LabelLedger(settings.state_path) as ledger:
        _draw(settings, ledger, rows, console)
        drawn = [rows[row] for row in ledger.drawn]
        costs = [row_cost(setup, ledger, row) for row in drawn]
        expected = sum_of(costs)
        _tell(console, setup, ledger, drawn, expected)
        if settings.only_estimate:
            outcome = Outcome(stopped="estimate")
        elif expected.most_usd > 0 and settings.max_usd is None:
            raise ConfigError(
                f"nothing was asked yet: this is estimated at ${expected.usd:.4f} and costs at "
                f"most ${expected.most_usd:.4f}; give --max-usd to say how much may be spent"
            )
        else:
            asked = list(zip(drawn, costs, strict=True))
            outcome = asyncio.run(_ask(settings, setup, ledger, asked, console))
            if settings.votes and outcome.stopped in (None, "cap"):
                try:
                    take_votes(settings, ledger, drawn, outcome.labels, source, console)
                except KeyboardInterrupt:
                    outcome = replace(outcome, stopped="interrupted")
            if records := output.comparisons(setup, ledger, drawn, outcome.labels):
                output.write_jsonl(records, settings.out)
            if settings.scores_out is not None:
                scores = output.checked_scores(setup, drawn, outcome.labels)
                output.write_jsonl(scores, settings.scores_out)
        told = output.summary(
            setup, ledger, outcome, rows=len(rows), cap=settings.max_usd, expected=expected
        )
        return LabelResult(told, expected, outcome.error)


def _read(path: Path) -> dict[str, LogRow]:
    rows: dict[str, LogRow] = {}
    try:
        for row in read_logs(path):
            if row.id in rows:
                raise DataError(f"two rows have the id {row.id!r}", path=path, field="id")
            rows[row.id] = row
    except DataError as error:
        problem = f"{error.problem}; expected a log as `thriftroute logs import` writes it"
        raise DataError(problem, path=error.path, line=error.line, field=error.field) from error
    return rows


def _draw(
    settings: LabelSettings, ledger: LabelLedger, rows: Mapping[str, LogRow], console: Console
) -> None:
    """Draw what is missing of `count` rows, as a round of its own."""
    drawn = ledger.drawn
    unknown = next((row for row in drawn if row not in rows), None)
    if unknown is not None:
        raise DataError(
            f"holds row {unknown!r}, which is not in {settings.log}: it is the state of another "
            "log; give another --state",
            path=ledger.path,
        )
    wanted = len(rows) if settings.count is None else min(settings.count, len(rows))
    missing = wanted - len(drawn)
    if missing < 0:
        _note(console, f"{len(drawn):,} rows were drawn by earlier runs; all of them count")
    if missing <= 0:
        return

    def doubt(ids: Sequence[str]) -> Floats:
        return _doubt(settings, [rows[row] for row in ids], console)

    found = next_round(
        {row.id: row.weight for row in rows.values()},
        drawn,
        missing,
        seed=[settings.seed, len(ledger.rounds) + 1],
        # Where all are drawn there is nothing to choose.
        doubt=doubt if settings.routers and missing < len(rows) - len(drawn) else None,
        explore=settings.explore,
    )
    if settings.only_estimate:
        ledger.rounds.append(found)
    else:
        ledger.draw(found)


def _doubt(settings: LabelSettings, rows: Sequence[LogRow], console: Console) -> Floats:
    from ..router.routers import checked_scores, load_router
    from ..router.text import as_conversation

    _note(console, f"scoring {len(rows):,} rows with {', '.join(settings.routers)}")
    asked = [as_conversation([dict(message) for message in row.messages]) for row in rows]
    found = []
    for name in settings.routers:
        router = load_router(name)
        found.append(checked_scores(router.scores(asked), len(asked)))
        getattr(router, "close", lambda: None)()
    return uncertainty(found, settings.threshold)


async def _ask(
    settings: LabelSettings,
    setup: LabelSetup,
    ledger: LabelLedger,
    rows: Sequence[tuple[LogRow, CostEstimate]],
    console: Console,
) -> Outcome:
    cap = float("inf") if settings.max_usd is None else settings.max_usd
    purse = Purse(cap, ledger.total)
    stop = asyncio.Event()
    caller = PaidCaller(
        ledger,
        concurrency=settings.concurrency,
        retries=settings.retries,
        timeout_s=settings.timeout_s,
        stop=stop,
    )
    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn())
    money = TextColumn("{task.description}", markup=False)
    bar = Progress(*columns, money, TimeRemainingColumn(), console=console,
                   disable=not console.is_terminal)  # fmt: skip
    task = bar.add_task("", total=len(rows))
    told = time.monotonic()

    def report(outcome: Outcome) -> None:
        nonlocal told
        done = len(outcome.labels) + len(outcome.reasons)
        spent = f"${purse.spent:.4f} spent" + (f" of ${cap:g}" if cap < float("inf") else "")
        bar.update(task, completed=done, description=spent)
        if not console.is_terminal and time.monotonic() - told > LINE_EVERY_S:
            told = time.monotonic()
            _note(console, f"{done:,} of {len(rows):,} rows, {spent}")

    with _signals(stop, console), bar:
        try:
            return await label_rows(
                setup,
                rows,
                caller,
                purse,
                concurrency=settings.concurrency,
                stop=stop,
                report=report,
            )
        finally:
            await caller.close()


@contextlib.contextmanager
def _signals(stop: asyncio.Event, console: Console) -> Iterator[None]:
    """The first signal ends the run once what is under way has come, for it is paid already; the
    second ends it at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def heard() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        elif not stop.is_set():
            stop.set()
            _note(console, "stopping: what is under way is waited for; once more ends it at once")

    added = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not in threads other than the main one, and not on Windows: there Ctrl-C ends at once.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, heard)
            added.append(number)
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in added:
            loop.remove_signal_handler(number)


def _tell(
    console: Console,
    setup: LabelSetup,
    ledger: LabelLedger,
    rows: Sequence[LogRow],
    expected: CostEstimate,
) -> None:
    calls = ", ".join(
        f"{count:,} of {name} (${expected.usd_by_model[name]:.4f})"
        for name, count in sorted(expected.calls.items())
    )
    _note(
        console,
        f"{len(rows):,} rows drawn, {expected.rows:,} to ask about: {calls or 'no call'}; "
        f"estimated ${expected.usd:.4f}, at most ${expected.most_usd:.4f}",
    )
    if ledger.total:
        _note(console, f"spent by earlier runs: ${ledger.spent:.4f}")
    if ledger.lost_calls:
        _note(
            console,
            f"{ledger.lost_calls} calls were under way when an earlier run was killed; up to "
            f"${ledger.lost:.4f} counts as spent for them",
        )
    judge = setup.judge
    if judge is not None and judge.name in (setup.strong.name, setup.weak.name):
        _note(console, f"beware: {judge.name} judges its own answers, and models prefer those")
    others = {
        row.model
        for row in rows
        if row.answer and row.model and not any(setup.logged(row, side) for side in SIDES)
    }
    if others:
        _note(
            console,
            f"the log has answers of {', '.join(sorted(others)[:5])}, which are not used; "
            "--logged-as NAME says that they are the strong model's",
        )


def _note(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
