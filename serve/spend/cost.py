"""What a call used and what it cost, priced by LiteLLM's own cost functions."""

import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...providers.completion import is_loaded
from ...providers.prices import call_cost, plain_cost
from ..registry import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """Tokens of one call. `cached_tokens` are part of the prompt's, `reasoning_tokens` of the rest.

    `estimated`: counted here, because the provider said nothing. `raw` is what the provider said,
    whole: LiteLLM prices more of it (cache writes, audio). `service_tier` may change the price.
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
    """Usage of a chat completion, or of a usage itself. None where there is none, counts that are
    no counts, or zeros, which some providers send for "not counted"."""
    whole = answer if isinstance(answer, Mapping) else {}
    usage = whole.get("usage") if "usage" in whole or "choices" in whole else whole
    if not isinstance(usage, Mapping):
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


def recorded_usage(row: Mapping[str, Any]) -> Usage:
    """Usage of a decision, by its record."""
    kinds = ("prompt", "completion", "cached", "reasoning")
    return Usage(*(row[f"{kind}_tokens"] for kind in kinds))


def cost_of(model: Model, usage: Usage) -> float:
    """USD of one call that `model` answered. Never raises, and never $0 for a priced model.

    LiteLLM prices it, where it is more than text at plain rates. Where that fails, or has no price
    (a map that changed under us), the model's own three prices are applied, and the log says so
    once a model.
    """
    plain = _plain(model, usage)
    try:
        cost = call_cost(model.cost_key, _told(usage), usage.service_tier)
        why = f"a cost of {cost}"
    except Exception as error:  # noqa: BLE001 - a price must not fail a request that was answered
        cost, why = math.nan, type(error).__name__
    if math.isfinite(cost) and cost >= 0 and (cost > 0 or plain <= 0):
        return cost
    _tell_once(model.name, model.cost_key, why)
    return plain


def cost_here(model: Model, usage: Usage) -> float | None:
    """`cost_of`; None where it has to load LiteLLM, which takes seconds: never on the loop."""
    cost = plain_cost(model.cost_key, _told(usage), usage.service_tier)
    if cost is not None and (cost > 0 or _plain(model, usage) <= 0):
        return cost
    return cost_of(model, usage) if cost is not None or is_loaded() else None


def _plain(model: Model, usage: Usage) -> float:
    plain = model.estimate(usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens)
    return plain + usage.cached_tokens * model.cached_input_price


def _told(usage: Usage) -> Mapping[str, Any]:
    return usage.raw or {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


@functools.lru_cache(maxsize=1000)
def _tell_once(name: str, cost_key: str, why: str) -> None:
    text = "model %r: LiteLLM priced %r with %s; input, output and cached prices of the pool apply"
    logger.warning(text, name, cost_key, why)


def _count(value: object) -> int | None:
    """A count of tokens; None for anything else, also for True. Missing is 0."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value >= 0 else None


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return _count(details.get(name) if isinstance(details, Mapping) else None) or 0
