"""The Controller, through real LiteLLM calls to local servers, with real tiny routers."""

import asyncio
import copy
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest
from thriftroute.errors import ConfigError, RoutingError, ThresholdError, UnknownRouterError
from thriftroute.providers.completion import load_litellm
from thriftroute.router.bundle import Bundle
from thriftroute.router.controller import Controller
from thriftroute.router.decision import decision_of
from thriftroute.router.model_name import parse_model_name
from thriftroute.router.routers import CHECKPOINTS
from thriftroute.router.threshold import ThresholdTable
from thriftroute.testing.stub import StubProvider

# LiteLLM silences these itself when it is imported; pytest undoes that for each test.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:Warning"),
]

STRONG, WEAK = "openai/strong", "openai/weak"
HARD, EASY = "prove the hard theorem", "hello"
MESSAGES = [{"role": "user", "content": HARD}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}

# A third-party distribution whose routers do what can go wrong.
ODD_ROUTERS = """
import threading
import numpy as np

class Fixed:
    def __init__(self, value=0.5):
        self.value = value
        self.seen = []
        self.closed = False

    def scores(self, conversations):
        self.seen += conversations
        return [self.value] * len(conversations)

    def close(self):
        self.closed = True

class Raising:
    def scores(self, conversations):
        raise ValueError("cannot read: " + conversations[0].last)

class Waiting:
    \"\"\"Scores when it is told to.\"\"\"
    def __init__(self):
        self.started, self.go = threading.Event(), threading.Event()

    def scores(self, conversations):
        self.started.set()
        if not self.go.wait(300):
            raise TimeoutError
        return np.full(len(conversations), 0.9)
"""


