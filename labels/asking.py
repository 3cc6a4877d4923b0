"""From a row of the log to its label: both answers, then a check or a judge in both orders.

A call is answered by the ledger where it was paid for before, else by `providers`.
"""

import asyncio
import contextlib
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..data.logs.schema import LogRow
from ..data.schema import Message, content_text
from ..providers import completion
from ..providers.calls import judged, pause_s, told
from ..providers.error_meaning import NO_KEY, UNUSABLE, CallError, FailureKind
from ..providers.http_answer import BadAnswerError, HttpAnswer
from ..providers.log_probabilities import mean_probability, token_logprobs
from ..router.looking import LOOK_KEYWORDS
from .checks import check_of, passes
from .judge import JudgeVerdict, parse, question
from .ledger import LabelError, LabelLedger, Reply, RowMoney
from .settings import SIDES, LabelSetup, PricedModel, Side, count_tokens

T = TypeVar("T")

READINGS = 2  # where a verdict cannot be read, the judge is asked once more
_LONGEST_WAIT_S = 60.0
_IN_A_ROW = 10  # calls of one model that fail, before it is left alone
_MOST_BYTES = 8_000_000  # of an answer
_NO_CHOICE = frozenset({"api_key", "api_base", "base_url", "extra_headers", "headers", "timeout"})


@dataclass(frozen=True, slots=True)
class Label:
    """What was found about one row. `strong`: the strong model's score, 1, 0.5 or 0; None where
    nobody has compared the answers yet. `checked`: whether strong's and weak's are right. `second`:
    another answer of the weak model, where one was asked for. `verdicts`: what the judge said."""

    strong_reply: Reply
    weak_reply: Reply
    strong: float | None = None
    source: str = ""
    verdict: JudgeVerdict | None = None
    checked: tuple[bool, bool] | None = None
    second: str | None = None
    verdicts: Sequence[Reply] = ()


class Unlabelled(Exception):  # noqa: N818 - an outcome of one row, told in the summary
    """A row cannot be labelled; its text is the reason."""


class CallFailed(Unlabelled):
    """One call failed for good: the row goes without a label."""


class CapReached(Exception):  # noqa: N818 - as above
    """The cap leaves no money for a further call."""


