"""A fleet as it is run: the command, two workers, Redis, PostgreSQL, and everything going wrong."""

import contextlib
import http.client
import json
import random
import re
import signal
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.running import COMMAND, started
from thriftroute.tests.helpers.servers import postgres_server, redis_server
from thriftroute.tests.helpers.serving import pool


def streamed_text(answer: httpx.Response) -> str:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]", answer.text
    chunks = [json.loads(line) for line in lines]
    assert not any("error" in chunk for chunk in chunks), answer.text
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def test_nothing_is_lost_and_nothing_charged_twice_whatever_fails(tmp_path: Path) -> None:
    """The weak model fails in every way there is, Redis crashes, PostgreSQL goes, and both come
    back: every request is answered, has one record, and its tokens are in the budget once."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    n = 240
    draw = random.Random(0)
    kinds = [
        Fault(),
        Fault(status=500),
        Fault(status=429),
        Fault(drop=True),
        Fault(raw="{not json"),
        Fault(cut=0),
        Fault(hang_s=30.0),
    ]
    weights = [60, 10, 8, 8, 6, 6, 2]
    with StubProvider() as provider, redis_server(keeps=True) as redis, postgres_server() as pg:
        provider.fail(*draw.choices(kinds, weights, k=n), model="weak")
        settings = pool(
            provider.url,
            redis_url=redis.url,
            records={"url": pg.url, "flush_s": 0.1},
            tiers={"all": {"budgets": [{"tokens": 10_000_000, "per": "month"}]}},
            default_tier="all",
            calls={"retries": 0, "timeout_s": 2.0, "first_token_timeout_s": 2.0, "cooldown_s": 0.2},
            server={"port": 0, "workers": 2},
        )
        with started(tmp_path, settings) as running:
            done = 0
            lock = threading.Lock()

            def one(index: int) -> None:
                nonlocal done
                stream = index % 2 == 0
                answer = running.ask(f"Request {index}", stream=stream)
                assert answer.status_code == 200, answer.text
                text = (
                    streamed_text(answer)
                    if stream
                    else answer.json()["choices"][0]["message"]["content"]
                )
                assert text in {"Answer of weak.", "Answer of strong."}
                with lock:
                    done += 1

            def disturb() -> None:
                for at, act in (
                    (n // 8, redis.kill),
                    (n // 4, pg.stop),
                    (n // 2, redis.start),
                    (3 * n // 4, pg.start),
                ):
                    while done < at:
                        time.sleep(0.02)
                    act()

            with ThreadPoolExecutor(13) as threads:
                trouble = threads.submit(disturb)
                for future in [threads.submit(one, index) for index in range(n)]:
                    future.result()
                trouble.result()
            deadline = time.monotonic() + 120
            while True:
                ready = [httpx.get(f"{running.url}/ready").json() for _ in range(8)]
                if not any(r["budgets_degraded"] or r["records_pending"] for r in ready):
                    break
                assert time.monotonic() < deadline, ready
                time.sleep(0.2)
            budgets = httpx.get(f"{running.url}/stats").json()["budgets"]
        engine = sqlalchemy.create_engine(pg.url)
        with engine.connect() as connection:
            rows = [
                dict(row._mapping)
                for row in connection.execute(
                    sqlalchemy.text("SELECT * FROM thriftroute_decisions")
                )
            ]
        engine.dispose()
    assert len(rows) == len({row["id"] for row in rows}) == n
    assert {row["status"] for row in rows} == {200}
    assert {row["model"] for row in rows} == {"weak", "strong"}
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    (budget,) = [b for b in budgets if b["unit"] == "tokens"]
    assert budget["spent"] == tokens
    asked_strong = sum(request.body["model"] == "strong" for request in provider.requests)
    assert asked_strong == sum(row["model"] == "strong" for row in rows)


def test_parallel_requests_of_two_workers_never_overspend(tmp_path: Path) -> None:
    with StubProvider(delay_s=0.05) as provider, redis_server() as redis:
        settings = pool(
            provider.url,
            redis_url=redis.url,
            tiers={"all": {"budgets": [{"tokens": 800, "soft": None}]}},
            default_tier="all",
            server={"port": 0, "workers": 2},
        )
        with started(tmp_path, settings) as running:
            with ThreadPoolExecutor(16) as threads:
                codes = list(
                    threads.map(lambda i: running.ask(f"{i}", max_tokens=20).status_code, range(80))
                )
            (budget,) = httpx.get(f"{running.url}/stats").json()["budgets"]
    assert set(codes) == {200, 429}
    assert 0 < budget["spent"] <= 800
    assert len(provider.requests) == codes.count(200)


def test_sigterm_lets_running_requests_end_and_keeps_their_records(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    with StubProvider(delay_s=1.5) as provider:
        settings = pool(provider.url, records={"url": f"sqlite:///{path}", "flush_s": 60.0})
        with started(tmp_path, settings) as running, ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(running.ask, f"{index}") for index in range(4)]
            while len(provider.requests) < 4:
                time.sleep(0.02)
            running.process.send_signal(signal.SIGTERM)
            answers = [future.result() for future in asked]
            assert [answer.status_code for answer in answers] == [200] * 4
            running.process.wait(300)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        ids = {row[0] for row in connection.execute("SELECT id FROM thriftroute_decisions")}
    assert ids == {answer.headers["x-thriftroute-decision-id"] for answer in answers}


def test_what_shutdown_cannot_wait_for_is_told_and_recorded(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    with StubProvider() as provider:
        said = {"role": "assistant", "content": "a " * 5000}
        provider.always(Fault(pause_s=0.1, message=said), model="weak")
        provider.always(Fault(hang_s=600.0), model="strong")
        settings = pool(provider.url, records={"url": f"sqlite:///{path}", "flush_s": 60.0})
        settings["server"] = {"port": 0, "shutdown_s": 1}
        with started(tmp_path, settings) as running, ThreadPoolExecutor(4) as threads:
            asked = [
                threads.submit(running.ask, "x", model=model, stream=stream)
                for model, stream in (("strong", False), ("strong", True))
            ]
            begun = threads.submit(running.ask, "x", model="weak", stream=True)
            while len(provider.requests) < 3:
                time.sleep(0.02)
            time.sleep(1.5)  # the first pieces have come
            running.process.send_signal(signal.SIGTERM)
            for future in asked:
                answer = future.result()
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "server_shutting_down"
            *chunks, last = begun.result().text.strip().split("\n\n")
            assert chunks
            assert (
                json.loads(last.removeprefix("data: "))["error"]["code"] == "server_shutting_down"
            )
            running.process.wait(300)
        assert not [line for line in running.said if "Traceback" in line or "Error" in line]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT status, error FROM thriftroute_decisions").fetchall()
    assert found == [(503, "server_shutting_down")] * 3


def test_an_idle_connection_is_kept_longer_than_clients_keep_it(tmp_path: Path) -> None:
    with StubProvider() as provider, started(tmp_path, pool(provider.url)) as running:
        host, _, port = running.url.removeprefix("http://").partition(":")
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=300)) as client:
            client.request("GET", "/health")
            assert client.getresponse().read()
            before = client.sock
            time.sleep(6.5)  # httpx gives up after 5
            client.request("GET", "/health")
            assert client.getresponse().status == 200
            assert client.sock is before


def test_ctrl_c_ends_it_in_good_order(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    with StubProvider() as provider:
        settings = pool(provider.url, records={"url": f"sqlite:///{path}", "flush_s": 60.0})
        with started(tmp_path, settings) as running:
            assert running.ask("hello").status_code == 200
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(300) == 0
    assert running.said[5:] == []  # after what it goes by
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM thriftroute_decisions").fetchone() == (1,)


def test_workers_log_as_one_process_does_and_nothing_that_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with StubProvider() as provider:
        served = {"port": 0, "workers": 2, "access_log": True}
        swapped = {"strong": "weak", "weak": "strong", "server": served}
        # What is of no type that an answer may have: LiteLLM takes it for a failure.
        provider.fail(Fault(message={"role": "assistant", "content": {"a": "walrus"}}))
        with started(tmp_path, pool(provider.url, **swapped)) as running:
            assert running.ask("hello").status_code == 200
            assert provider.requests[-1].api_key == "provider-key"
            # No file that a kill -9 would leave behind has a key in it.
            files = [path for path in temporary.rglob("*") if path.is_file()]
            assert files  # of the metrics
            assert not [path for path in files if b"provider-key" in path.read_bytes()]
    assert "walrus" not in "".join(running.said)
    assert any(
        re.match(r"[\d-]{10} [\d:,]{12} WARNING model 'strong' failed: ", line)
        for line in running.said
    )
    facts = [" ".join(line.split()) for line in running.said[:6]]
    assert facts[:5] == [
        f"page: {running.url}/",
        f"config: {tmp_path / 'thriftroute.yaml'}",
        "router: mf, threshold 0.5, as configured",
        "shadow: off",
        "records: none are kept",
    ]
    assert facts[5].startswith(
        "warning: the weak model strong costs more than the strong one, weak: "
    )
    (access,) = [line for line in running.said if " INFO key=anonymous tenant=default " in line]
    assert " asked=router-mf-1.0 model=weak " in access
    assert "hello" not in access


def test_a_port_in_use_and_a_bad_config_end_with_a_sentence(tmp_path: Path) -> None:
    with StubProvider() as provider:
        port = int(provider.url.split(":")[2].split("/")[0])
        config = tmp_path / "c.yaml"
        config.write_text(json.dumps(pool(provider.url, server={"port": port})))
        taken = subprocess.run(
            [*COMMAND, "--config", str(config)], check=False, capture_output=True, text=True
        )
        assert taken.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}" in taken.stderr
        config.write_text("models:\n  - name: a\n    prize: 3\nstrong: a\nweak: a\n")
        wrong = subprocess.run(
            [*COMMAND, "--config", str(config)], check=False, capture_output=True, text=True
        )
    assert wrong.returncode == 2
    assert "c.yaml:3: models[0].prize" in wrong.stderr
    assert "Traceback" not in taken.stderr + wrong.stderr
