import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from thriftroute.serve.api.admin import PAGE
from thriftroute.serve.api.auth import digest
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import Serving, pool, serving

ADMIN = {"authorization": "Bearer sk-boss"}
ALICE = {"authorization": "Bearer sk-alice"}
BOB = {"authorization": "Bearer sk-bob"}
KEYS = [
    {"name": "boss", "sha256": digest("sk-boss"), "admin": True},
    {"name": "alice", "sha256": digest("sk-alice"), "tenant": "acme", "tier": "pro"},
    {"name": "bob", "sha256": digest("sk-bob"), "tenant": "globex"},
]
TIERS = {
    "pro": {"budgets": [{"usd": 5.0, "per": "month"}]},
    "free": {"weak_only": True},
}
USER = [{"role": "user", "content": "Hi"}]
READ = ["/stats", "/traffic", "/decisions", "/decisions/some-id", "/metrics"]


@pytest.fixture(scope="module")
def provider() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@pytest.fixture(scope="module")
def server(provider: StubProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """With keys and records; acme has had two answers, globex one, and one request failed."""
    folder: Path = tmp_path_factory.mktemp("records")
    settings = pool(
        provider.url,
        keys=KEYS,
        tiers=TIERS,
        records={"url": f"sqlite:///{folder / 'decisions.db'}", "flush_s": 0.02},
    )
    with serving(settings) as running:
        for headers, model in ((ALICE, "strong"), (ALICE, "weak"), (BOB, "weak"), (BOB, "nobody")):
            body = {"model": model, "messages": USER}
            httpx.post(
                f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=300
            )
        running.wait_for_rows(4)
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=300) as made:
        yield made