@dataclass
class Outcome:
    """What came of the rows: labels and reasons by row id. `stopped` is why not all were done:
    "cap", "interrupted" or "failures", for which `error` is the cause. `left_usd`: expected of the
    rows that were not begun."""

    labels: dict[str, Label] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    error: LabelError | None = None
    left_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of whom, for which row; `turn` tells further askings of the same apart.
    `logprobs`: with the probabilities of the tokens, where the provider tells them."""

    item: str
    model: PricedModel
    messages: Sequence[Message]
    turn: int = 0
    logprobs: bool = False

    @property
    def key(self) -> str:
        """A hash of all that decides the answer: not of keys and addresses."""
        params = {k: v for k, v in self.model.params.items() if k not in _NO_CHOICE}
        what = [self.model.name, list(self.messages), self.model.max_tokens, params, self.turn]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=repr).encode()).hexdigest()


def answer_call(setup: LabelSetup, row: LogRow, side: Side) -> Call:
    """The call for a side's answer; weak's with the probabilities of its tokens."""
    return Call(row.id, setup.model(side), row.messages, logprobs=side == "weak")


def second_call(model: PricedModel, row: LogRow) -> Call:
    """The call for another answer of the weak model."""
    return Call(row.id, model, row.messages, turn=1)


def judge_call(
    setup: LabelSetup, row: LogRow, answers: Sequence[str], *, strong_first: bool, turn: int = 0
) -> Call:
    """The call that compares strong's and weak's answers in one order."""
    assert setup.judge is not None
    asked = question(setup.rubric, row.messages, *(answers if strong_first else answers[::-1]))
    return Call(row.id, setup.judge, asked, turn)


class PaidCaller:
    """Makes calls, `concurrency` at a time; for one event loop. `close` it in that loop."""

    def __init__(
        self,
        ledger: LabelLedger,
        *,
        concurrency: int = 8,
        retries: int = 3,
        timeout_s: float = 120.0,
        wait_s: float = 0.5,
        stop: asyncio.Event | None = None,
    ) -> None:
        """`stop`: once it is set, nothing that failed is tried again."""
        self._ledger = ledger
        self._slots = asyncio.Semaphore(concurrency)
        self._retries = retries
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self._stop = stop or asyncio.Event()
        self._failed: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.calls = 0  # that went out

    async def ask(self, call: Call, hold: RowMoney) -> Reply:
        """The answer, paid out of `hold`, or the one that was paid for before.

        Raises CallFailed, CapReached, and LabelError where no further call makes sense.
        """
        key = call.key
        # Rows that are alike ask the same: one call answers them all.
        async with self._locks[key]:
            if (known := self._ledger.replies.get(key)) is not None:
                return known
            for turn in range(self._retries + 1):
                try:
                    async with self._slots:
                        reply = await self._send(call, key, hold)
                    self._failed[call.model.name] = 0
                    return reply
                except CallError as error:
                    failure = error
                may_pass = failure.kind is FailureKind.RETRY or failure.name == "Timeout"
                if turn == self._retries or not may_pass:
                    break
                with contextlib.suppress(TimeoutError):
                    pause = min(pause_s(failure, turn, self._wait_s), _LONGEST_WAIT_S)
                    await asyncio.wait_for(self._stop.wait(), pause)
                if self._stop.is_set():
                    break
            raise self._failure(call.model, failure) from failure

    def _failure(self, model: PricedModel, failure: CallError) -> CallFailed | LabelError:
        words = told(failure, model.params)
        if failure.status in UNUSABLE or failure.name == NO_KEY:  # the next call fails alike
            return LabelError(
                f"model {model.name!r} cannot be called: {words}; mend it (key, name, "
                "--api-base, --params), and the same command goes on"
            )
        self._failed[model.name] += 1
        if self._failed[model.name] >= _IN_A_ROW:
            return LabelError(
                f"{_IN_A_ROW} calls of model {model.name!r} in a row failed, the last: "
                f"{words}; the same command goes on where this one stopped"
            )
        return CallFailed(f"call failed: {words}")

    async def _send(self, call: Call, key: str, hold: RowMoney) -> Reply:
        """One call, in the ledger and paid. Raises CallError, CapReached."""
        model, most = call.model, call.model.most(count_tokens(call.messages))
        if not hold.take(most):
            raise CapReached
        self._ledger.ask(key, item=call.item, model=model.name, most_usd=most)
        self.calls += 1
        request = {"max_tokens": model.max_tokens, "timeout": self._timeout_s, **model.params}
        request |= {"model": model.name, "messages": [dict(message) for message in call.messages]}
        request |= {"max_retries": 0, "num_retries": 0, "stream": False}
        # What the user's own parameters say of them holds.
        optional = LOOK_KEYWORDS if call.logprobs and "logprobs" not in model.params else ()
        request |= dict.fromkeys(optional, True)
        try:
            async with judged(HttpAnswer(_MOST_BYTES), float(request["timeout"])):
                reply = _reply(call, await completion.acomplete(request, optional=optional))
        except (CallError, asyncio.CancelledError) as failure:
            words, usd = "cancelled", most
            if isinstance(failure, CallError):
                words, usd = told(failure, model.params), most if failure.may_cost else 0.0
            self._ledger.fail(key, words, usd)
            hold.settle(most, usd)
            raise
        self._ledger.answer(key, reply)
        hold.settle(most, reply.usd or 0.0)
        return reply

    async def close(self) -> None:
        """Close the connections: this event loop makes no more calls."""
        if self.calls:
            await completion.close_connections()


def _reply(call: Call, response: Any) -> Reply:
    choices = getattr(response, "choices", None)
    if not choices:
        raise BadAnswerError("the answer has no choices")
    text = content_text(choices[0].message.content)
    usage = getattr(response, "usage", None)
    names = ("prompt_tokens", "completion_tokens")
    tokens_in, tokens_out = (int(getattr(usage, name, 0) or 0) for name in names)
    counted = tokens_in + tokens_out > 0
    if not counted:
        tokens_in = count_tokens(call.messages)
        tokens_out = count_tokens([{"role": "assistant", "content": text}])
    usd = call.model.usd(tokens_in, tokens_out)
    told = token_logprobs(choices[0])
    about = mean_probability([value for _, value in told]), told
    return Reply(text, choices[0].finish_reason, tokens_in, tokens_out, usd, counted, *about)


async def label_row(setup: LabelSetup, row: LogRow, caller: PaidCaller, money: RowMoney) -> Label:
    """The label of one row, asking for what is missing.

    Raises Unlabelled, and what `PaidCaller.ask` raises.
    """
    replies = {side: setup.logged(row, side) for side in SIDES}
    missing = [side for side in SIDES if replies[side] is None]
    calls = [answer_call(setup, row, side) for side in missing]
    if setup.second is not None:
        calls.append(second_call(setup.second, row))
    found = await _all([caller.ask(call, money) for call in calls])
    replies |= dict(zip(missing, found[: len(missing)], strict=True))
    label = await _compared(setup, row, replies, caller, money)
    return label if setup.second is None else replace(label, second=found[-1].text)


async def _compared(
    setup: LabelSetup,
    row: LogRow,
    replies: Mapping[Side, Reply | None],
    caller: PaidCaller,
    money: RowMoney,
) -> Label:
    """The label of a row whose answers are there."""
    strong, weak = replies["strong"], replies["weak"]
    assert strong is not None and weak is not None
    for side, reply in (("strong", strong), ("weak", weak)):
        if not reply.text.strip():
            cut = " within --max-tokens" if reply.finish == "length" else ""
            raise Unlabelled(f"no text in {side}'s answer{cut}")
    if setup.checks is not None and (check := check_of(setup.checks, row)) is not None:
        limit = setup.check_timeout_s
        one, other = [
            await asyncio.to_thread(passes, check, reply.text, timeout_s=limit)
            for reply in (strong, weak)
        ]
        score = 0.5 + 0.5 * (one - other)
        return Label(strong, weak, score, f"check:{check.kind}", checked=(one, other))
    if strong.text.strip() == weak.text.strip():
        return Label(strong, weak, 0.5, "check:same")
    if setup.judge is None:
        return Label(strong, weak)
    verdicts: list[Reply] = []
    scores: dict[bool, float] = {}  # of the answer that stood first, by whether it was strong's
    for turn in range(READINGS):
        orders = [first for first in (True, False) if first not in scores]
        calls = [
            judge_call(setup, row, (strong.text, weak.text), strong_first=first, turn=turn)
            for first in orders
        ]
        found = await _all([caller.ask(call, money) for call in calls])
        verdicts += found
        said = {first: parse(reply.text) for first, reply in zip(orders, found, strict=True)}
        scores |= {first: score for first, score in said.items() if score is not None}
    if len(scores) < 2:
        raise Unlabelled("the judge's verdict cannot be read")
    verdict = JudgeVerdict(scores[True], 1.0 - scores[False])
    source = f"judge:{setup.judge.name}"
    return Label(strong, weak, verdict.strong, source, verdict, verdicts=verdicts)


async def _all(asked: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All at once; the first failure is raised once all have ended, so that what is under way is
    not thrown away after it was paid."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found  # type: ignore[return-value]
