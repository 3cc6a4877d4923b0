"""What the records know was spent: where a ledger in memory begins after a restart."""

from collections.abc import Callable, Mapping
from typing import Any

from .budgets import Budget, nano

Stats = Callable[..., Mapping[str, Any]]  # `records.writer.Recorder.stats`


def spent_before(stats: Stats, budget: Budget) -> int:
    """Spent in the budget's window so far, in its unit, by the decisions on record.

    Answers from the cache have tokens on record, but used up none. What was decided in the last
    second before a crash may be missing, as it is in the records.
    """
    filters = {"tier": budget.tier, budget.scope: budget.name}
    groups = stats(budget.since, "cache", filters=filters)["groups"]
    called = [group for group in groups if group["name"] not in {"hit", "semantic"}]
    if budget.unit == "usd":
        return nano(sum(float(group["cost"]) for group in called))
    return sum(int(group["prompt_tokens"]) + int(group["completion_tokens"]) for group in called)
