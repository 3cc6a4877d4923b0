"""Budgets hold: in parallel, between processes, and while Redis comes and goes."""

import asyncio
import contextlib
import functools
import json
import logging
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")
pytest.importorskip("pydantic")
pytest.importorskip("httpx")

import redis
from thriftroute.serve.config.settings import (
    BudgetSettings,
    Config,
    ModelSettings,
    RecordSettings,
    TierSettings,
)
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.request import Principal
from thriftroute.serve.spend.budgets import Budget, spent_before
from thriftroute.serve.spend.counters import Reservation
from thriftroute.serve.spend.ledger import PATIENCE_S, PROBE_S, BudgetLedger, make_ledger
from thriftroute.tests.helpers.servers import Server, redis_server

ACME = Principal(key="k1", tenant="acme", tier="pro")
NOON = 4_099_032_000.0  # 2099-11-22, 12:00 UTC: Redis itself drops what is past


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Where a ledger counts: every test that takes this runs on both."""
    if request.param == "memory":
        return None
    server: Server = request.getfixturevalue("shared_redis")
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


LONG_S = 20.0  # on a machine under load a healthy Redis may take its time


def test_a_request_waits_no_longer_than_users_are_promised() -> None:
    assert PATIENCE_S < 0.25


@contextlib.asynccontextmanager
async def opened(url: str | None, **options: Any) -> AsyncIterator[BudgetLedger]:
    ledger = BudgetLedger(url, **{"patience_s": LONG_S, **options})
    try:
        yield ledger
    finally:
        await ledger.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def tier(*budgets: BudgetSettings, **fields: Any) -> TierSettings:
    return TierSettings(budgets=budgets, **fields)


async def refused(ask: Awaitable[Reservation]) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await ask
    assert (caught.value.status, caught.value.code) == (429, "budget_exceeded")
    return caught.value


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        await asyncio.sleep(0.02)


async def spent(ledger: BudgetLedger) -> list[tuple[float, float]]:
    """(spent, held) of all budgets."""
    return [(row["spent"], row["held"]) for row in await ledger.state()]


def test_what_is_reserved_is_held_and_what_is_settled_is_spent(url: str | None) -> None:
    async def main() -> None:
        async with opened(url, clock=Clock()) as ledger:
            pro = tier(BudgetSettings(usd=1.0), BudgetSettings(tokens=1000, scope="key"))
            first = await ledger.reserve(ACME, pro, usd=0.4, tokens=300)
            second = await ledger.reserve(ACME, pro, usd=0.2, tokens=100)
            assert (first.level, second.level) == ("open", "open")
            assert sorted(await spent(ledger)) == [(0, pytest.approx(0.6)), (0, 400)]
            await ledger.settle(first, 0.25, 250)
            await ledger.settle(second, 0.0, 0)
            assert sorted(await spent(ledger)) == [(pytest.approx(0.25), 0), (250, 0)]

    run(main())


def test_a_reservation_ends_once(url: str | None) -> None:
    async def main() -> None:
        async with opened(url, clock=Clock()) as ledger:
            pro = tier(BudgetSettings(usd=1.0))
            one = await ledger.reserve(ACME, pro, usd=0.4, tokens=0)
            await asyncio.gather(*(ledger.settle(one, 0.25, 0) for _ in range(5)))
            await ledger.settle(one, 0.0, 0)
            assert await spent(ledger) == [(0.25, 0)]

    run(main())


def test_without_a_tier_nothing_is_counted(url: str | None) -> None:
    async def main() -> None:
        async with opened(url) as ledger:
            free = await ledger.reserve(Principal(), None, usd=1e6, tokens=10**9)
            assert free.level == "open"
            await ledger.settle(free, 1e6, 10**9)
            assert await ledger.state() == []

    run(main())


def test_the_soft_share_leaves_only_the_weak_model_and_the_limit_nobody(url: str | None) -> None:
    async def main() -> None:
        async with opened(url, clock=Clock()) as ledger:
            pro = tier(BudgetSettings(usd=1.0, soft=0.8))

            def ask(usd: float, weak: float) -> Awaitable[Reservation]:
                return ledger.reserve(ACME, pro, usd=usd, tokens=0, weak_usd=weak)

            first = await ask(0.8, 0.08)
            assert first.level == "open"
            await ledger.settle(first, 0.8, 0)
            soft = await ask(0.1, 0.01)
            assert soft.level == "soft", "the soft share is reached"
            assert await spent(ledger) == [(0.8, 0.01)], "only the weak model's cost is held"
            await ledger.settle(soft, 0.15, 0)
            error = await refused(ask(5.0, 0.06))
            assert "$0.05 left, less than the $0.06" in str(error)
            assert error.headers["retry-after"] == str(12 * 3600)
            assert (await ask(5.0, 0.05)).level == "soft"
            assert (await ask(0.0, 0.0)).level == "soft", "what costs nothing fits in any budget"

    run(main())


def test_a_request_too_dear_for_what_is_left_goes_to_the_weak_model(url: str | None) -> None:
    async def main() -> None:
        async with opened(url, clock=Clock()) as ledger:
            pro = tier(BudgetSettings(usd=1.0, soft=0.8))
            early = await ledger.reserve(ACME, pro, usd=1.5, tokens=0, weak_usd=0.1)
            assert early.level == "soft"
            hard = tier(BudgetSettings(usd=1.0, soft=None, scope="key"))
            await refused(ledger.reserve(ACME, hard, usd=1.5, tokens=0, weak_usd=0.1))

    run(main())


def test_all_budgets_of_a_request_are_taken_or_none(url: str | None) -> None:
    async def main() -> None:
        async with opened(url, clock=Clock()) as ledger:
            pro = tier(
                BudgetSettings(usd=1.0, scope="key", soft=None),
                BudgetSettings(usd=1.5, scope="tenant", per="month", soft=None),
            )
            other = Principal(key="k2", tenant="acme", tier="pro")
            await ledger.reserve(ACME, pro, usd=0.9, tokens=0)
            error = await refused(ledger.reserve(other, pro, usd=0.9, tokens=0))
            assert "tenant 'acme'" in str(error)
            rows = {row["name"]: row["held"] for row in await ledger.state()}
            assert rows.get("k2", 0) == 0, "nothing is left behind in the key's own budget"
            assert rows["acme"] == pytest.approx(0.9)
            elsewhere = Principal(key="k3", tenant="other", tier="pro")
            assert (await ledger.reserve(elsewhere, pro, usd=0.9, tokens=0)).level == "open"

    run(main())


def test_a_new_day_starts_anew_and_late_settlements_count_for_the_old(url: str | None) -> None:
    async def main() -> None:
        clock = Clock()
        async with opened(url, clock=clock) as ledger:
            pro = tier(BudgetSettings(tokens=100, soft=None))
            late = await ledger.reserve(ACME, pro, usd=0, tokens=100)
            error = await refused(ledger.reserve(ACME, pro, usd=0, tokens=1))
            assert "2099-11-23T00:00:00Z" in str(error)
            clock.now += 12 * 3600
            assert await ledger.state() == []
            new = await ledger.reserve(ACME, pro, usd=0, tokens=60)
            await ledger.settle(late, 0.0, 100)
            await ledger.settle(new, 0.0, 50)
            assert await spent(ledger) == [(50, 0)]

    run(main())


def test_holds_of_a_process_that_died_lapse(url: str | None) -> None:
    async def main() -> None:
        clock = Clock()
        pro = tier(BudgetSettings(tokens=100, soft=None, per="month"))
        async with opened(url, clock=clock, lease_s=600) as ledger:
            lost = await ledger.reserve(ACME, pro, usd=0, tokens=100)
            clock.now += 500
            await refused(ledger.reserve(ACME, pro, usd=0, tokens=1))
            clock.now += 220
            found = await ledger.reserve(ACME, pro, usd=0, tokens=90)
            # It was only slow, not dead: what it used counts, and the other's hold stays whole.
            await ledger.settle(lost, 0.0, 5)
            assert await spent(ledger) == [(5, 90)]
            await ledger.settle(found, 0.0, 90)
            assert await spent(ledger) == [(95, 0)]

    run(main())


def test_a_changed_limit_applies_at_once_and_is_shown(url: str | None) -> None:
    async def main() -> None:
        async with opened(url, clock=Clock()) as ledger:
            await ledger.reserve(ACME, tier(BudgetSettings(tokens=100)), usd=0, tokens=80)
            more = tier(BudgetSettings(tokens=1000))
            assert (await ledger.reserve(ACME, more, usd=0, tokens=80)).level == "open"
            (row,) = await ledger.state()
            assert (row["limit"], row["held"]) == (1000, 160)

    run(main())


def test_the_tier_table(url: str | None) -> None:
    """free: 50K tokens a day, weak only; pro: USD a month, weak from 80 %; enterprise: no limit."""
    tiers = {
        "free": tier(BudgetSettings(tokens=50_000, scope="key"), weak_only=True),
        "pro": tier(BudgetSettings(usd=20.0, per="month")),
        "enterprise": tier(),
    }

    async def main() -> None:
        async with opened(url, clock=Clock()) as ledger:
            answered = dict.fromkeys(tiers, 0)
            for name, settings in tiers.items():
                who = Principal(key=f"{name}-key", tenant=f"{name}-tenant", tier=name)
                for _ in range(30):
                    try:
                        one = await ledger.reserve(who, settings, usd=1.0, tokens=5000)
                    except RefusedError:
                        continue
                    answered[name] += 1
                    await ledger.settle(one, 1.0, 5000)
            assert answered == {"free": 10, "pro": 20, "enterprise": 30}
            rows = {row["tier"]: row for row in await ledger.state()}
            assert set(rows) == {"free", "pro"}
            assert rows["free"]["resets_at"] == "2099-11-23T00:00:00Z"
            assert rows["pro"]["resets_at"] == "2099-12-01T00:00:00Z"

    run(main())


def test_parallel_requests_overspend_by_no_more_than_those_in_flight(url: str | None) -> None:
    """Each costs up to half more than was reserved for it: nobody knows an answer's length."""
    rng = random.Random(7)
    excess, used, in_flight, most = 0, 0, 0, 0
    admitted = 0

    async def main() -> None:
        async with opened(url, clock=Clock()) as ledger:
            pro = tier(BudgetSettings(tokens=10_000, soft=None))
            gate = asyncio.Semaphore(40)

            async def one() -> None:
                nonlocal excess, used, in_flight, most, admitted
                async with gate:
                    with contextlib.suppress(RefusedError):
                        held = await ledger.reserve(ACME, pro, usd=0, tokens=100)
                        in_flight, admitted = in_flight + 1, admitted + 1
                        most = max(most, in_flight)
                        await asyncio.sleep(rng.random() / 200)
                        tokens = rng.randint(50, 150)
                        used += tokens
                        await ledger.settle(held, 0.0, tokens)
                        in_flight -= 1

            await asyncio.gather(*(one() for _ in range(400)))
            ((total, left),) = await spent(ledger)
            assert (total, left) == (used, 0), "every settlement counts, once"
            assert 10_000 - 100 < total <= 10_000 + 50 * most
            assert most > 10, "the test must run in parallel to mean anything"
            assert admitted < 400
            await refused(ledger.reserve(ACME, pro, usd=0, tokens=100))

    run(main())


