"""What a call used and what it cost, priced by LiteLLM's own cost functions."""

import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...providers.prices import call_cost
from ..registry import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. `cached_tokens` are part of the prompt's, `reasoning_tokens` of the rest.

    `estimated`: counted here, because the provider said nothing (a stream that was cut). `raw` is
    what the provider said, whole: LiteLLM prices more of it than these fields (cache writes,
    audio). `service_tier` is the answer's, where it changes the price ("flex", "priority").
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    service_tier: str | None = None
    raw: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def total_tokens(self) -> int:
        """What token budgets count."""
        return self.prompt_tokens + self.completion_tokens


def usage_of(answer: object) -> Usage | None:
    """Usage of a chat completion, of a stream's last chunk, or of a usage object itself.

    Takes dicts and LiteLLM's or OpenAI's objects. None where there is no usable usage: none at all,
    counts that are no counts, or zeros throughout, which some providers send for "not counted".
    """
    if isinstance(answer, Usage):
        return answer
    whole = _as_dict(answer)
    if whole is None:
        return None
    inner = whole.get("usage")
    usage = _as_dict(inner) if "usage" in whole or "choices" in whole else whole
    if usage is None:
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None or completion is None or prompt + completion == 0:
        return None
    tier = whole.get("service_tier")
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=min(_detail(usage, "prompt_tokens_details", "cached_tokens"), prompt),
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
        service_tier=tier if isinstance(tier, str) else None,
        raw=usage,
    )


def cost_of(model: Model, usage: Usage) -> float:
    """USD of one call that `model` answered. Never raises, and never $0 for a priced model.

    LiteLLM's `cost_per_token` prices it: cached and reasoning tokens, cache writes, prices that
    change with the prompt's length, service tiers. Where that fails, or has no price (a map that
    changed under us), the model's own three prices are applied, and the log says so once a model.
    """
    try:
        cost = call_cost(model.cost_key, _as_told(usage), usage.service_tier)
    except Exception as error:  # noqa: BLE001 - a price must not fail a request that was answered
        return _plain_cost(model, usage, type(error).__name__)
    plain = _own_prices(model, usage)
    if not math.isfinite(cost) or cost < 0 or (cost == 0 and plain > 0):
        return _plain_cost(model, usage, f"a cost of {cost}")
    return cost


def _as_told(usage: Usage) -> Mapping[str, Any]:
    """As OpenAI's API tells it."""
    return usage.raw or {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _own_prices(model: Model, usage: Usage) -> float:
    fresh = usage.prompt_tokens - usage.cached_tokens
    return (
        model.estimate(fresh, usage.completion_tokens)
        + usage.cached_tokens * model.cached_input_price
    )


def _plain_cost(model: Model, usage: Usage, why: str) -> float:
    _tell_once(model.name, model.cost_key, why)
    return _own_prices(model, usage)


@functools.lru_cache(maxsize=1000)
def _tell_once(name: str, cost_key: str, why: str) -> None:
    logger.warning(
        "model %r: LiteLLM priced %r with %s; input, output and cached prices of the pool are used",
        name,
        cost_key,
        why,
    )


def _as_dict(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    dump = getattr(value, "model_dump", None)
    dumped = dump() if callable(dump) else None
    return dumped if isinstance(dumped, dict) else None


def _count(value: object) -> int | None:
    """A count of tokens; None for anything else, also for True. Missing is 0."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value >= 0 else None


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = _as_dict(usage.get(group)) or {}
    return _count(details.get(name)) or 0