@pytest.fixture
def odd_routers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the distribution: routers fixed, two-dashes-1e, raising, waiting."""
    site = tmp_path / "site"
    info = site / "odd_routers-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "odd_routers.py").write_text(ODD_ROUTERS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd_routers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[thriftroute.routers]\nfixed = odd_routers:Fixed\ntwo-dashes-1e = odd_routers:Fixed\n"
        "raising = odd_routers:Raising\nwaiting = odd_routers:Waiting\n"
    )
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture(scope="module", autouse=True)
def no_loop_of_litellms() -> None:
    """LiteLLM asks for the thread's event loop, which Python 3.11 would create and nobody close;
    once `asyncio.run` has run, there is none to be created."""
    asyncio.run(asyncio.sleep(0))


@pytest.fixture(scope="module")
def provider() -> Iterator[StubProvider]:
    with StubProvider() as running:
        yield running


Make = Callable[..., Controller]


@pytest.fixture
def make(tiny_bundle: Path, provider: StubProvider) -> Iterator[Make]:
    """A Controller with the tiny bundle as `mf`, both models on the local provider."""
    made: list[Controller] = []

    def build(*routers: str, **more: Any) -> Controller:
        config = {"mf": {"checkpoint_path": str(tiny_bundle)}, **more.pop("config", {})}
        keywords = {"api_base": provider.url, "api_key": "key", **more}
        made.append(Controller(list(routers) or ["mf"], STRONG, WEAK, config, **keywords))
        return made[-1]

    yield build
    for controller in made:
        controller.close()


# --- deciding ---


def test_hard_goes_to_strong_and_easy_to_weak(make: Make) -> None:
    client = make()
    hard, easy = client.decide(HARD, "mf", 0.5), client.decide(EASY, "mf", 0.5)
    assert (hard.model, hard.choice) == (STRONG, "strong")
    assert (easy.model, easy.choice) == (WEAK, "weak")
    assert hard.score is not None and easy.score is not None
    assert hard.score > 0.5 > easy.score
    assert hard.reason == f"score {hard.score:.6g} >= threshold 0.5"
    assert easy.reason == f"score {easy.score:.6g} < threshold 0.5"
    assert (hard.router, hard.threshold) == ("mf", 0.5)
    assert hard.latency_ms > 0
    assert client.route(HARD, "mf", 0.5) == STRONG
    assert client.route(EASY, router="mf", threshold=0.5) == WEAK
    assert client.model_counts == {"mf": {}}


def test_a_score_at_the_threshold_is_strong(make: Make, odd_routers: None) -> None:
    client = make("fixed", config={"fixed": {"value": 0.25}})
    assert client.decide("x", "fixed", 0.25).choice == "strong"
    assert client.decide("x", "fixed", np.nextafter(0.25, 1)).choice == "weak"


def test_router_and_threshold_have_defaults(make: Make, tiny_bundle: Path) -> None:
    with pytest.raises(RoutingError, match=r"no threshold.*config of router 'mf'"):
        make().decide(HARD)
    config = {"mf": {"checkpoint_path": tiny_bundle, "threshold": 0.5}}
    client = make(config=config)
    assert client.decide(HARD).threshold == 0.5
    assert client.decide(HARD, threshold=1).choice == "weak"
    assert client.completion(model="router-mf", messages=MESSAGES).model == "strong"
    two = make("mf", "random", config=config)
    assert two.decide(HARD, "mf").choice == "strong"
    with pytest.raises(RoutingError, match=r"no router is named.*mf, random"):
        two.decide(HARD)


ROWS = ((0.0, 1.0), (0.3, 0.6), (1.0, 0.0))  # (strong share, threshold)


def tables(*names: str) -> dict[str, Any]:
    return {name: asdict(ThresholdTable(name, 10, ROWS)) for name in names}


@pytest.fixture
def tabled(make_bundle: Callable[..., Bundle]) -> str:
    """Folder of the tiny bundle with tables; the first, "ordinary", is that of percentiles."""
    lower = {"own": asdict(ThresholdTable("own", 5, ((0.0, 1.0), (0.3, 0.4), (1.0, 0.0))))}
    return str(make_bundle("tabled", thresholds={**tables("ordinary"), **lower}).path)


def test_a_strong_share_is_the_default_and_may_be_asked_for(make: Make, tabled: str) -> None:
    client = make(tabled)
    hard = client.decide(HARD)
    assert (hard.choice, hard.threshold) == ("strong", 0.4)
    assert hard.reason.endswith(">= threshold 0.4, strong share 0.3 by table 'own'")
    assert client.decide(HARD, strong_share=0).choice == "weak"
    assert client.route(EASY, strong_share=1) == STRONG
    assert client.decide(HARD, threshold=0.7).threshold == 0.7
    assert client.threshold_of() == 0.4
    answer = client.completion(model=f"router-{tabled}", strong_share=1, messages=MESSAGES)
    assert decision_of(answer).threshold == 0.0
    answer = asyncio.run(client.acompletion(strong_share=0, messages=MESSAGES))
    assert answer.model == "weak"
    assert asyncio.run(client.adecide(HARD, strong_share=0)).choice == "weak"
    named = client.completion(model=f"router-{tabled}-0.3", strong_share=0, messages=MESSAGES)
    assert decision_of(named).threshold == 0.3  # a threshold in the name wins
    assert make(tabled, strong_share=1).decide(EASY).choice == "strong"
    assert make(tabled, config={tabled: {"strong_share": 1}}).decide(EASY).choice == "strong"
    assert make(tabled, config={tabled: {"threshold": 0.1}}).decide(EASY).threshold == 0.1


def test_a_decision_tells_its_percentile(make: Make, make_bundle: Any, tabled: str) -> None:
    found = make(tabled).decide(HARD)
    assert found.score is not None and found.score > 0.6
    expected = 1 - 0.3 * (1 - found.score) / 0.4  # linear from (0.6, 0.7) to (1, 1)
    assert found.percentile == pytest.approx(expected)
    assert found.percentile_of == "ordinary"
    assert (blank := make(tabled).decide("")).percentile is None and blank.percentile_of is None
    assert make().decide(HARD, "mf", 0.5).percentile is None
    other = str(make_bundle("other", thresholds=tables("validation")).path)
    assert make(other).decide(HARD).percentile_of == "validation"
    # Another pair's scores are not what the table was measured on.
    pair = make(other, config={other: {"weak_model": "other-1"}})
    assert pair.decide(HARD, threshold=0.5).percentile is None
    with pytest.raises(RoutingError, match="no threshold"):
        pair.decide(HARD)


def test_a_wrong_strong_share_is_refused(make: Make, make_bundle: Any, tabled: str) -> None:
    with pytest.raises(RoutingError, match="threshold or strong_share, and not both"):
        make(tabled).decide(HARD, threshold=0.5, strong_share=0.5)
    with pytest.raises(ThresholdError, match=r"strong share 1\.5 is no fraction"):
        make(tabled).decide(HARD, strong_share=1.5)
    with pytest.raises(RoutingError, match="no table of thresholds"):
        make().decide(HARD, strong_share=0.5)
    with pytest.raises(RoutingError, match="names the model 'other' and a router or threshold too"):
        make(tabled).completion(model="other", strong_share=0.5, messages=MESSAGES)
    for config in ({"strong_share": 2}, {"strong_share": 0.1, "threshold": 0.1}):
        with pytest.raises(ConfigError, match="config of router"):
            make(tabled, config={tabled: config})
    with pytest.raises(ConfigError, match=r"config of router 'random'.*no table"):
        make("random", config={"random": {"strong_share": 0.5}})
    with pytest.raises(ConfigError, match="strong share 30 is no fraction"):
        make(tabled, strong_share=30)
    broken = make(str(make_bundle("broken", thresholds={"own": {}}).path))
    assert broken.decide(HARD, threshold=0.5).choice == "strong"
    with pytest.raises(ThresholdError, match="threshold table: expected"):
        broken.decide(HARD)


def test_messages_are_scored_by_the_context(make: Make, odd_routers: None) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": HARD},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": EASY},
    ]
    seen = {}
    for context in ("last", "conversation", "full"):
        client = make("fixed", context=context)
        client.decide(messages, "fixed", 0.5)
        fixed: Any = client.routers["fixed"]
        (seen[context],) = fixed.seen
    assert (seen["last"].history, seen["last"].last) == ("", EASY)
    assert HARD in seen["conversation"].history and not seen["conversation"].system
    assert seen["full"].system == "be brief"
    last, whole = make(context="last"), make()
    assert last.decide(messages, "mf", 0.5).score == last.decide(EASY, "mf", 0.5).score
    assert whole.decide(messages, "mf", 0.5).score != last.decide(messages, "mf", 0.5).score
    with pytest.raises(ConfigError, match="context 'all'"):
        make(context="all")


def test_an_earlier_answers_message_object_is_scored(make: Make) -> None:
    client = make()
    answer = client.completion(router="mf", threshold=0.5, messages=MESSAGES)
    messages = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": EASY}]
    decision = client.decide(messages, "mf", 0.5)
    plain = [*MESSAGES, {"role": "assistant", "content": "Answer of strong."}, messages[-1]]
    assert decision.score is not None
    assert decision.score == client.decide(plain, "mf", 0.5).score


BLANK: list[Any] = [
    "",
    " \n\t ",
    [],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": [IMAGE]}],
    [{"role": "system", "content": "be brief"}],
]


@pytest.mark.parametrize("prompt", BLANK, ids=repr)
@pytest.mark.parametrize("on_error", ["strong", "weak"])
def test_without_text_the_model_of_on_error_answers(
    make: Make, prompt: Any, on_error: str, caplog: pytest.LogCaptureFixture
) -> None:
    decision = make(on_error=on_error).decide(prompt, "mf", 0.5)
    assert (decision.choice, decision.score) == (on_error, None)
    assert decision.reason == "no text to score"
    assert decision.model == (STRONG if on_error == "strong" else WEAK)
    assert caplog.records == []


@pytest.mark.parametrize(
    "prompt",
    [
        "prove " * 180_000,
        "😀👩‍👩‍👧‍👦🇨🇭",
        "证明这个定理",
        "a\x00b\x00",
        "\ud800 alone",
        "\x00",
        "?" * 1_000_000,
    ],
    ids=["1MB", "emoji", "Chinese", "NUL", "surrogate", "NUL alone", "1MB of one word"],
)
def test_odd_text_is_scored(make: Make, prompt: str) -> None:
    decision = make().decide(prompt, "mf", 0.5)
    assert decision.score is not None
    assert 0 < decision.score < 1


@pytest.mark.parametrize(
    "prompt", [None, 5, [5], [{"role": "user", "content": 5}], {"role": "user"}], ids=repr
)
def test_what_is_no_prompt_is_a_scoring_failure(make: Make, prompt: Any) -> None:
    decision = make().decide(prompt, "mf", 0.5)
    assert decision.choice == "strong"
    assert decision.reason.startswith("scoring failed: ")


@pytest.mark.parametrize("on_error", ["strong", "weak"])
def test_a_failing_router_fails_no_request_and_quotes_no_prompt(
    make: Make, odd_routers: None, caplog: pytest.LogCaptureFixture, on_error: str
) -> None:
    client = make("raising", on_error=on_error)
    secret = [{"role": "user", "content": "my secret"}]
    with caplog.at_level(logging.DEBUG, logger="thriftroute"):
        answer = client.chat.completions.create(model="router-raising-0.5", messages=secret)
    decision = decision_of(answer)
    assert decision is not None
    assert (decision.choice, decision.score, decision.router) == (on_error, None, "raising")
    assert decision.reason.startswith("scoring failed: ValueError in odd_routers.py:")
    (record,) = [r for r in caplog.records if r.name.startswith("thriftroute")]
    assert record.levelno == logging.WARNING
    assert decision.reason in record.getMessage()
    assert "secret" not in caplog.text + repr(decision)
    assert answer.choices[0].message.content == f"Answer of {on_error}."


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1, "secret", None])
def test_a_score_that_is_none_is_a_scoring_failure(
    make: Make, odd_routers: None, value: Any
) -> None:
    decision = make("fixed", config={"fixed": {"value": value}}).decide("x", "fixed", 0.5)
    assert (decision.choice, decision.score) == ("strong", None)
    assert decision.reason.startswith("scoring failed: the router returned")
    assert "secret" not in decision.reason


# --- the model string ---


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("router-mf-0.11593", ("mf", 0.11593)),
        ("router-mf-1", ("mf", 1.0)),
        ("router-mf-.5", ("mf", 0.5)),
        ("router-mf-1e-05", ("mf", 1e-5)),
        ("router-mf-1E-1", ("mf", 0.1)),
        ("router-mf--0.5", ("mf", -0.5)),
        ("router-my-own-router-0.5", ("my-own-router", 0.5)),
        ("router-my-own-router-2.5e-1", ("my-own-router", 0.25)),
        ("router-my-own-router-v2-0.5", ("my-own-router-v2", 0.5)),
        ("router-/some/folder-1-0.5", ("/some/folder-1", 0.5)),
        ("router-mf", ("mf", None)),
    ],
)
def test_model_names_are_taken_apart(model: str, expected: tuple[str, float | None]) -> None:
    routers = ["mf", "my-own", "my-own-router", "my-own-router-v2", "/some/folder-1"]
    assert parse_model_name(model, routers) == expected


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ("router-mf-abc", ThresholdError, r"'abc' is no number.*router-<name>-<threshold>.*mf"),
        ("router-mf-", ThresholdError, "is no number"),
        ("router-mf-nan", ThresholdError, "nan"),
        ("router-mf-inf", ThresholdError, "out of range"),
        ("router-mf-1.5", ThresholdError, "out of range"),
        ("router-mf--0.5", ThresholdError, "out of range"),
        ("router-sw_ranking-0.5", UnknownRouterError, "'sw_ranking'; available: mf"),
        ("router-x-y-1e-05", UnknownRouterError, "'x-y'; available: mf"),
        ("mf-0.5", RoutingError, "did you mean 'router-mf'"),
        ("Router_MF", RoutingError, "did you mean 'router-mf'"),
        ("routr-mf-0.5", RoutingError, "did you mean 'router-mf'"),
        ("Auto", RoutingError, "did you mean 'auto'"),
        ("router-", RoutingError, r"router-<name>-<threshold>.*routers: mf"),
        ("router-0.5", RoutingError, r"router-<name>-<threshold>.*routers: mf"),
        ("router-mf", RoutingError, "no threshold"),
        ("", RoutingError, "must be a name"),
        (5, RoutingError, "must be a name"),
    ],
)
def test_a_wrong_model_string_says_what_is_there(
    make: Make, provider: StubProvider, model: Any, error: type[Exception], says: str
) -> None:
    client, before = make(), len(provider.requests)
    with pytest.raises(error, match=says) as caught:
        client.chat.completions.create(model=model, messages=MESSAGES)
    assert isinstance(caught.value, RoutingError)
    with pytest.raises(error, match=says):
        asyncio.run(client.acompletion(model=model, messages=MESSAGES))
    assert len(provider.requests) == before


def test_wrong_keywords_are_routing_errors(make: Make) -> None:
    client = make()
    bad: Any
    for bad in (float("nan"), 2, "0.5", True):
        with pytest.raises(ThresholdError):
            client.decide(HARD, "mf", bad)
    with pytest.raises(UnknownRouterError, match="'bert'; available: mf"):
        client.route(HARD, "bert", 0.5)
    for messages, says in ((None, "no messages"), ("hi", "got str"), ([], "empty"), (["hi"], "0")):
        with pytest.raises(RoutingError, match=says):
            client.completion(model="router-mf-0.5", messages=messages)
    with pytest.raises(RoutingError, match="leave out one"):
        client.completion(model="gpt-4o", router="mf", messages=MESSAGES)


# --- calling ---


def test_routellms_readme_runs_with_only_the_import_changed(
    make: Make, provider: StubProvider
) -> None:
    client = make()  # Controller(routers=["mf"], strong_model=..., weak_model=...)
    response = client.chat.completions.create(
        # This tells RouteLLM to use the MF router with a cost threshold of 0.11593
        model="router-mf-0.11593",
        messages=[{"role": "user", "content": "Hello!"}],
    )
    assert response.choices[0].message.content == "Answer of strong."
    assert response.usage.total_tokens > 0
    assert client.completion(router="mf", threshold=1, messages=MESSAGES).model == "weak"
    asyncio.run(client.chat.completions.acreate(model="router-mf-0.5", messages=MESSAGES))
    asyncio.run(client.acompletion(router="mf", threshold=0.5, messages=MESSAGES))
    assert client.model_counts == {"mf": {WEAK: 1, STRONG: 3}}
    assert client.model_counts["mf"]["never asked"] == 0
    assert {r.api_key for r in provider.requests[-4:]} == {"key"}


CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": HARD}, IMAGE]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    {"role": "user", "content": "and then?"},
]
KEYWORDS: dict[str, Any] = {
    "tools": TOOLS,
    "tool_choice": "none",
    "temperature": 0.25,
    "max_tokens": 7,
    "seed": 3,
    "stop": ["\n\n"],
    "response_format": {"type": "json_object"},
    "extra_body": {"house": {"own": [1, None]}},
    "of_a_provider_of_its_own": {"deep": True},
    "extra_headers": {"X-Tenant": "blue"},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_everything_arrives_untouched(
    make: Make, provider: StubProvider, stream: bool, is_async: bool
) -> None:
    client = make()
    messages, keywords = copy.deepcopy(CONVERSATION), copy.deepcopy(KEYWORDS)
    if stream:
        keywords |= {"stream": True, "stream_options": {"include_usage": True}}
    given = copy.deepcopy(keywords)
    call = {"model": "router-mf-0.5", "messages": messages, **keywords}
    before = len(provider.requests)
    text, usage, decision = ask(client, call, stream, is_async)
    assert text == '{"model": "strong"}'
    assert usage.completion_tokens > 0
    assert decision is not None and decision.choice == "strong"
    (received,) = provider.requests[before:]
    expected = {**given, **given.pop("extra_body"), "model": "strong"}
    del expected["extra_body"], expected["extra_headers"]
    body = dict(received.body)
    sent = body.pop("messages")
    # LiteLLM leaves the null content of a tool call out, which means the same to a provider.
    sent[2].setdefault("content", None)
    assert sent == CONVERSATION
    assert body == expected
    assert received.headers["x-tenant"] == "blue"
    assert messages == CONVERSATION and {k: call[k] for k in KEYWORDS} == KEYWORDS


def ask(
    client: Controller, call: dict[str, Any], stream: bool, is_async: bool
) -> tuple[str, Any, Any]:
    """(text, usage, decision) of a call in one of its four ways."""
    chunks: list[Any] = []
    if is_async:

        async def main() -> Any:
            answer = await client.chat.completions.acreate(**call)
            if stream:
                chunks.extend([chunk async for chunk in answer])
            return answer

        answer = asyncio.run(main())
    else:
        answer = client.chat.completions.create(**call)
        if stream:
            chunks.extend(answer)
    if not stream:
        return answer.choices[0].message.content, answer.usage, decision_of(answer)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    return text, chunks[-1].usage, decision_of(answer)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_round_of_tool_calls(make: Make, is_async: bool) -> None:
    client = make()

    def create(**call: Any) -> Any:
        made = client.acompletion(**call) if is_async else client.completion(**call)
        return asyncio.run(made) if is_async else made

    call = {"model": "router-mf-0.5", "tools": TOOLS}
    first = create(messages=MESSAGES, **call)
    message = first.choices[0].message
    assert message.tool_calls[0].function.name == "weather"
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    second = create(messages=[*MESSAGES, message, result], **call)
    assert second.choices[0].message.content == "Answer of strong."
    decision = decision_of(second)
    assert decision is not None and decision.score is not None


def test_a_plain_name_goes_straight_to_that_model(make: Make, provider: StubProvider) -> None:
    client = make()
    answer = client.completion(model="openai/third", messages=[{"role": "user", "content": ""}])
    decision = decision_of(answer)
    assert decision is not None
    assert (decision.model, decision.choice, decision.router) == ("openai/third", "direct", None)
    assert provider.requests[-1].body["model"] == "third"
    assert client.model_counts == {"mf": {}}


def test_each_model_has_its_own_server_and_key(make: Make, provider: StubProvider) -> None:
    with StubProvider() as other:
        client = make(
            models={
                STRONG: {"api_base": other.url, "api_key": "strong-key", "temperature": 0.5},
                WEAK: {"model": "openai/weak-2026", "extra_headers": {"X-Tier": "cheap"}},
            }
        )
        client.completion(model="router-mf-0.5", messages=MESSAGES)
        client.completion(model="router-mf-0.5", messages=MESSAGES, temperature=0.75)
        client.completion(model="router-mf-1", messages=MESSAGES)
        first, second = other.requests
    weak = provider.requests[-1]
    assert (first.api_key, first.body["temperature"]) == ("strong-key", 0.5)
    assert second.body["temperature"] == 0.75
    assert (weak.api_key, weak.body["model"]) == ("key", "weak-2026")
    assert weak.headers["x-tier"] == "cheap"
    assert "temperature" not in weak.body
    assert client.model_counts == {"mf": {STRONG: 2, WEAK: 1}}


def test_a_local_server_needs_no_key(
    make: Make, provider: StubProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    client = make(api_key=None)
    assert client.completion(model="router-mf-0.5", messages=MESSAGES).model == "strong"
    assert provider.requests[-1].api_key == "none"


def test_a_missing_key_is_one_line_with_the_variables_name(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set the variable OPENAI_API_KEY") as caught:
        make(api_base=None, api_key=None).completion(model="router-mf-0", messages=MESSAGES)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_options_hold_for_one_copy_and_auto_is_the_loaded_router(
    make: Make, provider: StubProvider
) -> None:
    client = make()
    with client.with_options(threshold=0.0, temperature=0.25) as quick:
        create = quick.chat.completions.create
        decision = decision_of(create(model="auto", messages=[{"role": "user", "content": EASY}]))
        assert decision is not None
        assert (decision.model, decision.threshold) == (STRONG, 0.0)
        assert provider.requests[-1].body["temperature"] == 0.25
        assert "mf (threshold 0)" in repr(quick)
        with pytest.raises(ThresholdError):
            quick.with_options(threshold=2)

    async def after() -> str:
        async with client:
            answer = await client.chat.completions.acreate(model="router-mf-1", messages=MESSAGES)
        return answer.model

    assert asyncio.run(after()) == "weak"
    assert "temperature" not in provider.requests[-1].body
    assert client.model_counts["mf"] == {STRONG: 1, WEAK: 1}
    assert "mf (no threshold)" in repr(client)
    assert STRONG in repr(client)


def test_thresholds_of_routellms_readme_are_warned_of(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make().completion(model="router-mf-0.11593", messages=MESSAGES)
    assert "give strong_share=0.5 instead" in caplog.text


def test_the_types_of_answers_are_openais(make: Make) -> None:
    """The type checker does the checking, of this file as of a user's."""
    chat = make().chat.completions
    answer = chat.create(model="router-mf-1", messages=MESSAGES)
    chunks = chat.create(model="router-mf-1", messages=MESSAGES, stream=True)
    assert_type(answer.choices[0].message.content, str | None)
    assert answer.choices[0].message.content == "Answer of weak."
    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert_type(texts, list[str | None])
    assert "".join(text or "" for text in texts) == "Answer of weak."