WORKER = """
import asyncio, json, random, sys
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.spend.ledger import BudgetLedger
from thriftroute.serve.request import Principal
from thriftroute.serve.config.settings import BudgetSettings, TierSettings

url, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
who = Principal(key=f"k{seed}", tenant="acme", tier="pro")
pro = TierSettings(budgets=(
    BudgetSettings(usd=2.0, soft=None, per="month"),
    BudgetSettings(tokens=10**9, scope="key", soft=None),
))
out = {"spent": 0, "admitted": 0, "refused": 0, "most": 0}

async def main():
    ledger = BudgetLedger(url, patience_s=20.0)
    gate, flying = asyncio.Semaphore(25), 0
    async def one():
        nonlocal flying
        async with gate:
            try:
                held = await ledger.reserve(who, pro, usd=0.01, tokens=100)
            except RefusedError:
                out["refused"] += 1
                return
            flying += 1
            out["most"] = max(out["most"], flying)
            out["admitted"] += 1
            await asyncio.sleep(rng.random() / 100)
            micro = rng.randint(5_000, 15_000)
            out["spent"] += micro
            await ledger.settle(held, micro / 1e6, 100)
            flying -= 1
    await asyncio.gather(*(one() for _ in range(150)))
    out["outages"] = ledger.outages
    await ledger.close()

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
print(json.dumps(out))
"""