@pytest.fixture(scope="module")
def open_server(provider: StubProvider) -> Iterator[Serving]:
    """Without any key, on a loopback address."""
    with serving(pool(provider.url)) as running:
        yield running


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def decisions_of(client: httpx.Client, **params: Any) -> list[dict[str, Any]]:
    answer = client.get("/decisions", params=params, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["decisions"]
    return found


@pytest.mark.parametrize("path", READ)
def test_reading_needs_the_admin_key(client: httpx.Client, path: str) -> None:
    assert problem(client.get(path)) == (401, "missing_api_key")
    assert problem(client.get(path, headers=ALICE)) == (403, "not_admin")
    assert client.get(path, headers=ADMIN).status_code in {200, 404}


def test_a_dry_run_needs_the_admin_key(client: httpx.Client) -> None:
    assert problem(client.post("/route", json={"prompt": "Hi"})) == (401, "missing_api_key")
    assert problem(client.post("/route", json={"prompt": "Hi"}, headers=ALICE))[0] == 403


def test_stats_are_totals_groups_pool_and_budgets(client: httpx.Client) -> None:
    report = client.get("/stats", params={"since": "1h", "by": "model"}, headers=ADMIN).json()
    totals = report["totals"]
    assert (totals["requests"], totals["errors"]) == (4, 1)
    assert totals["cost"] + totals["saving"] == pytest.approx(totals["strong_cost"])
    assert (totals["scored"], totals["strong_share"]) == (0, None)  # all named their model
    assert {group["name"]: group["requests"] for group in report["groups"]} == {
        "strong": 1,
        "weak": 2,
        None: 1,
    }
    strong, weak = report["models"]
    assert (strong["name"], strong["input_price"], strong["output_price"]) == ("strong", 10, 20)
    assert (weak["cooling"], weak["latency_s"] > 0) == (False, True)
    router = {"name": "mf", "strategy": "pair", "threshold": 0.5, "strong_share": None}
    assert report["router"] == {**router, "strong": "strong", "weak": "weak"}
    (budget,) = report["budgets"]
    assert (budget["scope"], budget["name"], budget["limit"]) == ("tenant", "acme", 5.0)
    assert 0 < budget["spent"] < totals["cost"]
    assert report["records"] == {"kept": True, "text": False, "pending": 0, "dropped": 0}
    assert (report["notices"], report["shadow"]) == ([], None)
    assert abs(report["now"] - time.time()) < 60


@pytest.mark.parametrize("path", ["/stats", "/decisions"])
@pytest.mark.parametrize(
    ("since", "found"),
    [
        ("", True),
        ("all", True),
        ("24h", True),
        ("1000", True),
        ("2020-01-31", True),
        ("2020-01-31T12:00:00+01:00", True),
        ("2999-01-01", False),
    ],
)
def test_a_time_is_seconds_a_date_or_a_while_ago(
    client: httpx.Client, path: str, since: str, found: bool
) -> None:
    report = client.get(path, params={"since": since}, headers=ADMIN).json()
    n = report["totals"]["requests"] if path == "/stats" else len(report["decisions"])
    assert n == (4 if found else 0)


@pytest.mark.parametrize(
    ("path", "params", "param"),
    [
        ("/stats", {"since": "yesterday"}, "since"),
        ("/stats", {"since": "nan"}, "since"),
        ("/stats", {"until": "1e999"}, "until"),
        ("/stats", {"since": "2020-99-99"}, "since"),
        ("/stats", {"by": "prompt"}, "by"),
        ("/stats", {"colour": "red"}, "colour"),
        ("/decisions", {"limit": "0"}, "limit"),
        ("/decisions", {"limit": "9" * 5000}, "limit"),
        ("/decisions", {"limit": "ten"}, "limit"),
        ("/decisions", {"status": "bad"}, "status"),
        ("/decisions", {"colour": "red"}, "colour"),
        ("/decisions", {"search": "a" * 201}, "search"),
        ("/decisions", {"format": "xml"}, "format"),
        ("/traffic", {"colour": "red"}, "colour"),
    ],
)
def test_what_is_no_time_group_or_filter_is_400(
    client: httpx.Client, path: str, params: dict[str, str], param: str
) -> None:
    answer = client.get(path, params=params, headers=ADMIN)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_decisions_are_listed_newest_first_and_filtered(client: httpx.Client) -> None:
    rows = decisions_of(client)
    assert [row["requested"] for row in rows] == ["nobody", "weak", "weak", "strong"]
    assert [row["tenant"] for row in decisions_of(client, limit=2)] == ["globex", "globex"]
    assert len(decisions_of(client, tenant="acme")) == 2
    assert len(decisions_of(client, model="weak", tenant="acme")) == 1
    assert [row["status"] for row in decisions_of(client, errors="1")] == [404]
    assert len(decisions_of(client, errors="0", status="200")) == 3
    assert len(decisions_of(client, model="")) == 4
    assert [row["requested"] for row in decisions_of(client, search="NOBOD")] == ["nobody"]
    assert decisions_of(client, search="100%") == []


def test_an_export_is_a_line_for_each_decision_oldest_first(client: httpx.Client) -> None:
    params = {"format": "jsonl", "tenant": "acme"}
    answer = client.get("/decisions", params=params, headers=ADMIN)
    assert answer.headers["content-type"].startswith("application/jsonl")
    assert "decisions.jsonl" in answer.headers["content-disposition"]
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert rows == decisions_of(client, tenant="acme")[::-1]
    assert len(rows) == 2
    assert client.get("/decisions", params={"format": "jsonl"}).status_code == 401
    nothing = client.get("/decisions", params={**params, "search": "nowhere"}, headers=ADMIN)
    assert (nothing.status_code, nothing.text) == (200, "")


def test_one_decision_says_why(client: httpx.Client) -> None:
    row = decisions_of(client, model="strong")[0]
    one = client.get(f"/decisions/{row['id']}", headers=ADMIN).json()
    assert one == row
    assert (one["choice"], one["key"], one["tier"]) == ("direct", "alice", "pro")
    assert one["steps"][0][0] == "eligibility"
    assert one["prompt"] is None
    assert problem(client.get("/decisions/none", headers=ADMIN)) == (404, "decision_not_found")


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"value": "good", "comment": "as it should be"}, 1.0),
        ({"value": "bad"}, 0.0),
        ({"score": 0.25}, 0.25),
    ],
)
def test_a_client_rates_its_own_tenants_answers(
    client: httpx.Client, body: dict[str, Any], kept: float
) -> None:
    id = decisions_of(client, tenant="acme")[0]["id"]
    answer = client.post("/feedback", json={"id": id, **body}, headers=ALICE)
    assert answer.json() == {"id": id, "recorded": True}
    row = client.get(f"/decisions/{id}", headers=ADMIN).json()
    assert (row["feedback"], row["feedback_comment"]) == (kept, body.get("comment"))
    assert [r["id"] for r in decisions_of(client, rated="1", tenant="acme")] == [id]


def test_nobody_rates_another_tenants_answers_but_an_admin(client: httpx.Client) -> None:
    id = decisions_of(client, tenant="globex", model="weak")[0]["id"]
    body = {"decision_id": id, "value": "good"}
    assert problem(client.post("/feedback", json=body)) == (401, "missing_api_key")
    assert problem(client.post("/feedback", json=body, headers=ALICE)) == (
        404,
        "decision_not_found",
    )
    posing = {**ALICE, "x-thriftroute-tenant": "globex"}
    assert problem(client.post("/feedback", json=body, headers=posing)) == (403, "wrong_tenant")
    assert client.get(f"/decisions/{id}", headers=ADMIN).json()["feedback"] is None
    assert client.post("/feedback", json=body, headers=ADMIN).status_code == 200
    assert client.get(f"/decisions/{id}", headers=ADMIN).json()["feedback"] == 1.0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"value": "good"}, "id"),
        ({"id": 5, "value": "good"}, "id"),
        ({"id": "x"}, "value"),
        ({"id": "x", "value": True}, "value"),
        ({"id": "x", "value": ["good"]}, "value"),
        ({"id": "x", "value": "great"}, None),
        ({"id": "x", "value": 7}, None),
        ({"id": "x", "value": "good", "comment": 5}, "comment"),
    ],
)
def test_what_is_no_feedback_is_400(
    client: httpx.Client, body: dict[str, Any], param: str | None
) -> None:
    answer = client.post("/feedback", json=body, headers=ALICE)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_dry_run_says_what_would_be_done_and_calls_nobody(
    client: httpx.Client, provider: StubProvider, server: Serving
) -> None:
    before, written = len(provider.requests), server.state.recorder.written
    verdict = client.post("/route", json={"prompt": "Hi"}, headers=ADMIN).json()
    assert verdict["model"] in {"strong", "weak"}
    assert (verdict["choice"] == "strong") == (verdict["score"] >= verdict["threshold"])
    assert verdict["threshold"] == 0.5
    assert verdict["steps"][0][0] == "eligibility"
    assert verdict["estimates"]["strong"] == pytest.approx(10 * verdict["estimates"]["weak"])
    assert verdict["output_tokens"] == 300
    assert verdict["decision_ms"] > 0
    assert len(provider.requests) == before
    assert (server.state.recorder.written, server.state.recorder.pending) == (written, 0)


