"""One call of one model: from the ledger where it was made before, else through `providers`.

How often a call is tried again and what its failure may have cost are decided here.
"""

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.schema import Message, content_text
from ..providers import completion
from ..providers.calls import judged, pause_s
from ..providers.error_meaning import NO_KEY, UNUSABLE, CallError, FailureKind, own_words
from ..providers.http_answer import BadAnswerError, HttpAnswer
from ..providers.prices import Price
from ..providers.redaction import environment_secrets, redact, secrets_of
from .ledger import LabelError, LabelLedger, Reply, RowMoney

# What LiteLLM's general tokenizer counts may be less than what another model's own counts.
MARGIN = 1.5
_LONGEST_WAIT_S = 60.0
_IN_A_ROW = 10  # calls of one model that fail, before it is left alone
_MOST_BYTES = 8_000_000  # of an answer
_NO_CHOICE = frozenset({"api_key", "api_base", "base_url", "extra_headers", "headers", "timeout"})


class CallFailed(Exception):  # noqa: N818 - an outcome of one row, told in the summary
    """One call failed for good: the row goes without a label."""


class CapReached(Exception):  # noqa: N818 - as above
    """The cap leaves no money for a further call."""


@dataclass(frozen=True, slots=True)
class PricedModel:
    """A model as it is called: `name` for LiteLLM, USD `price`, at most `max_tokens` an answer.

    `params`: further keywords for LiteLLM, such as temperature, api_base or api_key.
    """

    name: str
    price: Price
    max_tokens: int
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """What so many tokens cost, without any discount for cached ones."""
        return float(self.price.costs(input_tokens, output_tokens))

    def most(self, input_tokens: float) -> float:
        """What a call costs at most whose input was counted as so many tokens."""
        return self.usd(MARGIN * input_tokens, self.max_tokens)


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of whom, for which row; `turn` tells further askings of the same apart."""

    item: str
    model: PricedModel
    messages: Sequence[Message]
    turn: int = 0

    @property
    def key(self) -> str:
        """A hash of all that decides the answer: not of keys and addresses."""
        shown = {k: v for k, v in self.model.params.items() if k not in _NO_CHOICE}
        what = [self.model.name, list(self.messages), self.model.max_tokens, shown, self.turn]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=repr).encode()).hexdigest()


def count_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens a request has; never raises."""
    size = sum(len(content_text(message.get("content")).encode()) for message in messages)
    return completion.count_tokens(messages, otherwise=size // 3 + 10)


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
        self._locks: dict[str, asyncio.Lock] = {}
        self.calls = 0  # that went out

    async def ask(self, call: Call, hold: RowMoney) -> Reply:
        """The answer, paid out of `hold`, or the one that was paid for before.

        Raises CallFailed, CapReached, and LabelError where no further call makes sense.
        """
        key = call.key
        # Rows that are alike ask the same: one call answers them all.
        async with self._locks.setdefault(key, asyncio.Lock()):
            if (known := self._ledger.replies.get(key)) is not None:
                return known
            return await self._paid(call, key, hold)

    async def _paid(self, call: Call, key: str, hold: RowMoney) -> Reply:
        name = call.model.name
        for turn in range(self._retries + 1):
            async with self._slots:
                reply = await self._tried(call, key, hold)
            if isinstance(reply, Reply):
                self._failed[name] = 0
                return reply
            failure, words = reply, told(reply, call.model.params)
            may_pass = failure.kind is FailureKind.RETRY or failure.name == "Timeout"
            if turn == self._retries or not may_pass:
                break
            with contextlib.suppress(TimeoutError):
                pause = min(pause_s(failure, turn, self._wait_s), _LONGEST_WAIT_S)
                await asyncio.wait_for(self._stop.wait(), pause)
            if self._stop.is_set():
                raise CallFailed(words) from failure
        if failure.status in UNUSABLE or failure.name == NO_KEY:  # the next call fails alike
            raise LabelError(
                f"model {name!r} cannot be called: {words}; mend it (key, name, "
                "--api-base, --params), and the same command goes on"
            ) from failure
        self._failed[name] += 1
        if self._failed[name] >= _IN_A_ROW:
            raise LabelError(
                f"{_IN_A_ROW} calls of model {name!r} in a row failed, the last: "
                f"{words}; the same command goes on where this one stopped"
            ) from failure
        raise CallFailed(words) from failure

    async def _tried(self, call: Call, key: str, hold: RowMoney) -> Reply | CallError:
        """One call, in the ledger and paid. Raises CapReached."""
        most = call.model.most(count_tokens(call.messages))
        if not hold.take(most):
            raise CapReached
        self._ledger.ask(key, item=call.item, model=call.model.name, most_usd=most)
        self.calls += 1
        try:
            reply = await self._once(call)
        except asyncio.CancelledError:
            self._ledger.fail(key, "cancelled", most)
            hold.settle(most, most)
            raise
        except CallError as failure:
            usd = most if failure.may_cost else 0.0
            self._ledger.fail(key, told(failure, call.model.params), usd)
            hold.settle(most, usd)
            return failure
        self._ledger.answer(key, reply)
        hold.settle(most, reply.usd or 0.0)
        return reply

    async def close(self) -> None:
        """Close the connections: this event loop makes no more calls."""
        if self.calls:
            await completion.close_connections()

    async def _once(self, call: Call) -> Reply:
        model = call.model
        request = {"max_tokens": model.max_tokens, "timeout": self._timeout_s, **model.params}
        request |= {"model": model.name, "messages": [dict(message) for message in call.messages]}
        request |= {"max_retries": 0, "num_retries": 0, "stream": False}
        async with judged(HttpAnswer(_MOST_BYTES), float(request["timeout"])):
            response = await completion.acomplete(request)
            choices = getattr(response, "choices", None)
            if not choices:
                raise BadAnswerError("the answer has no choices")
            text = content_text(choices[0].message.content)
        usage = getattr(response, "usage", None)
        tokens_in = int(getattr(usage, "prompt_tokens", 0) or 0)
        tokens_out = int(getattr(usage, "completion_tokens", 0) or 0)
        counted = tokens_in + tokens_out > 0
        if not counted:
            tokens_in = count_tokens(call.messages)
            tokens_out = count_tokens([{"role": "assistant", "content": text}])
        usd = model.usd(tokens_in, tokens_out)
        return Reply(text, choices[0].finish_reason, tokens_in, tokens_out, usd, counted)


def told(failure: CallError, params: Mapping[str, Any]) -> str:
    """The failure in one line, without the keys that a provider may quote."""
    words = " ".join(own_words(failure.__cause__ or failure).split())
    words = redact(words, environment_secrets() | secrets_of(params))[:300]
    name = f"{failure.name} {failure.status}" if failure.status else failure.name
    return f"{name}: {words}" if words else name
