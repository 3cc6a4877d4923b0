"""A labelling run from end to end: rows drawn -> estimated -> asked -> voted -> written."""

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from ..data.lines import write_jsonl
from ..data.logs.sampling import Floats
from ..data.logs.schema import LogRow, read_logs
from ..errors import ConfigError, DataError
from ..providers.completion import arm_of
from ..router.output_tokens import OutputTokens
from . import output
from .asking import CapReached, Label, Outcome, PaidCaller, Unlabelled, label_row
from .ledger import LabelError, LabelLedger, Purse, Reply, RowMoney
from .planning import (
    CostEstimate,
    KnownLengths,
    PlannedCall,
    estimate,
    known_replies,
    lengths_of,
    plan_calls,
)
from .sampling import next_round, uncertainty
from .settings import SIDES, LabelSettings, LabelSetup, Side, make_setup
from .votes import take_votes

LINE_EVERY_S = 30.0  # between lines of progress where there is no terminal
Running = dict[asyncio.Task[Label], tuple[LogRow, RowMoney]]


@dataclass(frozen=True)
class LabelResult:
    """`summary` as JSON. `stopped`: None where all is done; else "estimate", "cap", "interrupted"
    or "failures", for which `error` is the cause."""

    summary: dict[str, Any]
    expected: CostEstimate
    stopped: str | None
    error: LabelError | None


