"""Connections to Redis: of the cache, of sessions and of budgets."""

import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from .errors import bad_setting


def redis_client(
    url: str, socket_s: float, connections: int, turn_s: float | None
) -> redis.asyncio.Redis:
    """A client without retries of its own: a command that was perhaps executed is ours to judge.

    socket_s: how long it waits for an answer; turn_s: how long a request waits for one of the
    `connections`, None for ever. Connects at the first command. Raises ConfigError for a URL that
    is none of Redis.
    """
    try:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=turn_s,
            socket_timeout=socket_s,
            socket_connect_timeout=socket_s,
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):
        # Without the cause, which may quote the password.
        expected = "expected redis://[user:password@]host:port/db, rediss://... or unix://..."
        raise bad_setting("redis_url", f"no address of a Redis; {expected}") from None
    return redis.asyncio.Redis.from_pool(pool)