def test_processes_that_share_redis_overspend_by_no_more_than_those_in_flight(
    shared_redis: Server,
) -> None:
    with redis.Redis.from_url(shared_redis.url) as client:
        client.flushall()
    command = [sys.executable, "-W", "error", "-c", WORKER, shared_redis.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*command, str(seed)], **pipes) for seed in range(3)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:  # all at once
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        results = [json.loads(worker.communicate(timeout=300)[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    total = sum(each["spent"] for each in results) / 1e6
    in_flight = sum(each["most"] for each in results)
    assert all(each["outages"] == 0 for each in results), "Redis was there all the time"
    assert all(each["refused"] and each["admitted"] for each in results)
    assert 2.0 - 0.01 < total <= 2.0 + 0.005 * in_flight

    async def main() -> None:
        async with opened(shared_redis.url) as ledger:
            rows = {(row["scope"], row["name"]): row for row in await ledger.state()}
            assert rows["tenant", "acme"]["spent"] == pytest.approx(total, abs=1e-9)
            assert rows["tenant", "acme"]["held"] == 0
            for seed, each in enumerate(results):
                assert rows["key", f"k{seed}"]["spent"] == 100 * each["admitted"]

    run(main())


def test_counters_expire_and_share_one_slot_of_a_cluster(shared_redis: Server) -> None:
    async def main() -> None:
        async with opened(shared_redis.url) as ledger:
            pro = tier(BudgetSettings(usd=1.0), BudgetSettings(tokens=10, scope="key", per="month"))
            one = await ledger.reserve(ACME, pro, usd=0.1, tokens=1)
            await ledger.settle(one, 0.1, 1)
            assert ledger.pending == 0

    with redis.Redis.from_url(shared_redis.url) as client:
        client.flushall()
        run(main())
        keys = [key.decode() for key in client.keys("*")]
        assert len(keys) == 4
        assert all(key.startswith("{thriftroute}:") for key in keys)
        forever = [key for key in keys if client.ttl(key) < 0]
        assert forever == ["{thriftroute}:budgets"], "whose entries are removed by their age"


@pytest.mark.parametrize("days", [-40, -2, 2])
def test_a_clock_that_is_days_off_redis_loses_no_counter(shared_redis: Server, days: int) -> None:
    """Each ledger is a server of its own, that remembers nothing of what Redis said before."""
    pro = tier(BudgetSettings(tokens=100, soft=None), BudgetSettings(usd=1.0, per="month"))
    who = Principal(tenant=f"off by {days}", tier="pro")
    noon = time.time() // 86_400 * 86_400 + 43_200

    def clock() -> float:
        return noon + days * 86_400

    async def main() -> None:
        async with opened(shared_redis.url, clock=clock) as ledger:
            one = await ledger.reserve(who, pro, usd=0.1, tokens=60)
            await ledger.settle(one, 0.1, 60)
        async with opened(shared_redis.url, clock=clock) as ledger:
            rows = [row for row in await ledger.state() if row["name"] == who.tenant]
            assert {row["per"]: row["spent"] for row in rows} == {"day": 60, "month": 0.1}
            await refused(ledger.reserve(who, pro, usd=0.1, tokens=60))
            late = await ledger.reserve(who, pro, usd=0.1, tokens=40)
        # One whose clock is right looks, and takes nothing away.
        async with opened(shared_redis.url) as ledger:
            await ledger.state()
        async with opened(shared_redis.url, clock=clock) as ledger:
            await ledger.settle(late, 0.1, 40)
            await refused(ledger.reserve(who, pro, usd=0.1, tokens=1))

    run(main())


def test_redis_and_memory_count_alike(shared_redis: Server) -> None:
    """The same random requests, settlements, lapses and days, step by step on both."""
    rng = random.Random(3)
    refusals: Counter[str] = Counter()

    async def attempt(ask: Awaitable[Reservation]) -> tuple[str, Reservation | None]:
        try:
            held = await ask
        except RefusedError as error:
            return str(error), None
        return held.level, held

    async def main() -> None:
        clock = Clock()
        pro = tier(
            BudgetSettings(usd=1.0, soft=0.7),
            BudgetSettings(tokens=3000, scope="key", per="month", soft=None),
            BudgetSettings(usd=3.0, scope="tier", soft=0.9),
        )
        options = {"clock": clock, "lease_s": 900.0}
        async with opened(shared_redis.url, **options) as a, opened(None, **options) as b:
            held: list[tuple[Reservation, Reservation]] = []
            for _ in range(600):
                clock.now += rng.choice([0, 1, 20, 300, 5000])
                if rng.random() < 0.6 or not held:
                    name = rng.choice("xyz")
                    who = Principal(key=f"k{name}", tenant=rng.choice(["t1", "t2"]), tier="pro")
                    usd = rng.choice([0.0, 0.05, 0.2, 0.4])
                    ask = {"usd": usd, "tokens": rng.randint(0, 60), "weak_usd": usd / 10}
                    (one, left), (two, right) = [
                        await attempt(ledger.reserve(who, pro, **ask)) for ledger in (a, b)
                    ]
                    assert one == two
                    refusals[one if left else "refused"] += 1
                    if left is not None and right is not None:
                        assert left.amounts == right.amounts
                        held.append((left, right))
                else:
                    left, right = held.pop(rng.randrange(len(held)))
                    usd, tokens = rng.random() / 4, rng.randint(0, 90)
                    await a.settle(left, usd, tokens)
                    await b.settle(right, usd, tokens)
                rows = [{json.dumps(row) for row in await ledger.state()} for ledger in (a, b)]
                assert rows[0] == rows[1]

    with redis.Redis.from_url(shared_redis.url) as client:
        client.flushall()
    run(main())
    assert min(refusals["open"], refusals["soft"], refusals["refused"]) > 20, refusals


def test_two_workers_see_each_other(shared_redis: Server) -> None:
    async def main() -> None:
        pro = tier(BudgetSettings(tokens=100, soft=None))
        who = Principal(tenant="two", tier="pro")
        async with opened(shared_redis.url) as a, opened(shared_redis.url) as b:
            held = await a.reserve(who, pro, usd=0, tokens=100)
            await refused(b.reserve(who, pro, usd=0, tokens=1))
            await a.settle(held, 0.0, 0)
            await b.reserve(who, pro, usd=0, tokens=100)

    run(main())


@pytest.mark.parametrize("how", ["stop", "kill", "pause"])
def test_redis_away_is_no_failure_and_what_was_spent_is_merged_once(
    how: str, own_redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    url, patience = own_redis.url, {"patience_s": 1.0}

    async def main() -> None:
        pro = tier(BudgetSettings(tokens=1000, soft=None))
        async with opened(url, **patience) as ledger, opened(url, **patience) as other:
            for _ in range(4):
                one = await ledger.reserve(ACME, pro, usd=0, tokens=100)
                await ledger.settle(one, 0.0, 100)
            before = await ledger.reserve(ACME, pro, usd=0, tokens=100)
            getattr(own_redis, how)()
            many = [ledger.reserve(ACME, pro, usd=0, tokens=100) for _ in range(3)]
            held = await asyncio.gather(*many)
            await asyncio.gather(*(ledger.settle(each, 0.0, 90) for each in held))
            await ledger.settle(before, 0.0, 50)
            assert ledger.degraded
            assert (ledger.outages, ledger.degraded_requests) == (1, 3)
            # 400 known, 270 and 50 spent since: the limit holds without Redis too.
            error = await refused(ledger.reserve(ACME, pro, usd=0, tokens=300))
            assert "280 tokens left" in str(error)
            bridging = await ledger.reserve(ACME, pro, usd=0, tokens=100)
            await until(lambda: "does not answer" in caplog.text)
            own_redis.resume() if how == "pause" else own_redis.start()
            await until(lambda: not ledger.degraded)
            assert ledger.pending == 0
            await ledger.settle(bridging, 0.0, 60)
            assert await spent(ledger) == [(780, 0)]
            # A server that came back empty is raised to what was known of it.
            await refused(other.reserve(ACME, pro, usd=0, tokens=221))
            assert (await other.reserve(ACME, pro, usd=0, tokens=220)).level == "open"

    with caplog.at_level(logging.WARNING):
        run(main())
    said = [record.message for record in caplog.records if record.name.startswith("thriftroute")]
    assert len(said) == 2, said
    assert "budgets are counted in this process" in said[0]
    assert "answers again" in said[1]


def test_under_load_an_outage_loses_nothing_and_charges_nothing_twice() -> None:
    """Hung, stopped and started again while two workers are busy: what was in doubt counts once."""
    used, patience = 0, {"patience_s": 0.15}

    async def main(server: Server) -> None:
        nonlocal used
        pro = tier(BudgetSettings(tokens=10**9), BudgetSettings(usd=10**6, scope="key"))
        async with opened(server.url, **patience) as a, opened(server.url, **patience) as b:
            done = False

            async def client(ledger: BudgetLedger, seed: int) -> None:
                nonlocal used
                rng = random.Random(seed)
                while not done:
                    held = await ledger.reserve(ACME, pro, usd=0.01, tokens=100)
                    await asyncio.sleep(rng.random() / 50)
                    tokens = rng.randint(1, 150)
                    used += tokens
                    await ledger.settle(held, tokens / 1000, tokens)
                    await asyncio.sleep(rng.random() / 50)

            clients = [asyncio.create_task(client([a, b][i % 2], i)) for i in range(12)]
            await asyncio.sleep(0.2)
            for away, back in ((server.pause, server.resume), (server.stop, server.start)):
                await asyncio.to_thread(away)
                await until(lambda: a.degraded and b.degraded)
                await asyncio.sleep(0.2)
                await asyncio.to_thread(back)
                await until(lambda: not (a.degraded or b.degraded))
                await asyncio.sleep(0.1)
            done = True
            await asyncio.gather(*clients)
            await until(lambda: a.pending == b.pending == 0)
            a.patience_s = LONG_S
            rows = {row["scope"]: row for row in await a.state()}
            assert (rows["tenant"]["spent"], rows["tenant"]["held"]) == (used, 0)
            assert rows["key"]["spent"] == pytest.approx(used / 1000, abs=1e-6)
            assert rows["key"]["held"] == 0
            assert min(a.degraded_requests, b.degraded_requests) > 5

    with redis_server(keeps=True) as server:
        run(main(server))
    assert used > 1000


def test_no_request_waits_for_redis_longer_than_its_patience(own_redis: Server) -> None:
    """With none at all, the server is away at once, and the request is counted here."""

    async def main() -> None:
        pro = tier(BudgetSettings(tokens=1000))
        async with opened(own_redis.url, patience_s=1e-6) as ledger:
            one = await ledger.reserve(ACME, pro, usd=0, tokens=100)
            await ledger.settle(one, 0.0, 100)
            assert ledger.degraded
            assert await spent(ledger) == [(100, 0)]
            ledger.patience_s = LONG_S

    run(main())


def test_a_process_that_stands_still_does_not_take_redis_for_away(own_redis: Server) -> None:
    """Else it would count alone, and many first requests at once go past a shared budget."""

    async def main() -> None:
        pro = tier(BudgetSettings(tokens=1000))
        async with opened(own_redis.url, patience_s=2.0) as ledger:
            asked = asyncio.create_task(ledger.reserve(ACME, pro, usd=0, tokens=100))
            for _ in range(2):  # it is connecting
                await asyncio.sleep(0)
            time.sleep(2.2)
            await ledger.settle(await asked, 0.0, 100)
            assert (ledger.outages, ledger.degraded_requests) == (0, 0)
            assert await spent(ledger) == [(100, 0)]

    run(main())


def test_an_outage_takes_no_memory_a_request(own_redis: Server) -> None:
    async def main() -> None:
        pro = tier(BudgetSettings(tokens=10**6))
        async with opened(own_redis.url) as ledger:
            own_redis.stop()
            for _ in range(200):
                one = await ledger.reserve(ACME, pro, usd=0, tokens=10)
                await ledger.settle(one, 0.0, 10)
            assert ledger.pending <= 2
            own_redis.start()
            await until(lambda: not ledger.degraded)
            assert await spent(ledger) == [(2000, 0)]

    run(main())


def test_a_redis_that_takes_no_writes_is_away(own_redis: Server) -> None:
    async def main() -> None:
        pro = tier(BudgetSettings(tokens=1000))
        async with opened(own_redis.url) as ledger:
            with redis.Redis.from_url(own_redis.url) as client:
                client.config_set("maxmemory", 1)
                one = await ledger.reserve(ACME, pro, usd=0, tokens=100)
                await ledger.settle(one, 0.0, 100)
                await asyncio.sleep(3 * PROBE_S)
                assert ledger.degraded
                assert ledger.outages == 1, "it answers pings, and is not taken for healthy"
                client.config_set("maxmemory", 0)
            await until(lambda: not ledger.degraded)
            assert await spent(ledger) == [(100, 0)]

    run(main())


def test_a_client_that_leaves_is_charged_and_holds_nothing(url: str | None) -> None:
    async def main() -> None:
        pro = tier(BudgetSettings(tokens=1000))
        async with opened(url) as ledger:
            # While the settlement is on its way; more of them than there are connections to Redis.
            held = [await ledger.reserve(ACME, pro, usd=0, tokens=10) for _ in range(20)]
            leaving = [asyncio.create_task(ledger.settle(each, 0.0, 4)) for each in held]
            await asyncio.sleep(0)
            for each in leaving:
                each.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            # While the reservation is, at each moment of that.
            for turns in range(8):
                asking = asyncio.create_task(ledger.reserve(ACME, pro, usd=0, tokens=100))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                done = (await asyncio.gather(asking, return_exceptions=True))[0]
                if isinstance(done, Reservation):
                    await ledger.settle(done, 0.0, 0)

            async def settled() -> bool:
                return await spent(ledger) == [(80, 0)]

            end = time.monotonic() + 60
            while not await settled():
                assert time.monotonic() < end, await spent(ledger)
                await asyncio.sleep(0.02)

    run(main())


def test_settlements_still_reach_redis_when_the_server_ends(own_redis: Server) -> None:
    async def main() -> None:
        pro = tier(BudgetSettings(tokens=1000))
        ledger = BudgetLedger(own_redis.url, patience_s=LONG_S)
        held = await ledger.reserve(ACME, pro, usd=0, tokens=100)
        own_redis.stop()
        await ledger.settle(held, 0.0, 70)
        own_redis.start()
        await ledger.close()  # before any look whether Redis is back
        async with opened(own_redis.url) as after:
            await after.reserve(ACME, pro, usd=0, tokens=1)
            assert await spent(after) == [(70, 1)]

    run(main())


def test_what_never_reaches_redis_is_said(
    own_redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        ledger = BudgetLedger(own_redis.url, patience_s=LONG_S)
        held = await ledger.reserve(ACME, tier(BudgetSettings(tokens=9)), usd=0, tokens=1)
        own_redis.stop()
        await ledger.settle(held, 0.0, 1)
        await ledger.close()

    run(main())
    assert "1 settlements never reached Redis" in caplog.text


def test_after_a_restart_a_ledger_in_memory_goes_on_from_the_records(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    from thriftroute.serve.records.record import Record
    from thriftroute.serve.records.writer import Recorder

    def record(id: int, **fields: Any) -> Record:
        named = {"tenant": "acme", "key": "k1", "tier": "pro", "time": NOON - 3600, **fields}
        return Record(str(id), cost=0.5, prompt_tokens=60, completion_tokens=10, **named)

    recorder = Recorder(RecordSettings(url=f"sqlite:///{tmp_path / 'records.db'}"))
    recorder.start()
    kept = [
        record(1),
        record(2),
        record(3, time=NOON - 86400),  # yesterday
        record(4, tenant="other"),
        record(5, tier="free"),
        record(6, cache="hit"),
    ]
    for each in kept:
        recorder.put(each)
    recorder.close(10)
    recorder = Recorder(RecordSettings(url=f"sqlite:///{tmp_path / 'records.db'}"))
    recorder.start()

    async def main() -> None:
        pro = tier(
            BudgetSettings(usd=100, soft=None),
            BudgetSettings(usd=100, per="month", scope="tier", soft=None),
            BudgetSettings(tokens=10_000, scope="key", soft=None),
        )
        history = functools.partial(spent_before, recorder.stats)
        async with opened(None, clock=Clock(), history=history) as ledger:
            ask = [ledger.reserve(ACME, pro, usd=1.0, tokens=5) for _ in range(3)]
            for each in await asyncio.gather(*ask):
                await ledger.settle(each, 1.0, 5)
            rows = {row["scope"]: row["spent"] for row in await ledger.state()}
            # Cached answers cost money once: record 6 has a cost only to show that it is left out.
            assert rows == {"tenant": 4.0, "tier": 5.0, "key": 3 * 70 + 15}

    try:
        run(main())
    finally:
        recorder.close(10)


def test_a_budget_that_was_spent_before_the_start_is_shown_though_it_only_refuses() -> None:
    async def main() -> None:
        async with opened(None, clock=Clock(), history=lambda _: 100) as ledger:
            with pytest.raises(RefusedError, match="is spent"):
                await ledger.reserve(
                    ACME, tier(BudgetSettings(tokens=100, soft=None)), usd=0, tokens=5
                )
            (row,) = await ledger.state()
            assert (row["name"], row["spent"], row["held"]) == ("acme", 100, 0)

    run(main())


def test_records_that_cannot_be_read_stop_no_request(caplog: pytest.LogCaptureFixture) -> None:
    def history(_: Budget) -> int:
        raise OSError("away")

    async def main() -> None:
        async with opened(None, clock=Clock(), history=history) as ledger:
            pro = tier(BudgetSettings(tokens=100))
            for _ in range(2):
                await ledger.settle(await ledger.reserve(ACME, pro, usd=0, tokens=5), 0.0, 0)

    run(main())
    assert caplog.text.count("'acme' counts from 0") == 1
    assert "OSError" in caplog.text


def test_a_window_that_began_after_the_process_has_no_history() -> None:
    asked: list[str] = []

    def history(budget: Budget) -> int:
        asked.append(budget.window)
        return 0

    async def main() -> None:
        clock = Clock()
        async with opened(None, clock=clock, history=history) as ledger:
            pro = tier(BudgetSettings(tokens=100))
            for _ in range(2):
                await ledger.settle(await ledger.reserve(ACME, pro, usd=0, tokens=5), 0.0, 0)
                clock.now += 86400

    run(main())
    assert asked == ["2099-11-22"]


def test_a_config_makes_its_ledger(own_redis: Server) -> None:
    model = ModelSettings(name="m")
    config = Config(models=(model,), strong="m", weak="m", redis_url=own_redis.url)

    async def main() -> None:
        ledger = make_ledger(config)
        await ledger.reserve(ACME, tier(BudgetSettings(tokens=9)), usd=0, tokens=1)
        assert not ledger.degraded
        await ledger.close()

    run(main())
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.keys("{thriftroute}:b:*")