def run_labels(settings: LabelSettings, *, console: Console, source: IO[str]) -> LabelResult:
    """Label a sample of a log, going on from what the state file holds.

    Notes and progress go to `console`, votes are read from `source`. What there is at the end,
    however it came, is written to `settings.out`. Raises ConfigError (an option that does not fit,
    no cap), DataError (a file), CalibrationError (a price that nobody knows).
    """
    rows = _read(settings.log)
    setup = make_setup(settings, list(rows.values()))
    with LabelLedger(settings.state_path) as ledger:
        _draw(settings, ledger, rows, console)
        drawn = [rows[row] for row in ledger.drawn]
        setup, known = _learned(setup, ledger, drawn)
        planned = [plan_calls(setup, ledger, row) for row in drawn]
        expected = estimate(planned, setup.lengths)
        for note in _notes(setup, ledger, drawn, expected):
            _note(console, note)
        if settings.only_estimate:
            outcome = Outcome(stopped="estimate", left_usd=expected.usd)
        elif expected.most_usd > 0 and settings.max_usd is None:
            raise ConfigError(
                f"nothing was asked yet: this is estimated at ${expected.usd:.4f} and costs at "
                f"most ${expected.most_usd:.4f}; give --max-usd to say how much may be spent"
            )
        else:
            asked = list(zip(drawn, planned, strict=True))
            outcome = asyncio.run(_label_rows(settings, setup, ledger, asked, known, console))
            if settings.votes and outcome.stopped in (None, "cap"):
                try:
                    take_votes(settings, ledger, drawn, outcome.labels, source, console)
                except KeyboardInterrupt:
                    outcome = replace(outcome, stopped="interrupted")
            if records := output.comparisons(setup, ledger, drawn, outcome.labels):
                write_jsonl(settings.out, records, ascii=True)
            if settings.scores_out is not None:
                scores = output.checked_scores(setup, drawn, outcome.labels)
                write_jsonl(settings.scores_out, scores, ascii=True)
        told = output.summary(
            setup, ledger, outcome, rows=len(rows), cap=settings.max_usd, expected=expected
        )
        return LabelResult(told, expected, outcome.stopped, outcome.error)


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
        told = f"holds row {unknown!r}, which is not in {settings.log}"
        problem = f"{told}: it is the state of another log; give another --state"
        raise DataError(problem, path=ledger.path)
    wanted = len(rows) if settings.count is None else min(settings.count, len(rows))
    missing = wanted - len(drawn)
    if missing < 0:
        _note(console, f"{len(drawn):,} rows were drawn by earlier runs; all of them count")
    if missing <= 0:
        return
    # Where all are drawn there is nothing to choose.
    chosen = settings.routers and missing < len(rows) - len(drawn)
    found = next_round(
        {row.id: row.weight for row in rows.values()},
        drawn,
        missing,
        seed=[settings.seed, len(ledger.rounds) + 1],
        doubt=(lambda ids: _doubt(settings, [rows[i] for i in ids], console)) if chosen else None,
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


def _learned(
    setup: LabelSetup, ledger: LabelLedger, rows: Sequence[LogRow]
) -> tuple[LabelSetup, KnownLengths]:
    """The setup with lengths of answers as those tell that are there already; and these."""
    known: KnownLengths = {}
    for row in () if setup.fixed else rows:
        known |= lengths_of(setup, row, known_replies(setup, ledger, row))
    return replace(setup, lengths=_fitted(setup, known)), known


def _fitted(setup: LabelSetup, known: KnownLengths) -> OutputTokens:
    lengths = setup.lengths
    return lengths if setup.fixed else OutputTokens.fitted(known.values(), lengths.default)


async def _label_rows(
    settings: LabelSettings,
    setup: LabelSetup,
    ledger: LabelLedger,
    rows: Sequence[tuple[LogRow, Sequence[PlannedCall]]],
    known: KnownLengths,
    console: Console,
) -> Outcome:
    """Label rows, with what is still to be asked about each, several at a time.

    Money for all that a row may need is set aside before it is begun, so that no row stops half
    paid; the first row that the cap does not allow ends the run, and no cheaper one after it takes
    its place: what is labelled stays a random part of what was drawn.
    """
    outcome, stop = Outcome(), asyncio.Event()
    running: Running = {}
    purse = Purse(float("inf") if settings.max_usd is None else settings.max_usd, ledger.total)
    options = {"concurrency": settings.concurrency, "retries": settings.retries}
    caller = PaidCaller(ledger, timeout_s=settings.timeout_s, stop=stop, **options)
    # What was paid for comes first, and comes whatever stops the rest.
    waiting = deque(sorted(rows, key=lambda each: bool(each[1])))

    def left_usd() -> float:
        return estimate([planned for _, planned in waiting], _fitted(setup, known)).usd

    with _signals(stop, console), _progress(console, purse, len(rows), left_usd) as report:
        try:
            while running or waiting:
                while waiting and len(running) < settings.concurrency:
                    row, planned = waiting[0]
                    if (money := _money(purse, planned, outcome, stop)) is None:
                        break
                    waiting.popleft()
                    running[asyncio.create_task(label_row(setup, row, caller, money))] = row, money
                if not running:
                    outcome.stopped = outcome.stopped or "cap"
                    break
                for row in await _first_end(running, outcome):
                    label = outcome.labels[row.id]
                    replies: dict[Side, Reply] = {
                        "strong": label.strong_reply, "weak": label.weak_reply,
                    }  # fmt: skip
                    known |= lengths_of(setup, row, replies, label.verdicts)
                report(outcome)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await caller.close()
    outcome.left_usd = left_usd()
    return outcome


def _money(
    purse: Purse, planned: Sequence[PlannedCall], outcome: Outcome, stop: asyncio.Event
) -> RowMoney | None:
    """Money for a row; None where no further one begins, or none before others have ended."""
    if not planned:
        return RowMoney(purse)
    if stop.is_set():
        outcome.stopped = outcome.stopped or "interrupted"
    return None if outcome.stopped else purse.hold(sum(call.most_usd for call in planned))


async def _first_end(running: Running, outcome: Outcome) -> list[LogRow]:
    """Wait for rows under way to end, and keep what came of them; those with a label."""
    ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    rows = [running[task][0] for task in ended]
    for task in ended:
        row, money = running.pop(task)
        money.close()
        try:
            outcome.labels[row.id] = task.result()
        except Unlabelled as reason:
            outcome.reasons[row.id] = str(reason)
        except CapReached:
            outcome.stopped = "cap"
        except LabelError as error:
            outcome.stopped, outcome.error = "failures", error
        except OSError as error:  # a full disk: what cannot be kept must not be asked for
            outcome.stopped, outcome.error = "failures", LabelError(f"cannot go on: {error}")
    return [row for row in rows if row.id in outcome.labels]


@contextlib.contextmanager
def _progress(
    console: Console, purse: Purse, rows: int, left_usd: Callable[[], float]
) -> Iterator[Callable[[Outcome], None]]:
    """A line that changes on a terminal, elsewhere a line now and then."""
    status, told = console.status("labelling"), time.monotonic()
    every_s = 1.0 if console.is_terminal else LINE_EVERY_S

    def report(outcome: Outcome) -> None:
        nonlocal told
        if time.monotonic() - told < every_s:
            return
        done = len(outcome.labels) + len(outcome.reasons)
        of = f" of ${purse.cap:g}" if purse.cap < float("inf") else ""
        line = f"{done:,} of {rows:,} rows, ${purse.spent:.4f} spent{of}"
        line += f", about ${left_usd():.4f} more for the rest"
        told = time.monotonic()
        if console.is_terminal:
            status.update(line)
        else:
            _note(console, line)

    with status if console.is_terminal else contextlib.nullcontext():
        yield report


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


def _notes(
    setup: LabelSetup, ledger: LabelLedger, rows: Sequence[LogRow], expected: CostEstimate
) -> Iterator[str]:
    """What there is to know before anything is asked."""
    calls = ", ".join(
        f"{count:,} of {name} (${expected.usd_by_model[name]:.4f})"
        for name, count in sorted(expected.calls.items())
    )
    yield (
        f"{len(rows):,} rows drawn, {expected.rows:,} to ask about: {calls or 'no call'}; "
        f"estimated ${expected.usd:.4f}, at most ${expected.most_usd:.4f}"
    )
    if ledger.total:
        yield f"spent by earlier runs: ${ledger.spent:.4f}"
    if ledger.lost_calls:
        yield (
            f"{ledger.lost_calls} calls were under way when an earlier run was killed; up to "
            f"${ledger.lost:.4f} counts as spent for them"
        )
    judge = setup.judge
    models = {arm_of(model.name)[0] for model in (setup.strong, setup.weak)}
    if judge is not None and arm_of(judge.name)[0] in models:
        yield f"beware: {judge.name} judges its own answers, and models prefer those"
    others = {
        row.model
        for row in rows
        if row.answer and row.model and not any(setup.logged(row, side) for side in SIDES)
    }
    if others:
        yield (
            f"the log has answers of {', '.join(sorted(others)[:5])}, which are not used; "
            "--logged-as NAME says that they are the strong model's"
        )


def _note(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
