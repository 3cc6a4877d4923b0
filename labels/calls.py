"""One call of one model: from the ledger where it was made before, else through LiteLLM.

Retries, waits and what a failure may have cost are decided here; LiteLLM's own retries, which hide
what they cost, are switched off.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.schema import Message, content_text
from ..providers.completion import acomplete, causes, load_litellm, retry_after
from ..providers.prices import Price
from .errors import LabelError
from .ledger import Ledger, Reply
from .money import Hold

# What LiteLLM's general tokenizer counts may be less than what another model's own counts.
MARGIN = 1.5
_LONGEST_WAIT_S = 60.0
_IN_A_ROW = 10  # calls of one model that fail, before it is left alone
_SECRET = frozenset({"api_key", "api_base", "base_url", "extra_headers", "headers", "timeout"})
_TRANSIENT = frozenset({408, 409, 425, 429})
_USELESS = frozenset({401, 402, 403, 404, 405})
# By name: LiteLLM and the clients under it are imported at the first call.
_LATE = frozenset({"TimeoutError", "Timeout", "APITimeoutError"})
_UNANSWERED = frozenset({"APIConnectionError", "ConnectionError", "TransportError"})
_UNSENT = frozenset(
    {"ClientConnectorError", "ConnectTimeout", "ConnectionRefusedError", "gaierror"}
)
# LiteLLM calls it a ConnectError too where a connection that stood was reset.
_RESET = frozenset({"ClientOSError", "ConnectionResetError", "BrokenPipeError"})


class CallFailed(Exception):  # noqa: N818 - an outcome of one row, told in the summary
    """One call failed for good: the row goes without a label."""


class CapReached(Exception):  # noqa: N818 - as above
    """The cap leaves no money for a further call."""


@dataclass(frozen=True, slots=True)
class Model:
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

    @property
    def secrets(self) -> list[str]:
        """What of the parameters nobody may read."""
        found = self.params.get("api_key")
        return [found] if isinstance(found, str) and len(found) >= 8 else []


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of whom, for which row; `turn` tells further askings of the same apart."""

    item: str
    model: Model
    messages: Sequence[Message]
    turn: int = 0

    @property
    def key(self) -> str:
        """A hash of all that decides the answer: not of keys and addresses."""
        shown = {k: v for k, v in self.model.params.items() if k not in _SECRET}
        what = [self.model.name, list(self.messages), self.model.max_tokens, shown, self.turn]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=repr).encode()).hexdigest()


def count_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens a request has, by LiteLLM's general tokenizer; never raises."""
    try:
        return int(
            load_litellm().token_counter(
                model="gpt-4o",
                messages=[dict(message) for message in messages],
                # Otherwise an image's address is fetched to learn its size.
                use_default_image_token_count=True,
            )
        )
    except Exception:  # noqa: BLE001 - an odd message is the model's to refuse
        return sum(len(content_text(m.get("content")).encode()) for m in messages) // 3 + 10