def test_a_providers_error_comes_through(make: Make) -> None:
    with StubProvider(status=429) as busy:
        client = make(api_base=busy.url, models={STRONG: {"max_retries": 0}})
        with pytest.raises(load_litellm().RateLimitError):
            client.completion(model="router-mf-0.5", messages=MESSAGES)
        assert len(busy.requests) == 1


def test_keys_and_prompts_are_never_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="thriftroute"):
        client = make(api_key="very-secret", models={WEAK: {"api_key": "other-secret"}})
        client.completion(model="router-mf-1", messages=MESSAGES)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("thriftroute")]
    assert not any("secret" in text or HARD in text for text in ours)
    assert "secret" not in repr(client)


def test_scoring_leaves_the_event_loop_free(make: Make, odd_routers: None) -> None:
    client = make("waiting")
    router: Any = client.routers["waiting"]

    async def main() -> int:
        task = asyncio.create_task(client.adecide("x", "waiting", 0.5))
        turns = 0
        while not (router.started.is_set() and turns >= 100):
            await asyncio.sleep(0)
            turns += 1
        assert not task.done()  # still scoring, and the loop turned meanwhile
        router.go.set()
        assert (await task).score == 0.9
        return turns

    assert asyncio.run(main()) >= 100


def test_many_async_calls_run_at_once(make: Make) -> None:
    client = make()

    async def main() -> list[Any]:
        prompts = [HARD, EASY] * 10
        calls = [
            client.acompletion(model="router-mf-0.5", messages=[{"role": "user", "content": p}])
            for p in prompts
        ]
        return await asyncio.gather(*calls)

    assert [a.model for a in asyncio.run(main())] == ["strong", "weak"] * 10


