"""What is known of a session before a request of it: who answered, and what is probably cached."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...providers.prompt_cache import Cached, CachePrice
from ...router.step_head import FEATURES
from ...router.switching import COMPACTED, Pair, SessionState, Step, is_failure
from ..request import RESULTS, ChatRequest, is_reminder
from ..request_parts import parts_of, text_size
from ..spend.cost import Usage

_MOST_CACHES = 8


@dataclass(frozen=True, slots=True)
class Course:
    """A session so far, as the store keeps it: numbers and names of models, no text.

    `model` answered last; `steps` to `output` and `escalated` as in `switching.SessionState`;
    `size`: bytes of the last request; `caches`: what each model's
    cache holds; `always`: what the strong model's would, had it answered everything; `moved`:
    whether more than one model has answered.
    """

    model: str
    steps: int = 0
    points: int = 0
    prompt: float = 0.0
    added: float = 0.0
    output: float = 0.0
    escalated: bool = False
    size: int = 0
    moved: bool = False
    caches: Mapping[str, Cached] = field(default_factory=dict)
    always: Cached = field(default_factory=Cached)

    @classmethod
    def read(cls, raw: bytes) -> "Course":
        """Of a store's bytes; a name alone is what other versions write."""
        try:
            told = {name: v for name, v in json.loads(raw).items() if name in cls.__slots__}
            told["caches"] = {name: Cached(*each) for name, each in told["caches"].items()}
            told["always"] = Cached(*told["always"])
            return cls(**told)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls(raw.decode(errors="replace"))

    def written(self) -> bytes:
        """For a store."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["caches"] = {name: _pair(each) for name, each in self.caches.items()}
        return json.dumps(plain | {"always": _pair(self.always)}).encode()

    def state(self, strong: str, weak: str) -> SessionState:
        """As the price of a switch between these two models sees it."""
        nothing = Cached()
        numbers = (self.points, self.prompt, self.added, self.output)
        return SessionState(
            max(self.steps, 1),
            *numbers,
            on_strong=self.model == strong,
            strong=self.caches.get(strong, nothing),
            weak=self.caches.get(weak, nothing),
            escalated=self.escalated,
        )


def step_of(request: ChatRequest, course: Course | None, now: float) -> Step:
    """The step that a request is: its prompt has as many tokens a byte as the one before it, as
    its provider counted that. now: seconds since the epoch."""
    prompt = float(request.prompt_tokens)
    if course is not None and course.size > 0 and course.prompt > 0 and request.size > 0:
        prompt = course.prompt * request.size / course.size
    failed, repeated = _failures(request)
    natural = _is_compacted(request, course) or not request.in_tool_calls
    return Step(prompt, now, natural, failed, repeated)


def _is_compacted(request: ChatRequest, course: Course | None) -> bool:
    return course is not None and 0 < request.size < COMPACTED * course.size


def features_of(request: ChatRequest) -> dict[str, int]:
    """What the step head knows of a step (`router.step_head.FEATURES`)."""
    failed, repeated = _failures(request)
    results = [m for m in request.messages if m.get("role") in RESULTS]
    last = text_size(results[-1].get("content")) if request.in_tool_calls else 0
    counts = (len(request.messages), len(results), failed, repeated, last)
    return dict(zip(FEATURES, counts, strict=True))


def went_on(
    course: Course | None,
    request: ChatRequest,
    model: str,
    usage: Usage,
    now: float,
    prices: Mapping[str, CachePrice],
    strong: str,
) -> Course:
    """The course when `model` has answered. prices: of the pool for this request."""
    step = replace(step_of(request, course, now), prompt=float(usage.prompt_tokens))
    before = course or Course(model)
    state = before.state(model, "") if course is not None and course.steps else SessionState()
    # What a compaction has left of the prompt is what was read of it.
    kept = float(usage.cached_tokens) if _is_compacted(request, before) else math.inf
    pair = Pair(prices[model], prices[strong])
    new = state.after(step, pair, True, usage.completion_tokens, kept)
    mine = Cached(_held(usage, prices[model], float(new.strong.tokens)), new.strong.until)
    caches = {
        name: Cached(min(each.tokens, kept), each.until)
        for name, each in before.caches.items()
        if each.until >= now and name != model
    }
    newest = list(caches.items())[-_MOST_CACHES:]
    return Course(
        model=model,
        steps=int(new.steps),
        points=int(new.points),
        prompt=step.prompt,
        added=float(new.added),
        output=float(new.output),
        escalated=before.escalated or bool(step.stuck and model == strong),
        size=request.size,
        moved=before.moved or (before.steps > 0 and before.model != model),
        caches={**dict(newest), model: mine},
        always=mine if model == strong else prices[strong].after(step.prompt, now),
    )


def had_it_always(course: Course, usage: Usage, price: CachePrice, now: float) -> Usage:
    """What the strong model's provider would have counted, had it answered the whole session."""
    prompt = usage.prompt_tokens
    read = written = 0
    if prompt >= price.rules.min_tokens:
        read = int(course.always.readable(prompt, now))
        written = prompt - read
    raw: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": read},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "cache_read_input_tokens": read,
    }
    if price.write != price.price.input:
        raw["cache_creation_input_tokens"] = written
        raw["prompt_tokens_details"] |= {"cache_creation_tokens": written}
    return replace(usage, cached_tokens=read, raw=raw)


def mark_of(request: ChatRequest) -> str | None:
    """How long the request asks its prompt to be cached for, "5m" or "1h"; None where it asks for
    no cache, without which some providers (Anthropic) keep none."""
    native = (request.body.get("native") or {}).get("body") or {}
    # Agents mark the system text and the latest messages.
    some = [native, *request.messages[:2], *request.messages[-4:]]
    marks = [
        part["cache_control"]
        for message in some
        for part in (message, *parts_of(message))
        if isinstance(part, Mapping) and isinstance(part.get("cache_control"), Mapping)
    ]
    if not marks:
        return None
    return "1h" if any(mark.get("ttl") == "1h" for mark in marks) else "5m"


def _held(usage: Usage, price: CachePrice, expected: float) -> float:
    """Tokens that are cached now, as the provider counted where it counts what it writes."""
    raw: Any = usage.raw or {}
    written = raw.get("cache_creation_input_tokens")
    if not price.rules.marked or usage.estimated or not isinstance(written, int):
        return expected
    return float(usage.cached_tokens + written)


def _failures(request: ChatRequest) -> tuple[int, int]:
    """How many results of tools failed in a row up to here, and how many of them, from the last one
    back, were the same call with the same words."""
    failed = repeated = 0
    same, last = True, None
    waiting: list[tuple[object, str]] = []  # results whose call comes next on the way back
    for message in reversed(request.messages):
        role = message.get("role")
        if role in RESULTS:
            content = message.get("content")
            text = content if isinstance(content, str) else json.dumps(content, default=str)
            if not is_failure(text):
                break
            failed += 1
            waiting.append((message.get("tool_call_id") or message.get("name"), text))
        elif role == "assistant":
            made = _calls(message)
            for id, text in waiting:
                this = (made.get(id), text)
                last = last or this
                same = same and this == last
                repeated += same
            waiting.clear()
        elif not is_reminder(message):
            break
    return failed, repeated


def _calls(message: Mapping[str, Any]) -> dict[object, str]:
    found: dict[object, str] = {}
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, Mapping) and isinstance(call.get("id"), str):
            found[call["id"]] = str(call.get("function"))
    return found


def _pair(cached: Cached) -> list[float]:
    return [float(cached.tokens), float(cached.until) if math.isfinite(cached.until) else 0.0]