class Caller:
    """Makes calls, `concurrency` at a time; for one event loop. `close` it in that loop."""

    def __init__(
        self,
        ledger: Ledger,
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

    async def ask(self, call: Call, hold: Hold) -> Reply:
        """The answer, paid out of `hold`, or the one that was paid for before.

        Raises CallFailed, CapReached, and LabelError where no further call makes sense.
        """
        key = call.key
        # Rows that are alike ask the same: one call answers them all.
        async with self._locks.setdefault(key, asyncio.Lock()):
            if (known := self._ledger.replies.get(key)) is not None:
                return known
            return await self._paid(call, key, hold)

    async def _paid(self, call: Call, key: str, hold: Hold) -> Reply:
        most = call.model.most(count_tokens(call.messages))
        for turn in range(self._retries + 1):
            async with self._slots:
                if not hold.take(most):
                    raise CapReached
                self._ledger.ask(key, item=call.item, model=call.model.name, most_usd=most)
                self.calls += 1
                try:
                    reply = await self._once(call)
                except asyncio.CancelledError:
                    self._settle(key, hold, most, "cancelled", most)
                    raise
                except Exception as error:  # noqa: BLE001 - judged below
                    failure, words = error, told(error, call.model.secrets)
                    self._settle(key, hold, most, words, most if may_cost(error) else 0.0)
                else:
                    self._ledger.answer(key, reply)
                    hold.settle(most, reply.usd or 0.0)
                    self._failed[call.model.name] = 0
                    return reply
            wait = self._pause(failure, turn)
            if wait is None:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait)
            if self._stop.is_set():
                raise CallFailed(words) from failure
        self._give_up(call.model, failure, words)
        raise CallFailed(words) from failure

    async def close(self) -> None:
        """Close the connections that LiteLLM keeps, and forget them: the next event loop may have
        the address of this one, by which LiteLLM would find them again."""
        if self.calls:
            litellm = load_litellm()
            await litellm.close_litellm_async_clients()
            litellm.in_memory_llm_clients_cache.flush_cache()

    async def _once(self, call: Call) -> Reply:
        model = call.model
        request = {"max_tokens": model.max_tokens, "timeout": self._timeout_s, **model.params}
        request |= {"model": model.name, "messages": [dict(message) for message in call.messages]}
        request |= {"max_retries": 0, "num_retries": 0, "stream": False}
        async with asyncio.timeout(float(request["timeout"])):
            response = await acomplete(request)
        choices = getattr(response, "choices", None)
        if not choices:
            raise ValueError("the answer has no choices")
        text = content_text(choices[0].message.content)
        usage = getattr(response, "usage", None)
        tokens_in = int(getattr(usage, "prompt_tokens", 0) or 0)
        tokens_out = int(getattr(usage, "completion_tokens", 0) or 0)
        counted = tokens_in + tokens_out > 0
        if not counted:
            tokens_in = count_tokens(call.messages)
            tokens_out = count_tokens([{"role": "assistant", "content": text}])
        finish = choices[0].finish_reason
        usd = model.usd(tokens_in, tokens_out)
        return Reply(text, finish, tokens_in, tokens_out, usd, counted)

    def _settle(self, key: str, hold: Hold, most: float, error: str, usd: float) -> None:
        self._ledger.fail(key, error, usd)
        hold.settle(most, usd)

    def _pause(self, error: Exception, turn: int) -> float | None:
        """Seconds until the next try; None where there is none."""
        status = status_of(error)
        if turn == self._retries or (
            status is not None and status < 500 and status not in _TRANSIENT
        ):
            return None
        asked = retry_after(error)
        backoff = self._wait_s * float(2**turn) * random.uniform(0.5, 1.0)  # noqa: S311
        wait = backoff if asked is None else max(asked, backoff)
        return min(wait, _LONGEST_WAIT_S)

    def _give_up(self, model: Model, error: Exception, words: str) -> None:
        """Raises LabelError where the next call would fail in the same way."""
        if status_of(error) in _USELESS:
            raise LabelError(
                f"model {model.name!r} cannot be called: {words}; mend it (key, name, "
                "--api-base, --params), and the same command goes on"
            ) from error
        self._failed[model.name] += 1
        if self._failed[model.name] >= _IN_A_ROW:
            raise LabelError(
                f"{_IN_A_ROW} calls of model {model.name!r} in a row failed, the last: "
                f"{words}; the same command goes on where this one stopped"
            ) from error


def told(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """The failure in one line, without the keys that a provider may quote: those of the environment
    and `secrets`."""
    status = status_of(error)
    name = "Timeout" if _any(error, _LATE) else type(error).__name__
    words = " ".join(str(getattr(error, "message", None) or error).split())
    for secret in (*secrets, *_secrets()):
        words = words.replace(secret, "[hidden]")
    return f"{name}{f' {status}' if status else ''}: {words[:300]}" if words else name


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the provider's answer; None where there was none."""
    # LiteLLM gives a status to everything, also to a connection that was refused.
    if _any(error, _LATE | _UNANSWERED):
        return None
    try:
        return int(getattr(error, "status_code", ""))
    except (TypeError, ValueError):
        return None


def may_cost(error: BaseException) -> bool:
    """Whether a failed call may have been paid for: the request went out and nobody refused it."""
    if _any(error, frozenset({"JSONDecodeError"})):  # an answer, of status 200, that is broken
        return True
    if status_of(error) is not None or _any(error, _UNSENT):
        return False
    return _any(error, _RESET) or not _any(error, frozenset({"ConnectError"}))


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if name.endswith(("_API_KEY", "_TOKEN", "_SECRET")) and len(value) >= 8:
            yield value


def _any(error: BaseException, names: frozenset[str]) -> bool:
    return any(cls.__name__ in names for cause in causes(error) for cls in type(cause).__mro__)