def test_fifty_threads_share_a_client(make: Make) -> None:
    client = make()
    start = threading.Barrier(50)

    def call(index: int) -> tuple[str, str]:
        start.wait()
        prompt = HARD if index % 2 else EASY
        answer = client.completion(
            model="router-mf-0.5", messages=[{"role": "user", "content": prompt}]
        )
        decision = decision_of(answer)
        assert decision is not None
        return answer.model, decision.choice

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(call, range(50)))
    assert results == [("weak", "weak"), ("strong", "strong")] * 25
    assert client.model_counts == {"mf": {STRONG: 25, WEAK: 25}}


# --- batches ---


def test_batches_give_arrays_and_series_give_series(make: Make) -> None:
    pandas = pytest.importorskip("pandas")
    client = make()
    prompts = [HARD, EASY, "what is 2 + 2"] * 100
    scores = client.batch_calculate_win_rate(prompts, "mf")
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float64
    assert scores.tolist() == [client.decide(p, "mf", 0.5).score for p in prompts]
    series = pandas.Series(prompts, index=range(1000, 1300), name="prompt")
    rated = client.batch_calculate_win_rate(series, router="mf")
    pandas.testing.assert_series_equal(
        rated, pandas.Series(scores, index=series.index, name="prompt")
    )
    assert client.batch_calculate_win_rate([], "mf").shape == (0,)


