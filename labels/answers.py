"""From a row of the log to its label: both answers, then a check or a judge in both orders."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ..data.logs.schema import LogRow
from .calls import CallFailed, CapReached, PaidCaller
from .checks import Check, passes
from .errors import LabelError
from .judge import Verdict, parse
from .ledger import Ledger, Reply
from .money import Hold, Purse
from .plan import READINGS, Setup, Side, answer_call, judge_call, logged, needs_judge, row_cost

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Label:
    """What was found about one row. `strong` is the strong model's score against the weak one's: 1,
    0.5 or 0, None where there are answers and nobody to compare them yet. `checked`: whether
    strong's and weak's answers are right."""

    strong_reply: Reply
    weak_reply: Reply
    strong: float | None = None
    source: str = ""
    verdict: Verdict | None = None
    checked: tuple[bool, bool] | None = None


class Unlabelled(Exception):  # noqa: N818 - an outcome of one row, told in the summary
    """A row cannot be labelled; its text is the reason."""


@dataclass
class Work:
    """What came of the rows: labels and reasons by row id. `stopped` is why not all were done:
    "cap", "interrupted" or "failures", for which `error` is the cause."""

    labels: dict[str, Label] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    error: LabelError | None = None


async def label_rows(
    setup: Setup,
    ledger: Ledger,
    rows: Sequence[LogRow],
    caller: PaidCaller,
    purse: Purse,
    *,
    concurrency: int,
    stop: asyncio.Event,
    report: Callable[[Work], None],
) -> Work:
    """Label rows in their order, several at a time.

    Money for all that a row may need is set aside before it is begun, so that no row stops half
    paid; the first row that the cap does not allow ends the run, and no cheaper one after it takes
    its place: what is labelled stays a random part of what was drawn. When `stop` is set no row is
    begun any more; those begun are finished. `report` is called after each row.
    """
    work = Work()
    costs = [(row, row_cost(setup, ledger, row)) for row in rows]
    # What was paid for comes first, and comes whatever stops the rest.
    paid = iter([(row, cost) for row, cost in costs if not cost.calls])
    due = iter([(row, cost) for row, cost in costs if cost.calls])

    async def one(row: LogRow, hold: Hold) -> None:
        try:
            work.labels[row.id] = await label_row(setup, row, caller, hold)
        except Unlabelled as reason:
            work.reasons[row.id] = str(reason)
        except CallFailed as failure:
            work.reasons[row.id] = f"call failed: {failure}"
        except CapReached:
            work.stopped = "cap"
        except LabelError as error:
            work.stopped, work.error = "failures", error
        except OSError as error:  # a full disk: what cannot be kept must not be asked for
            work.stopped, work.error = "failures", LabelError(f"cannot go on: {error}")
        finally:
            hold.close()
            freed.set()
        report(work)

    gate, freed = asyncio.Lock(), asyncio.Event()

    async def begun() -> tuple[LogRow, Hold] | None:
        """The next row, with money for it; None where there is none of either any more."""
        async with gate:  # which keeps the rows' order while one waits for money to come back
            for row, cost in due:
                while True:
                    if stop.is_set():
                        work.stopped = work.stopped or "interrupted"
                    if work.stopped:
                        return None
                    freed.clear()
                    hold = purse.hold(cost.most)
                    if hold is not None:
                        return row, hold
                    if not purse.held:
                        work.stopped = "cap"
                        return None
                    await freed.wait()
        return None

    async def worker() -> None:
        for row, _ in paid:
            await one(row, Hold(purse, 0.0))
        while (found := await begun()) is not None:
            await one(*found)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(rows))):
            group.create_task(worker())
    return work


async def label_row(setup: Setup, row: LogRow, caller: PaidCaller, hold: Hold) -> Label:
    """The label of one row, asking for what is missing.

    Raises Unlabelled, and what `PaidCaller.ask` raises.
    """

    async def answer(side: Side) -> Reply:
        found = logged(setup, row, side)
        return found or await caller.ask(answer_call(setup, row, side), hold)

    strong, weak = await _both(answer("strong"), answer("weak"))
    found = await without_judge(setup, row, strong, weak)
    if found is not None:
        return found
    said = await _both(
        _said(setup, row, strong, weak, caller, hold, strong_first=True),
        _said(setup, row, strong, weak, caller, hold, strong_first=False),
    )
    return _judged(setup, strong, weak, *said)


async def without_judge(setup: Setup, row: LogRow, strong: Reply, weak: Reply) -> Label | None:
    """The label for which no judge is needed, or None. Raises Unlabelled for an empty answer."""
    for side, reply in (("strong", strong), ("weak", weak)):
        if not reply.text.strip():
            cut = " within --max-tokens" if reply.finish == "length" else ""
            raise Unlabelled(f"no text in {side}'s answer{cut}")
    check = None if setup.checks is None else setup.checks.of(row)
    if check is not None:
        right = await _checked(setup, check, strong, weak)
        score = 0.5 + 0.5 * (int(right[0]) - int(right[1]))
        return Label(strong, weak, score, f"check:{check.kind}", checked=right)
    if strong.text.strip() == weak.text.strip():
        return Label(strong, weak, 0.5, "check:same")
    if not needs_judge(setup, row, strong, weak):
        return Label(strong, weak)
    return None


async def _checked(setup: Setup, check: Check, strong: Reply, weak: Reply) -> tuple[bool, bool]:
    def both() -> tuple[bool, bool]:
        limit = setup.check_timeout_s
        return (
            passes(check, strong.text, timeout_s=limit),
            passes(check, weak.text, timeout_s=limit),
        )

    return await asyncio.to_thread(both)


async def _said(
    setup: Setup,
    row: LogRow,
    strong: Reply,
    weak: Reply,
    caller: PaidCaller,
    hold: Hold,
    *,
    strong_first: bool,
) -> str:
    """The judge's words in one order, readable ones if it gives them."""
    text = ""
    for turn in range(READINGS):
        call = judge_call(setup, row, strong.text, weak.text, strong_first=strong_first, turn=turn)
        text = (await caller.ask(call, hold)).text
        if parse(text) is not None:
            break
    return text


def _judged(setup: Setup, strong: Reply, weak: Reply, first: str, second: str) -> Label:
    one, other = parse(first), parse(second)
    if one is None or other is None:
        raise Unlabelled("the judge's verdict cannot be read")
    verdict = Verdict(one, other)
    name = "" if setup.judge is None else setup.judge.name
    return Label(strong, weak, verdict.strong, f"judge:{name}", verdict)


async def _both(first: Awaitable[T], second: Awaitable[T]) -> tuple[T, T]:
    """Both at once; the first failure is raised once both have ended, so that what is under way
    is not thrown away after it was paid."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(other, BaseException):
        raise other
    return one, other