def test_a_dry_run_takes_all_that_a_request_does(client: httpx.Client) -> None:
    def ask(**body: Any) -> dict[str, Any]:
        answer = client.post("/route", json=body, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    assert ask(messages=USER, model="strong", max_tokens=7)["output_tokens"] == 7
    assert ask(prompt="Hi", metadata={"threshold": 0})["model"] == "strong"
    assert ask(prompt="Hi", model="router-mf-0.0")["model"] == "strong"
    assert ask(prompt="Hi", tier="free", metadata={"threshold": 0})["model"] == "weak"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": "Hi", "messages": USER}, 400, "prompt"),
        ({"prompt": "  "}, 400, "prompt"),
        ({"prompt": ["Hi"]}, 400, "prompt"),
        ({"messages": []}, 400, "messages"),
        ({"prompt": "Hi", "tier": "gold"}, 400, "tier"),
        ({"prompt": "Hi", "tier": {}}, 400, "tier"),
        ({"prompt": "Hi", "metadata": {"threshold": 2}}, 400, "metadata.threshold"),
    ],
)
def test_a_dry_run_is_refused_as_a_request_is(
    client: httpx.Client, body: dict[str, Any], status: int, param: str
) -> None:
    answer = client.post("/route", json=body, headers=ADMIN)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_a_dry_run_of_no_json_or_no_model_is_refused(client: httpx.Client) -> None:
    answer = client.post("/route", content=b"{", headers=ADMIN)
    assert problem(answer) == (400, "invalid_json")
    answer = client.post("/route", json={"prompt": "Hi", "model": "nobody"}, headers=ADMIN)
    assert answer.status_code == 404


def test_metrics_show_requests_and_budgets(client: httpx.Client) -> None:
    answer = client.get("/metrics", headers=ADMIN)
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'thriftroute_requests_total{cache="off",choice="direct",model="strong"' in answer.text
    assert 'thriftroute_budget_limit{name="acme",per="month",scope="tenant"' in answer.text


def test_metrics_can_be_everybodys(provider: StubProvider) -> None:
    settings = pool(provider.url, keys=KEYS, tiers=TIERS, server={"public_metrics": True})
    with serving(settings) as running, httpx.Client(base_url=running.url) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/stats").status_code == 401


def test_the_page_is_everybodys_and_holds_no_data(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.text == PAGE.read_text(encoding="utf-8")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src")


def test_without_keys_the_routes_are_for_this_machine_alone(open_server: Serving) -> None:
    own = {"origin": open_server.url}
    foreign = {"origin": "https://example.com"}
    body = {"prompt": "Hi"}
    with httpx.Client(base_url=open_server.url, timeout=300) as client:
        assert client.get("/stats").json()["totals"]["requests"] == 0
        assert client.get("/decisions").json() == {"decisions": []}
        assert client.post("/route", json=body, headers=own).status_code == 200
        assert problem(client.post("/route", json=body, headers=foreign)) == (403, "no_admin_key")
        proxied = {"x-forwarded-for": "192.0.2.1"}
        assert problem(client.get("/stats", headers=proxied)) == (403, "no_admin_key")
        chat = {"model": "weak", "messages": USER}
        answer = client.post("/v1/chat/completions", json=chat, headers=foreign)
        assert problem(answer) == (403, "foreign_origin")


def test_without_records_no_decision_can_be_rated(open_server: Serving) -> None:
    body = {"id": "none", "value": "good"}
    assert httpx.post(f"{open_server.url}/feedback", json=body).status_code == 404


def test_another_method_is_405(client: httpx.Client) -> None:
    assert problem(client.get("/feedback", headers=ADMIN)) == (405, "method_not_allowed")
    assert problem(client.post("/stats", headers=ADMIN)) == (405, "method_not_allowed")