def test_a_batch_hides_no_failure(make: Make, odd_routers: None) -> None:
    client = make("mf", "raising", "fixed", config={"fixed": {"value": float("nan")}})
    missing: Any = [float("nan")]
    with pytest.raises(ValueError, match="cannot read"):
        client.batch_calculate_win_rate(["x"], "raising")
    with pytest.raises(RoutingError, match="nan"):
        client.batch_calculate_win_rate(["x"], "fixed")
    with pytest.raises(RoutingError, match="got float"):
        client.batch_calculate_win_rate(missing, "mf")
    with pytest.raises(RoutingError, match="one string"):
        client.batch_calculate_win_rate("x", "mf")
    with pytest.raises(UnknownRouterError):
        client.batch_calculate_win_rate(["x"], "bert")


def test_the_progress_bar_goes_to_stderr(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make(progress_bar=True).batch_calculate_win_rate([HARD] * 3, "mf")
    captured = capsys.readouterr()
    assert "scoring with mf" in captured.err and "loading routers" in captured.err
    assert captured.out == ""


# --- configuration ---


def test_config_is_a_yaml_file_with_paths_relative_to_it(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "settings"
    folder.mkdir()
    file = folder / "routers.yaml"
    file.write_text(f"mf:\n  checkpoint_path: ../{tiny_bundle.name}\n  threshold: 0.5\nrandom:\n")
    for path in (file, str(file)):
        with Controller(["mf", "random"], STRONG, WEAK, config=path) as client:
            assert client.decide(HARD, "mf").choice == "strong"
            assert client.decide(HARD, "random", 0).choice == "strong"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mf: [", "cannot be read"),
        ("- mf", "expected a mapping"),
        ("mf: 5", "under 'mf'"),
        ("mf: 2026-13-01", "cannot be read"),
        (f"mf: 1{':00' * 3000}.5", "cannot be read"),
        ("mf: !!bool maybe", "cannot be read"),
        ("mf: !!timestamp x", "cannot be read"),
        ("[" * 1000, "cannot be read"),
    ],
)
def test_a_bad_yaml_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "routers.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        Controller(["mf"], STRONG, WEAK, config=file)
    assert "routers.yaml" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Controller(["mf"], STRONG, WEAK, config=tmp_path / "none.yaml")


def test_routellms_own_config_says_what_to_do() -> None:
    config = {"mf": {"checkpoint_path": "routellm/mf_gpt4_augmented"}}
    with pytest.raises(ConfigError, match=r"routellm/mf_gpt4_augmented.*leave checkpoint_path out"):
        Controller(["mf"], STRONG, WEAK, config=config)


def test_settings_of_unknown_routers_are_mentioned(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make(config={"sw_ranking": {"arena_battle_datasets": []}, "bert": {}})
    assert ["sw_ranking" in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"strong_model": ""}, "strong_model"),
        ({"weak_model": None}, "weak_model"),
        ({"weak_model": "router-mf-0.5"}, "weak_model"),
        ({"on_error": "neither"}, "on_error"),
        ({"routers": "mf"}, "list of names"),
        ({"routers": []}, "list of names"),
        ({"models": ["x"]}, "models: expected a mapping"),
        ({"models": {"x": 5}}, "under 'x'"),
        ({"config": {"random": {"threshold": 2}}}, "config of router 'random'.*out of range"),
        ({"config": {"random": {"nonsense": 2}}}, "unknown setting 'nonsense'; known: threshold"),
    ],
)
def test_bad_arguments_are_config_errors(keywords: dict[str, Any], says: str) -> None:
    defaults: dict[str, Any] = {
        "routers": ["random"],
        "strong_model": STRONG,
        "weak_model": WEAK,
    }
    with pytest.raises(ConfigError, match=says):
        Controller(**{**defaults, **keywords})


def test_closing_closes_the_routers(make: Make, odd_routers: None) -> None:
    client = make("fixed", "mf")
    with client:
        fixed: Any = client.routers["fixed"]
        assert not fixed.closed
    assert fixed.closed


# --- the guide ---


def test_the_guides_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    if not (CHECKPOINTS / "mf" / "manifest.json").is_file():
        pytest.skip("the guide uses the built-in mf bundle, which is not there")
    guide = Path(__file__).parent.parent / "docs" / "python.md"
    blocks = re.findall(r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 7
    names: dict[str, Any] = {}
    try:
        for block in blocks:
            exec(compile(block, str(guide), "exec"), names)
    finally:
        for name in ("client", "provider"):
            if name in names:
                names[name].close()
    assert "Answer of " in capsys.readouterr().out
