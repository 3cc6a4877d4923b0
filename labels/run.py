"""A labelling run from end to end: draw, estimate, ask, vote, write."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from ..data.logs.schema import LogRow, read_logs
from ..data.schema import Message
from ..errors import CalibrationError, ConfigError, DataError
from ..providers.completion import check_provider
from ..providers.prices import Price, listed_price
from . import output
from .active import EXPLORE, Floats, next_round, uncertainty
from .answers import Work, label_rows
from .calls import PaidCaller, PricedModel
from .checks import read_checks
from .errors import LabelError
from .judge import read_rubric
from .ledger import Ledger
from .meter import Meter
from .money import Purse
from .plan import Estimate, Setup, estimate, logged, mean_output_tokens
from .votes import take_votes

SIDES = ("strong", "weak", "judge")
# What would make a call another one than was planned, or dearer than was set aside for it.
_FIXED = frozenset(
    {"model", "messages", "stream", "n", "max_completion_tokens", "num_retries", "max_retries"}
)


@dataclass(frozen=True)
class LabelRequest:
    """What is asked of a run; the command's options have the same names.

    `prices`: "strong", "weak", "judge" -> "IN,OUT"; what is missing comes from LiteLLM's map.
    `params`: the same names, and "all" -> keywords for LiteLLM. `count`: rows to draw in all, with
    those of earlier runs; None: the whole log. `routers`: draw where they are least certain.
    """

    log: Path
    out: Path
    strong: str
    weak: str
    judge: str | None = None
    count: int | None = None
    max_usd: float | None = None
    state: Path | None = None
    only_estimate: bool = False
    prices: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    logged_as: Sequence[str] = ()
    rubric: Path | None = None
    checks: Path | None = None
    run_code: bool = False
    check_timeout_s: float = 10.0
    scores_out: Path | None = None
    votes: int = 0
    voter: str = "human"
    routers: Sequence[str] = ()
    threshold: float = 0.5
    explore: float = EXPLORE
    max_tokens: int = 1024
    judge_tokens: int = 512
    output_tokens: int | None = None
    concurrency: int = 8
    retries: int = 3
    timeout_s: float = 120.0
    seed: int = 0

    @property
    def state_path(self) -> Path:
        """Where what was paid for is kept."""
        return self.state or Path(f"{self.out}.state.jsonl")


@dataclass(frozen=True)
class LabelResult:
    """`summary` as JSON; `error` why the run ended early, None where nothing failed."""

    summary: dict[str, Any]
    expected: Estimate
    error: LabelError | None = None

    @property
    def stopped(self) -> str | None:
        """None where all is done; else "estimate", "cap", "interrupted" or "failures"."""
        found: str | None = self.summary["stopped"]
        return found


def run_labels(request: LabelRequest, *, console: Console, source: IO[str]) -> LabelResult:
    """Label a sample of a log, going on from what the state file holds.

    Notes and progress go to `console`, votes are read from `source`. What there is at the end,
    however it came, is written to `request.out`.

    Raises ConfigError (an option that does not fit, no cap), DataError (a file), CalibrationError
    (a price that nobody knows, naming its option).
    """
    rows = _read(request.log)
    setup = make_setup(request, list(rows.values()))
    _check(request)
    with Ledger(request.state_path) as ledger:
        _draw(request, ledger, rows, console)
        drawn = [rows[row] for row in ledger.drawn]
        expected = estimate(setup, ledger, drawn)
        _tell(console, setup, ledger, drawn, expected)
        if request.only_estimate:
            told = output.summary(
                setup, ledger, {}, {}, rows=len(rows), stopped="estimate", cap=request.max_usd,
                expected=expected,
            )  # fmt: skip
            return LabelResult(told, expected)
        if expected.most_usd > 0 and request.max_usd is None:
            raise ConfigError(
                f"nothing was asked yet: this is estimated at ${expected.usd:.4f} and costs at "
                f"most ${expected.most_usd:.4f}; give --max-usd to say how much may be spent"
            )
        work = _ask(request, setup, ledger, drawn, console)
        try:
            if request.votes and work.stopped in (None, "cap"):
                take_votes(
                    ledger, drawn, work.labels, voter=request.voter, limit=request.votes,
                    source=source, console=console,
                )  # fmt: skip
        except KeyboardInterrupt:
            work.stopped = "interrupted"
        records = output.comparisons(setup, ledger, drawn, work.labels)
        if records:
            output.write_jsonl(records, request.out)
        if request.scores_out is not None:
            output.write_jsonl(output.checked_scores(setup, drawn, work.labels), request.scores_out)
        told = output.summary(
            setup, ledger, work.labels, work.reasons, rows=len(rows), stopped=work.stopped,
            cap=request.max_usd, expected=expected,
        )  # fmt: skip
        return LabelResult(told, expected, work.error)


def make_setup(request: LabelRequest, rows: Sequence[LogRow]) -> Setup:
    """Models with their prices and parameters, rubric and checks. Raises as `run_labels` does."""
    if request.strong == request.weak:
        raise ConfigError(f"--strong and --weak are both {request.strong!r}")
    _check_params(request.params)
    bare = Setup(
        strong=PricedModel(request.strong, Price(0, 0), request.max_tokens),
        weak=PricedModel(request.weak, Price(0, 0), request.max_tokens),
        logged_as=frozenset(request.logged_as),
        priced=False,
    )
    # Of a strong model whose answers are all there, what they cost is nobody's need.
    priced = "strong" in request.prices or not all(logged(bare, row, "strong") for row in rows)
    otherwise = 300.0 if request.output_tokens is None else float(request.output_tokens)
    tokens = otherwise if request.output_tokens is not None else mean_output_tokens(rows, otherwise)
    checks = None
    if request.checks is not None:
        checks = read_checks(request.checks, run_code=request.run_code)
        if not any(checks.of(row) for row in rows):
            raise ConfigError(
                f"--checks {request.checks}: none of its {len(checks):,} checks names a row of "
                f"{request.log}, neither by id nor by prompt"
            )

    def made(side: str, name: str) -> PricedModel:
        own: dict[str, Any] = {"temperature": 0, "drop_params": True} if side == "judge" else {}
        own |= {**request.params.get("all", {}), **request.params.get(side, {})}
        most = int(own.pop("max_tokens", 0)) or (
            request.judge_tokens if side == "judge" else request.max_tokens
        )
        if side == "strong" and not priced:
            return PricedModel(name, Price(0, 0), most, own)
        try:
            check_provider(name, own)
        except ConfigError as error:
            raise ConfigError(f"--{side}: {error}") from None
        return PricedModel(name, _price(request, side, name), most, own)

    return replace(
        bare,
        strong=made("strong", request.strong),
        weak=made("weak", request.weak),
        judge=None if request.judge is None else made("judge", request.judge),
        priced=priced,
        rubric=read_rubric(request.rubric),
        checks=checks,
        output_tokens=tokens,
        check_timeout_s=request.check_timeout_s,
    )


def _check_params(params: Mapping[str, Mapping[str, Any]]) -> None:
    for side, given in params.items():
        if side not in ("all", *SIDES):
            raise ConfigError(f"--params: unknown name {side!r}; expected all, strong, weak, judge")
        for name, value in given.items():
            where = f"--params: {side}.{name}"
            number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            if name in _FIXED:
                raise ConfigError(f"{where}: cannot be set; for the longest answer, set max_tokens")
            if name == "max_tokens" and not (number and isinstance(value, int)):
                raise ConfigError(f"{where}: expected a whole number above 0, got {value!r}")
            if name == "timeout" and not number:
                raise ConfigError(f"{where}: expected a number above 0, got {value!r}")


def _price(request: LabelRequest, side: str, name: str) -> Price:
    given = request.prices.get(side)
    if given is not None:
        try:
            return Price.parse(given)
        except CalibrationError as error:
            raise CalibrationError(f"--{side}-price: {error}") from error
    return listed_price(name, option=f"--{side}-price")


def _check(request: LabelRequest) -> None:
    if request.max_usd is not None and not 0 <= request.max_usd < float("inf"):
        raise ConfigError(f"--max-usd: expected a finite number >= 0, got {request.max_usd}")
    if request.judge is None and request.checks is None and not request.votes:
        raise ConfigError(
            "nobody is there to compare the answers: give --judge MODEL, --checks FILE or --votes N"
        )
    if not 0.0 <= request.threshold <= 1.0:
        raise ConfigError(f"--threshold: expected a number in [0, 1], got {request.threshold}")


def _read(path: Path) -> dict[str, LogRow]:
    rows: dict[str, LogRow] = {}
    try:
        for row in read_logs(path):
            if row.id in rows:
                raise DataError(f"two rows have the id {row.id!r}", path=path, field="id")
            rows[row.id] = row
    except DataError as error:
        hint = "expected a log as `thriftroute logs import` writes it"
        raise DataError(
            f"{error.problem}; {hint}", path=error.path, line=error.line, field=error.field
        ) from error
    return rows


def _draw(
    request: LabelRequest, ledger: Ledger, rows: Mapping[str, LogRow], console: Console
) -> None:
    """Draw what is missing of `count` rows, as a round of its own."""
    drawn = ledger.drawn
    unknown = next((row for row in drawn if row not in rows), None)
    if unknown is not None:
        raise DataError(
            f"holds row {unknown!r}, which is not in {request.log}: it is the state of another "
            "log; give another --state",
            path=ledger.path,
        )
    wanted = len(rows) if request.count is None else min(request.count, len(rows))
    missing = wanted - len(drawn)
    if missing <= 0:
        if missing < 0:
            _note(console, f"{len(drawn):,} rows were drawn by earlier runs; all of them count")
        return
    ids = list(rows)

    def doubt(index: Sequence[int]) -> Floats:
        return _doubt(request, [rows[ids[i]] for i in index], console)

    drawing = next_round(
        ids,
        drawn,
        missing,
        seed=request.seed,
        number=len(ledger.rounds) + 1,
        # Where all are drawn there is nothing to choose.
        doubt=doubt if request.routers and missing < len(rows) - len(drawn) else None,
        explore=request.explore,
        mass=[row.weight for row in rows.values()],
    )
    if not request.only_estimate:
        ledger.draw(drawing)
    else:
        ledger.rounds.append(drawing)


def _doubt(request: LabelRequest, rows: Sequence[LogRow], console: Console) -> Floats:
    from ..router.routers import checked_scores, load_router
    from ..router.text import as_conversation

    _note(console, f"scoring {len(rows):,} rows with {', '.join(request.routers)}")
    asked = [as_conversation(_messages(row.messages)) for row in rows]
    found = []
    for name in request.routers:
        router = load_router(name)
        found.append(checked_scores(router.scores(asked), len(asked)))
        getattr(router, "close", lambda: None)()
    return uncertainty(found, request.threshold)


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [dict(message) for message in messages]


def _ask(
    request: LabelRequest,
    setup: Setup,
    ledger: Ledger,
    rows: Sequence[LogRow],
    console: Console,
) -> Work:
    purse = Purse(float("inf") if request.max_usd is None else request.max_usd, ledger.total)

    async def work() -> Work:
        stop = asyncio.Event()
        caller = PaidCaller(
            ledger,
            concurrency=request.concurrency,
            retries=request.retries,
            timeout_s=request.timeout_s,
            stop=stop,
        )
        with _signals(stop, console), Meter(console, len(rows), purse) as meter:
            try:
                return await label_rows(
                    setup,
                    ledger,
                    rows,
                    caller,
                    purse,
                    concurrency=request.concurrency,
                    stop=stop,
                    report=meter.show,
                )
            finally:
                await caller.close()

    return asyncio.run(work())


@contextlib.contextmanager
def _signals(stop: asyncio.Event, console: Console) -> Iterator[None]:
    """The first signal ends the run once what is under way has come, for it is paid already; the
    second ends it at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def heard() -> None:
        if stop.is_set():
            if task is not None:
                task.cancel()
            return
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
    console: Console, setup: Setup, ledger: Ledger, rows: Sequence[LogRow], expected: Estimate
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
    if setup.judge is not None and setup.judge.name in (setup.strong.name, setup.weak.name):
        _note(
            console,
            f"beware: {setup.judge.name} judges its own answers, and models prefer those",
        )
    others = {
        row.model
        for row in rows
        if row.answer and row.model
        if not logged(setup, row, "strong") and not logged(setup, row, "weak")
    }
    if others:
        _note(
            console,
            f"the log has answers of {', '.join(sorted(others)[:5])}, which are not used; "
            "--logged-as NAME says that they are the strong model's",
        )


def _note(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
