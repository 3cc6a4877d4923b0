"""From a row of the log to its label: both answers, then a check or a judge in both orders; and
what is still to be asked about a row, and costs, as expected and at most."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ..data.logs.schema import LogRow
from .calls import MARGIN, Call, CallFailed, CapReached, PaidCaller, PricedModel, count_tokens
from .checks import check_of, passes
from .judge import JudgeVerdict, parse, question
from .ledger import LabelError, LabelLedger, Purse, Reply, RowMoney
from .settings import SIDES, LabelSetup, Side

T = TypeVar("T")

# A verdict is a sentence or two; an answer is as long as those of the log, or as --output-tokens.
VERDICT_TOKENS = 80
# Where a verdict cannot be read, the judge is asked once more.
READINGS = 2


@dataclass(frozen=True, slots=True)
class Label:
    """What was found about one row. `strong` is the strong model's score against the weak one's: 1,
    0.5 or 0, None where there are answers and nobody to compare them yet. `checked`: whether
    strong's and weak's answers are right."""

    strong_reply: Reply
    weak_reply: Reply
    strong: float | None = None
    source: str = ""
    verdict: JudgeVerdict | None = None
    checked: tuple[bool, bool] | None = None


class Unlabelled(Exception):  # noqa: N818 - an outcome of one row, told in the summary
    """A row cannot be labelled; its text is the reason."""


@dataclass
class Outcome:
    """What came of the rows: labels and reasons by row id. `stopped` is why not all were done:
    "cap", "interrupted" or "failures", for which `error` is the cause."""

    labels: dict[str, Label] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    error: LabelError | None = None


@dataclass
class CostEstimate:
    """Of `rows` rows that are not labelled yet: calls and expected USD by model.

    `most_usd` is the sum of what each call costs at most, with answers of the full length that is
    allowed; nothing passes the cap either way.
    """

    rows: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    usd_by_model: dict[str, float] = field(default_factory=dict)
    most_usd: float = 0.0

    @property
    def usd(self) -> float:
        """Expected USD in all."""
        return sum(self.usd_by_model.values())

    def add(self, model: PricedModel, tokens_in: float, most_in: float, tokens_out: float) -> None:
        """One call; tokens as expected, and the most input that there can be."""
        self.rows = max(self.rows, 1)
        self.calls[model.name] += 1
        usd = model.usd(tokens_in, min(tokens_out, model.max_tokens))
        self.usd_by_model[model.name] = self.usd_by_model.get(model.name, 0.0) + usd
        self.most_usd += model.most(most_in)


def judge_calls(
    setup: LabelSetup, row: LogRow, answers: tuple[str, str], *, strong_first: bool
) -> Iterator[Call]:
    """The calls that compare strong's and weak's answers in one order, until one is readable."""
    assert setup.judge is not None
    asked = question(setup.rubric, row.messages, *(answers if strong_first else answers[::-1]))
    for turn in range(READINGS):
        yield Call(row.id, setup.judge, asked, turn)


def needs_judge(setup: LabelSetup, row: LogRow, replies: Iterable[Reply | None]) -> bool:
    """Whether a judge is to be asked, as far as one can tell: None is an answer not yet there."""
    if setup.judge is None or (setup.checks is not None and check_of(setup.checks, row)):
        return False
    one, other = (None if reply is None else reply.text.strip() for reply in replies)
    return one != "" and other != "" and (one is None or one != other)


def row_cost(setup: LabelSetup, ledger: LabelLedger, row: LogRow) -> CostEstimate:
    """What is still to be asked about a row, and what that costs."""
    cost = CostEstimate()
    size = count_tokens(row.messages)
    replies: dict[Side, Reply | None] = {}
    for side in SIDES:
        paid = ledger.replies.get(Call(row.id, setup.model(side), row.messages).key)
        replies[side] = reply = setup.logged(row, side) or paid
        if reply is None:
            cost.add(setup.model(side), size, size, setup.output_tokens)
    if setup.judge is None or not needs_judge(setup, row, replies.values()):
        return cost
    known = [reply for reply in replies.values() if reply is not None]
    missing = [setup.model(side) for side in SIDES if replies[side] is None]
    for strong_first in (True, False):
        if not missing:
            answers = (known[0].text, known[1].text)
            if _is_judged(ledger, judge_calls(setup, row, answers, strong_first=strong_first)):
                continue
        empty = count_tokens(question(setup.rubric, row.messages, "", ""))
        given = sum(count_tokens([{"role": "user", "content": r.text}]) for r in known)
        expected = empty + given + setup.output_tokens * len(missing)
        # What comes as an answer's output tokens may be counted as more, as the judge's input.
        most = empty + given + sum(MARGIN * model.max_tokens for model in missing)
        cost.add(setup.judge, expected, most, VERDICT_TOKENS)
    return cost


def _is_judged(ledger: LabelLedger, calls: Iterable[Call]) -> bool:
    """Whether the judge was asked in one order as often as it will be."""
    for call in calls:
        reply = ledger.replies.get(call.key)
        if reply is None or parse(reply.text) is not None:
            return reply is not None
    return True


def sum_of(costs: Iterable[CostEstimate]) -> CostEstimate:
    """What several rows cost."""
    total = CostEstimate()
    for cost in costs:
        total.rows += cost.rows
        total.calls += cost.calls
        total.most_usd += cost.most_usd
        for name, usd in cost.usd_by_model.items():
            total.usd_by_model[name] = total.usd_by_model.get(name, 0.0) + usd
    return total


async def label_rows(
    setup: LabelSetup,
    rows: Sequence[tuple[LogRow, CostEstimate]],
    caller: PaidCaller,
    purse: Purse,
    *,
    concurrency: int,
    stop: asyncio.Event,
    report: Callable[[Outcome], None],
) -> Outcome:
    """Label rows, with what is still to be asked about each, in their order, several at a time.

    Money for all that a row may need is set aside before it is begun, so that no row stops half
    paid; the first row that the cap does not allow ends the run, and no cheaper one after it takes
    its place: what is labelled stays a random part of what was drawn. When `stop` is set no row is
    begun any more; those begun are finished. `report` is called after each row.
    """
    outcome = Outcome()
    freed = asyncio.Event()
    funded = _funded(rows, purse, outcome, stop, freed)
    gate = asyncio.Lock()

    async def worker() -> None:
        while True:
            async with gate:  # which keeps the rows' order while one waits for money to come back
                found = await anext(funded, None)
            if found is None:
                return
            row, money = found
            await _label_one(setup, row, caller, money, outcome)
            money.close()
            freed.set()
            report(outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(rows))):
            group.create_task(worker())
    return outcome


async def _funded(
    rows: Sequence[tuple[LogRow, CostEstimate]],
    purse: Purse,
    outcome: Outcome,
    stop: asyncio.Event,
    freed: asyncio.Event,
) -> AsyncIterator[tuple[LogRow, RowMoney]]:
    """The rows, each with money for it, until there is none of either any more."""
    # What was paid for comes first, and comes whatever stops the rest.
    for row, cost in rows:
        if not cost.calls:
            yield row, RowMoney(purse)
    for row, cost in rows:
        if not cost.calls:
            continue
        while True:
            if stop.is_set():
                outcome.stopped = outcome.stopped or "interrupted"
            if outcome.stopped:
                return
            freed.clear()
            money = purse.hold(cost.most_usd)
            if money is not None:
                break
            if not purse.held:
                outcome.stopped = "cap"
                return
            await freed.wait()
        yield row, money


async def _label_one(
    setup: LabelSetup, row: LogRow, caller: PaidCaller, money: RowMoney, outcome: Outcome
) -> None:
    """Write the row's label, or why it has none, into `outcome`."""
    try:
        outcome.labels[row.id] = await label_row(setup, row, caller, money)
    except Unlabelled as reason:
        outcome.reasons[row.id] = str(reason)
    except CallFailed as failure:
        outcome.reasons[row.id] = f"call failed: {failure}"
    except CapReached:
        outcome.stopped = "cap"
    except LabelError as error:
        outcome.stopped, outcome.error = "failures", error
    except OSError as error:  # a full disk: what cannot be kept must not be asked for
        outcome.stopped, outcome.error = "failures", LabelError(f"cannot go on: {error}")


