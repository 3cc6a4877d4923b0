"""Alerts go out once, off the hot path, and a webhook that is away does no harm."""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("httpx")
pytest.importorskip("pydantic")

from thriftroute.serve.config.settings import BudgetSettings, TierSettings
from thriftroute.serve.request import Principal
from thriftroute.serve.spend.alerts import Alerts
from thriftroute.serve.spend.budgets import NANO, Budget, window_of
from thriftroute.serve.spend.ledger import BudgetLedger
from thriftroute.tests.helpers.servers import free_port, redis_server

BUDGET = Budget("pro", "tenant", "acme", "day", "usd", 10 * NANO, None, "2026-11-22", 2**32)


class Webhook:
    """A real HTTP server that keeps what it gets, and answers with `statuses`, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[dict[str, Any]] = []
        self.paths: list[str] = []
        left = list(statuses)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805 - self is the webhook
                body = handler.rfile.read(int(handler.headers["content-length"]))
                self.got.append(json.loads(body))
                self.paths.append(handler.path)
                handler.send_response(left.pop(0) if left else 200)
                handler.send_header("content-length", "0")
                handler.end_headers()

            def log_message(handler, format: str, *args: Any) -> None:  # noqa: N805
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hooks/secret-part"

    def __enter__(self) -> "Webhook":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        yield server


async def first(_: Budget, __: str) -> bool:
    return True


def send(alerts: Alerts, *spent: int, claim: Any = first) -> None:
    async def main() -> None:
        for each in spent:
            alerts.passed(BUDGET, each, claim)
        await alerts.close()

    asyncio.run(main())


def test_each_share_is_told_once_with_what_a_reader_needs(webhook: Webhook) -> None:
    alerts = Alerts(webhook.url, (1.0, 0.5, 0.8))
    send(alerts, 4 * NANO, 5 * NANO, 6 * NANO, 9 * NANO, 10 * NANO, 11 * NANO)
    assert [each["share"] for each in webhook.got] == [0.5, 0.8, 1.0]
    event = webhook.got[1]
    assert event["event"] == "budget"
    assert (event["tier"], event["scope"], event["name"]) == ("pro", "tenant", "acme")
    assert (event["limit"], event["spent"], event["per"], event["unit"]) == (10, 9, "day", "usd")
    assert event["text"] == ("thriftroute: tenant 'acme' has spent $9 of $10 a day (80% passed)")
    assert (alerts.sent, alerts.failed) == (3, 0)


def test_one_leap_over_several_shares_tells_them_all(webhook: Webhook) -> None:
    send(Alerts(webhook.url, (0.5, 0.8, 1.0)), 9 * NANO)
    assert [each["share"] for each in webhook.got] == [0.5, 0.8]


def test_who_was_not_first_sends_nothing(webhook: Webhook) -> None:
    async def second(_: Budget, mark: str) -> bool:
        return mark != "0.5"

    send(Alerts(webhook.url, (0.5, 0.8)), 10 * NANO, claim=second)
    assert [each["share"] for each in webhook.got] == [0.8]


def test_errors_of_the_webhook_are_tried_again() -> None:
    with Webhook(500, 429) as webhook:
        alerts = Alerts(webhook.url, (0.5,), backoff_s=0.01)
        send(alerts, 5 * NANO)
    assert len(webhook.got) == 3
    assert (alerts.sent, alerts.failed) == (1, 0)


@pytest.mark.parametrize(
    ("statuses", "posts"), [((404,), 1), ((500, 500, 500), 3), ((302, 200), 1)]
)
def test_what_cannot_be_delivered_is_logged_without_the_webhooks_path(
    statuses: tuple[int, ...], posts: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Webhook(*statuses) as webhook, caplog.at_level(logging.WARNING):
        alerts = Alerts(webhook.url, (0.5,), tries=3, backoff_s=0.01)
        send(alerts, 5 * NANO)
    assert len(webhook.got) == posts
    assert (alerts.sent, alerts.failed) == (0, 1)
    assert f"not delivered to 127.0.0.1: status {statuses[0]}" in caplog.text
    assert "secret-part" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [f"http://127.0.0.1:{free_port()}/s3cret", "http://[::x/s3cret"],
    ids=["refused", "nonsense"],
)
def test_a_webhook_that_is_not_there_does_no_harm(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    alerts = Alerts(url, (0.5,), tries=2, backoff_s=0.01)
    send(alerts, 5 * NANO)
    assert alerts.failed == 1
    assert "s3cret" not in caplog.text


def test_without_a_webhook_the_log_says_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        send(Alerts(None, (0.5,)), 5 * NANO)
    assert "tenant 'acme' has spent $5 of $10 a day" in caplog.text


def test_a_webhook_that_hangs_holds_up_neither_requests_nor_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        ledger = BudgetLedger(alerts=Alerts(f"http://127.0.0.1:{port}/", (0.1, 0.5)))
        tier = TierSettings(budgets=(BudgetSettings(tokens=100, soft=None),))
        for _ in range(10):
            one = await ledger.reserve(Principal(tier="t"), tier, usd=0, tokens=10)
            await ledger.settle(one, 0.0, 10)
        assert ledger.alerts is not None
        await ledger.alerts.close(timeout_s=0.05)
        release.set()
        await ledger.close()
        server.close()
        await server.wait_closed()

    asyncio.run(main())
    assert "2 budget alerts were not sent" in caplog.text


def test_forgotten_windows_leave_nothing_behind() -> None:
    asked: list[str] = []

    async def claim(_: Budget, mark: str) -> bool:
        asked.append(mark)
        return False

    alerts = Alerts(None, (0.5,))
    for now in (0, 0, 2**32 + 1):
        alerts.forget(now)
        send(alerts, 5 * NANO, claim=claim)
    assert asked == ["0.5", "0.5"]


def test_of_several_workers_on_one_redis_one_sends(webhook: Webhook) -> None:
    pytest.importorskip("redis")

    async def main(url: str) -> None:
        tier = TierSettings(budgets=(BudgetSettings(tokens=100, soft=None),))
        workers = [BudgetLedger(url, alerts=Alerts(webhook.url, (0.5, 1.0))) for _ in range(4)]
        for turn in range(20):
            worker = workers[turn % 4]
            one = await worker.reserve(Principal(tier="t"), tier, usd=0, tokens=5)
            await worker.settle(one, 0.0, 5)
        for worker in workers:
            await worker.close()

    with redis_server() as server:
        asyncio.run(main(server.url))
    assert sorted(each["share"] for each in webhook.got) == [0.5, 1.0]
    assert webhook.got[0]["resets_at"][:4] >= "2026"


def test_alerts_of_a_new_window_go_out_again(webhook: Webhook) -> None:
    async def main() -> None:
        now = 1_795_348_800.0
        ledger = BudgetLedger(alerts=Alerts(webhook.url, (0.5,)), clock=lambda: now)
        tier = TierSettings(budgets=(BudgetSettings(tokens=100, soft=None),))
        for _ in range(2):
            one = await ledger.reserve(Principal(tier="t"), tier, usd=0, tokens=60)
            await ledger.settle(one, 0.0, 60)
            now = window_of(now, "day")[1]
        await ledger.close()

    asyncio.run(main())
    assert [each["resets_at"] for each in webhook.got] == [
        "2026-11-23T00:00:00Z",
        "2026-11-24T00:00:00Z",
    ]
