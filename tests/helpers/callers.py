"""Callers of a stub provider, for the tests of `serve.calls`."""

import asyncio
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

from thriftroute.serve.config.settings import Config, Transport
from thriftroute.serve.registry import Model
from thriftroute.serve.upstream.answer import Answer
from thriftroute.serve.upstream.caller import Caller
from thriftroute.serve.upstream.failures import UpstreamError

HELLO = [{"role": "user", "content": "hello there"}]
KEY = "sk-very-secret-key-123456"
POOL = ("weak", "strong", "other")
T = TypeVar("T")
# Of the models that are made; tests of both are parametrized by it.
TRANSPORT: ContextVar[Transport] = ContextVar("transport", default="auto")


def make_model(name: str, url: str, *, provider: str = "openai", **changes: Any) -> Model:
    """A model of the stub provider at `url`."""
    values: dict[str, Any] = {
        "name": name,
        "litellm_model": f"{provider}/{name}",
        "cost_key": name,
        "input_price": 1e-6,
        "output_price": 2e-6,
        "cached_input_price": 5e-7,
        "context_window": 1000,
        "max_output_tokens": None,
        "capabilities": frozenset(),
        "tags": frozenset(),
        "bundle_model": None,
        "params": {"api_base": url, "api_key": KEY},
        "transport": TRANSPORT.get(),
        **changes,
    }
    return Model(**values)


def make_pool(url: str, provider: str = "openai") -> dict[str, Model]:
    """weak, strong and other, alike."""
    return {name: make_model(name, url, provider=provider) for name in POOL}


def make_caller(pool: Mapping[str, Model], **calls: Any) -> Caller:
    """A caller that never tries the same model twice, unless `calls` says otherwise."""
    config = Config.model_validate(
        {
            "models": [{"name": name} for name in pool],
            "strong": "strong" if "strong" in pool else next(iter(pool)),
            "weak": next(iter(pool)),
            "calls": {"retries": 0, "timeout_s": 10, **calls},
        }
    )
    return Caller(config, pool)


def tried(outcome: Answer | UpstreamError) -> list[tuple[str, int | None, str | None]]:
    """(model, status, error) of every call that was made."""
    return [(a.model, a.status, a.error) for a in outcome.attempts]


def run(caller: Caller, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, in a loop of its own that leaves no connections behind."""

    async def done() -> T:
        try:
            return await asyncio.wait_for(work, 300)
        finally:
            await caller.close()

    return asyncio.run(done())