async def label_row(setup: LabelSetup, row: LogRow, caller: PaidCaller, money: RowMoney) -> Label:
    """The label of one row, asking for what is missing.

    Raises Unlabelled, and what `PaidCaller.ask` raises.
    """

    async def answer(side: Side) -> Reply:
        call = Call(row.id, setup.model(side), row.messages)
        return setup.logged(row, side) or await caller.ask(call, money)

    async def verdict(strong_first: bool) -> str:
        """The judge's words in one order, readable ones if it gives them."""
        answers, said = (strong.text, weak.text), ""
        for call in judge_calls(setup, row, answers, strong_first=strong_first):
            said = (await caller.ask(call, money)).text
            if parse(said) is not None:
                break
        return said

    strong, weak = await _both(answer("strong"), answer("weak"))
    label = await _without_judge(setup, row, strong, weak)
    if label is not None or setup.judge is None:
        return label or Label(strong, weak)
    one, other = (parse(said) for said in await _both(verdict(True), verdict(False)))
    if one is None or other is None:
        raise Unlabelled("the judge's verdict cannot be read")
    both = JudgeVerdict(one, other)
    return Label(strong, weak, both.strong, f"judge:{setup.judge.name}", both)


async def _without_judge(
    setup: LabelSetup, row: LogRow, strong: Reply, weak: Reply
) -> Label | None:
    """The label for which no judge is needed, or None. Raises Unlabelled for an empty answer."""
    for side, reply in (("strong", strong), ("weak", weak)):
        if not reply.text.strip():
            cut = " within --max-tokens" if reply.finish == "length" else ""
            raise Unlabelled(f"no text in {side}'s answer{cut}")
    check = None if setup.checks is None else check_of(setup.checks, row)
    if check is not None:
        limit = setup.check_timeout_s
        right = [
            await asyncio.to_thread(passes, check, reply.text, timeout_s=limit)
            for reply in (strong, weak)
        ]
        score = 0.5 + 0.5 * (right[0] - right[1])
        return Label(strong, weak, score, f"check:{check.kind}", checked=(right[0], right[1]))
    same = strong.text.strip() == weak.text.strip()
    return Label(strong, weak, 0.5, "check:same") if same else None


async def _both(first: Awaitable[T], second: Awaitable[T]) -> tuple[T, T]:
    """Both at once; the first failure is raised once both have ended, so that what is under way
    is not thrown away after it was paid."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    for found in (one, other):
        if isinstance(found, BaseException):
            raise found
    return one, other  # type: ignore[return-value]
