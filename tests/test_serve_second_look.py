"""The second look in the server: what is asked, returned, charged, recorded and counted."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from thriftroute.errors import ConfigError
from thriftroute.router.second_look import LookPolicy
from thriftroute.serve.api.app import create_app
from thriftroute.serve.config.settings import Config

from .helpers.looking import SECOND, completion, fit, with_policy, write_rows
from .helpers.raw_provider import DONE, STREAM, RawProvider, event
from .helpers.serving import Serving, pool, serving

HI = [{"role": "user", "content": "What is number 7 of the list?"}]


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that looks at everything, by confidence."""
    folder = tmp_path_factory.mktemp("look")
    fit(write_rows(folder / "rows.jsonl", 200, tells=True), folder / "trained")
    return with_policy(folder / "trained", LookPolicy(0.0, 2.0, 0.5), folder / "looks")


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by the agreement of a second model too."""
    folder = tmp_path_factory.mktemp("agree")
    data = write_rows(folder / "rows.jsonl", 200, tells=True)
    fit(data, folder / "trained", second=SECOND)
    return with_policy(folder / "trained", LookPolicy(0.0, 2.0, 0.5), folder / "looks")


def settings(bundle: Path, url: str, path: Path | None = None, **look: Any) -> dict[str, Any]:
    records = {"url": None if path is None else f"sqlite:///{path}"}
    calls = {"retries": 0, "second_look": {"enabled": True, **look}}
    router = {"name": "fast", "checkpoint_path": str(bundle)}
    return pool(url, router=router, records=records, calls=calls)


def ask(server: Serving, **more: Any) -> httpx.Response:
    body = {"model": "auto", "messages": HI, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)


def decisions(server: Serving, n: int) -> list[dict[str, Any]]:
    """The latest `n` decisions, the first of them first, once they are written."""
    for _ in range(1000):
        rows = httpx.get(f"{server.url}/decisions").json()["decisions"]
        if len(rows) >= n:
            return list(reversed(rows))[-n:]
    raise AssertionError("the decisions were not written")


def models(provider: RawProvider) -> list[str]:
    return [request["model"] for request in provider.requests]


@pytest.mark.parametrize("stream", [False, True])
def test_a_sure_answer_stays_and_an_unsure_one_escalates(
    looking: Path, tmp_path: Path, stream: bool
) -> None:
    streamed = (STREAM, event({"content": "7"}) + event({}, "stop") + DONE)
    strong = streamed if stream else completion("7")
    answers = [completion("7", 0.99), completion("8", 0.3), strong]
    with (
        RawProvider(*answers) as provider,
        serving(settings(looking, provider.url, tmp_path / "r.db")) as server,
    ):
        stays, escalates = ask(server, stream=stream), ask(server, stream=stream)
        rows = decisions(server, 2)
        metrics = httpx.get(f"{server.url}/metrics").text
        escalated = httpx.get(f"{server.url}/decisions", params={"escalated": "1"}).json()
    assert models(provider) == ["weak", "weak", "strong"]
    assert provider.requests[0]["logprobs"] is True and "logprobs" not in provider.requests[2]
    assert stays.headers["x-thriftroute-model"] == "weak"
    assert stays.headers["x-thriftroute-escalated"] == "false"
    assert float(stays.headers["x-thriftroute-look"]) < 0.5
    assert escalates.headers["x-thriftroute-model"] == "strong"
    assert escalates.headers["x-thriftroute-escalated"] == "true"
    assert "would not do" in escalates.headers["x-thriftroute-reason"]
    assert '"logprobs":{' not in stays.text.replace(" ", "")
    assert [row["escalated"] for row in rows] == [False, True]
    assert rows[0]["look"] < 0.5 <= rows[1]["look"]
    said = dict(rows[0]["steps"])["second look"]
    assert "confidence" in said and "threshold" in said
    # Both calls are paid for, and the saving is what is left of the strong model's price.
    assert rows[1]["cost"] > rows[1]["strong_cost"] > rows[0]["cost"]
    assert [a["model"] for a in rows[1]["attempts"]] == ["weak", "strong"]
    assert 'thriftroute_second_looks_total{outcome="escalated"} 1.0' in metrics
    assert 'thriftroute_second_looks_total{outcome="stayed"} 1.0' in metrics
    assert [row["id"] for row in escalated["decisions"]] == [rows[1]["id"]]


def test_a_client_that_asked_for_log_probabilities_keeps_them(looking: Path) -> None:
    with (
        RawProvider(completion("7", 0.99)) as provider,
        serving(settings(looking, provider.url)) as server,
    ):
        answer = ask(server, logprobs=True).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["logprob"] < 0


def test_a_wish_of_the_request_is_routed_by_the_prompt_alone(looking: Path, tmp_path: Path) -> None:
    wishes = [{"model": "router-fast-1"}, {"model": "weak"}, {"metadata": {"threshold": 1}}]
    with (
        RawProvider(completion("8", 0.3)) as provider,
        serving(settings(looking, provider.url, tmp_path / "r.db")) as server,
    ):
        for wish in wishes:
            answer = ask(server, **wish)
            assert answer.headers["x-thriftroute-model"] == "weak"
            assert "x-thriftroute-escalated" not in answer.headers
        rows = decisions(server, len(wishes))
    assert {(row["look"], row["escalated"]) for row in rows} == {(None, None)}
    assert models(provider) == ["weak"] * 3
    assert all("logprobs" not in request for request in provider.requests)


def test_a_second_answer_is_asked_for_and_charged(agreeing: Path, tmp_path: Path) -> None:
    with RawProvider(completion("It is 7.", 0.9)) as provider:
        config = settings(agreeing, provider.url, tmp_path / "r.db")
        with pytest.raises(ConfigError, match=r"compares with answers of 'openai/second': add it"):
            create_app(Config.model_validate(config))
        second = {**config["models"][1], "name": "cheap", "model": SECOND}
        config["models"] = [*config["models"], second]
        with serving(config) as server:
            answer = ask(server, n=2)
            (row,) = decisions(server, 1)
    assert answer.status_code == 200 and row["escalated"] is False
    assert sorted(models(provider)) == ["second", "weak"]
    assert [r.get("n") for r in sorted(provider.requests, key=lambda r: r["model"])] == [None, 2]
    assert [(a["model"], a.get("beside", False)) for a in row["attempts"]] == [
        ("cheap", True),
        ("weak", False),
    ]
    single = 1e-6 * (1 + 2)  # a token in, a token out
    assert row["cost"] == pytest.approx(2 * single)


def test_a_second_model_that_may_not_see_a_request_is_not_asked(agreeing: Path) -> None:
    with RawProvider(completion("It is 7.", 0.3)) as provider:
        config = settings(agreeing, provider.url)
        second = {**config["models"][1], "name": "cheap", "model": SECOND}
        config["models"] = [*config["models"], second]
        config |= {"tiers": {"own": {"models": ["strong", "weak"]}}, "default_tier": "own"}
        with serving(config) as server:
            answer = ask(server)
    assert models(provider) == ["weak"]
    assert "x-thriftroute-escalated" not in answer.headers


def test_the_cache_keeps_what_the_client_got_apart_from_answers_without_a_look(
    looking: Path,
) -> None:
    answers = [completion("8", 0.3), completion("7"), completion("9", 0.3)]
    with RawProvider(*answers) as provider:
        config = {**settings(looking, provider.url), "cache": {"backend": "memory"}}
        with serving(config) as server:
            first, again, weak = ask(server), ask(server), ask(server, model="router-fast-1")
    assert models(provider) == ["weak", "strong", "weak"]
    said = [a.json()["choices"][0]["message"]["content"] for a in (first, again, weak)]
    assert said == ["7", "7", "9"]
    assert again.headers["x-thriftroute-cache"] == "hit"


def test_budgets_and_max_cost_count_all_calls(looking: Path) -> None:
    with RawProvider(completion("8", 0.3)) as provider:
        config = settings(looking, provider.url)
        with serving(config) as server:
            # Strong alone takes at most 20 USD a million of 100 tokens, and a little: .00203.
            tight = ask(server, max_tokens=100, metadata={"max_cost": 0.0021})
            loose = ask(server, max_tokens=100, metadata={"max_cost": 0.01})
        config["tiers"] = {"free": {"budgets": [{"usd": 0.0021, "soft": None}]}}
        config["default_tier"] = "free"
        with serving(config) as server:
            refused = ask(server, max_tokens=100)
            named = ask(server, max_tokens=100, model="weak")
    assert tight.headers["x-thriftroute-model"] == "weak"
    assert "x-thriftroute-escalated" not in tight.headers
    assert loose.headers["x-thriftroute-escalated"] == "true"
    assert refused.status_code == 429 and named.status_code == 200


def test_where_strong_fails_the_weak_answer_is_given(looking: Path) -> None:
    failing = b'{"error": {"message": "no", "type": "invalid_request_error"}}'
    with (
        RawProvider(completion("8", 0.3), failing) as provider,
        serving(settings(looking, provider.url)) as server,
    ):
        answer = ask(server)
    assert answer.json()["choices"][0]["message"]["content"] == "8"
    assert answer.headers["x-thriftroute-model"] == "weak"


def test_a_stream_that_starts_first_is_only_recorded(looking: Path, tmp_path: Path) -> None:
    token = {"token": "7", "logprob": -2.0, "bytes": None, "top_logprobs": []}
    said = {"index": 0, "delta": {"content": "7"}, "logprobs": {"content": [token]}}
    streamed = event({}, choices=[{**said, "finish_reason": None}]) + event({}, "stop") + DONE
    with (
        RawProvider((STREAM, streamed)) as provider,
        serving(settings(looking, provider.url, tmp_path / "r.db", stream_first=True)) as server,
    ):
        answer = ask(server, stream=True)
        (row,) = decisions(server, 1)
    assert answer.headers["x-thriftroute-model"] == "weak"
    assert "x-thriftroute-escalated" not in answer.headers
    assert models(provider) == ["weak"] and provider.requests[0]["logprobs"] is True
    assert '"content":"7"' in answer.text and "-2.0" not in answer.text
    assert row["escalated"] is False and row["look"] >= 0.5
    seen = dict(row["steps"])["second look"]
    assert "the stream had begun" in seen and "confidence -1.85" in seen  # log odds of exp(-2)


def test_feedback_names_a_wrong_look(looking: Path, tmp_path: Path) -> None:
    with (
        RawProvider(completion("7", 0.99)) as provider,
        serving(settings(looking, provider.url, tmp_path / "r.db")) as server,
    ):
        id = ask(server).headers["x-thriftroute-decision-id"]
        decisions(server, 1)
        url = f"{server.url}/feedback"
        bad = httpx.post(url, json={"id": id, "value": "bad", "look": "odd"})
        good = httpx.post(url, json={"id": id, "value": "bad", "look": "wrong"})
        (row,) = decisions(server, 1)
    assert bad.status_code == 400 and "look" in bad.json()["error"]["message"]
    assert good.status_code == 200
    assert (row["look_wrong"], row["feedback"]) == (True, 0.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"calls": {"second_look": {"enabled": True}, "cascade": {"enabled": True}}}, "cascade"),
        ({"router": {"name": "mf"}}, "no second look|none of the routers"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    looking: Path, change: dict[str, Any], says: str
) -> None:
    config = {**settings(looking, "http://127.0.0.1:1/v1"), **change}
    with pytest.raises(ConfigError, match=says):
        create_app(Config.model_validate(config))
