"""The plugin in LiteLLM's own Router, with a real bundle and a provider on loopback."""

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from thriftroute.errors import ConfigError, RoutingError, ThresholdError
from thriftroute.providers.completion import load_litellm
from thriftroute.router.routers import CHECKPOINTS
from thriftroute.testing.stub import StubProvider

load_litellm()  # before the plugin imports it: silent, and without a look at the network

from thriftroute.integrations import litellm_plugin  # noqa: E402
from thriftroute.integrations.litellm_plugin import Classifier, Hook  # noqa: E402

HARD = [{"role": "user", "content": "prove the hard theorem"}]
EASY = [{"role": "user", "content": "hello easy"}]
NAME = "router-mf-0.5"
# Of LiteLLM's own: pydantic's words about its models.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:Warning"),
]


@pytest.fixture(autouse=True)
def known_models() -> Iterator[None]:
    """LiteLLM's routers put their deployments into its map, where other tests would find them."""
    entries = load_litellm().model_cost
    before = set(entries)
    yield
    for name in set(entries) - before:
        del entries[name]


@pytest.fixture
def provider() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@pytest.fixture
def config(tiny_bundle: Path) -> dict[str, dict[str, str]]:
    return {"mf": {"checkpoint_path": str(tiny_bundle)}}


@pytest.fixture
def classifier(config: dict[str, dict[str, str]]) -> Iterator[Classifier]:
    made = Classifier(config=config)
    yield made
    made.close()


def deployment(name: str, provider: StubProvider) -> dict[str, Any]:
    params = {"model": f"openai/{name}", "api_base": provider.url, "api_key": "k"}
    return {"model_name": name, "litellm_params": params}


def make_router(provider: StubProvider, *entries: dict[str, Any], **settings: Any) -> Any:
    models = [deployment(name, provider) for name in ("strong", "weak", "middle")]
    return load_litellm().Router(model_list=[*models, *entries], num_retries=0, **settings)


def ask(router: Any, model: str, messages: Any, **more: Any) -> Any:
    return asyncio.run(router.acompletion(model=model, messages=messages, **more))


def called(provider: StubProvider) -> list[str]:
    return [request.body["model"] for request in provider.requests]


def test_easy_goes_weak_and_hard_goes_strong(
    provider: StubProvider, classifier: Classifier
) -> None:
    router = make_router(provider, classifier.entry(NAME, strong="strong", weak="weak"))
    assert ask(router, NAME, EASY).choices[0].message.content == "Answer of weak."
    assert ask(router, NAME, HARD).choices[0].message.content == "Answer of strong."
    assert called(provider) == ["weak", "strong"]


def test_the_threshold_is_in_the_models_name(
    provider: StubProvider, classifier: Classifier
) -> None:
    names = ("router-mf-0.0", "router-mf-1.0")
    entries = [classifier.entry(name, strong="strong", weak="weak") for name in names]
    aliases = {"router-mf-0": names[1]}  # LiteLLM's alias: the name that was asked for counts
    router = make_router(provider, *entries, model_group_alias=aliases)
    for name in (*names, "router-mf-0"):
        ask(router, name, EASY)
        ask(router, name, HARD)
    assert called(provider) == ["strong", "strong", "weak", "weak", "strong", "strong"]


def test_a_stream(provider: StubProvider, classifier: Classifier) -> None:
    router = make_router(provider, classifier.entry(NAME, strong="strong", weak="weak"))

    async def read() -> str:
        stream = await router.acompletion(model=NAME, messages=HARD, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(read()) == "Answer of strong."
    assert provider.requests[0].body["stream"] is True


def test_the_request_is_left_as_it_is(provider: StubProvider, classifier: Classifier) -> None:
    router = make_router(provider, classifier.entry(NAME, strong="strong", weak="weak"))
    messages = [{"role": "user", "content": "hello LITELLM ESCALATE"}]
    ask(router, NAME, messages, max_tokens=7, temperature=0.5)
    assert provider.requests[0].body == {
        "model": "weak",
        "messages": messages,
        "max_tokens": 7,
        "temperature": 0.5,
    }


class Broken:
    """A router whose every score fails."""

    def scores(self, conversations: Any) -> Any:
        raise RuntimeError("no scores today")


@pytest.mark.parametrize(("on_error", "answers"), [("strong", "strong"), ("weak", "weak")])
def test_a_failure_to_score_fails_no_request(
    provider: StubProvider, config: Any, on_error: Any, answers: str
) -> None:
    made = Classifier(config=config, on_error=on_error)
    made.controller.routers["mf"] = Broken()
    router = make_router(provider, made.entry(NAME, strong="strong", weak="weak"))
    ask(router, NAME, EASY)
    made.close()
    assert called(provider) == [answers]


def test_no_text_to_score(provider: StubProvider, classifier: Classifier) -> None:
    router = make_router(provider, classifier.entry(NAME, strong="strong", weak="weak"))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    ask(router, NAME, [{"role": "user", "content": [image]}])
    assert called(provider) == ["strong"]


def test_a_name_without_threshold_is_declined(
    provider: StubProvider, classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    entry = classifier.entry(NAME, strong="strong", weak="weak")
    router = make_router(provider, {**entry, "model_name": "auto"})
    with caplog.at_level(logging.ERROR, litellm_plugin.logger.name):
        ask(router, "auto", EASY)
    assert called(provider) == ["strong"]
    assert "model 'auto' cannot be routed: no threshold is given" in caplog.text


def test_a_name_without_threshold_goes_by_the_strong_share(
    provider: StubProvider, make_bundle: Any
) -> None:
    rows = ((0.0, 1.0), (0.3, 0.5), (1.0, 0.0))
    table = {"ordinary": {"name": "ordinary", "n": 10, "rows": rows}}
    path = str(make_bundle("tabled", thresholds=table).path)
    made = Classifier(config={"mf": {"checkpoint_path": path}})
    router = make_router(provider, made.entry("auto", strong="strong", weak="weak"))
    for messages in (EASY, HARD):
        ask(router, "auto", messages)
    made.close()
    assert called(provider) == ["weak", "strong"]


def test_fallbacks_of_the_router_stay(provider: StubProvider, classifier: Classifier) -> None:
    entry = classifier.entry(NAME, strong="strong", weak="weak")
    router = make_router(provider, entry, fallbacks=[{"weak": ["strong"]}])
    provider.status = 500
    with pytest.raises(load_litellm().InternalServerError):
        ask(router, NAME, EASY)
    assert called(provider) == ["weak", "strong"]


def test_bands(provider: StubProvider, config: Any) -> None:
    bands = {"SIMPLE": 0.2, "MEDIUM": 0.8, "COMPLEX": 1.0}
    made = Classifier(config=config, bands=bands)
    entry = made.entry("auto", strong="strong", weak="weak", MEDIUM="middle")
    router = make_router(provider, entry, made.entry("router-mf-0", strong="strong", weak="weak"))
    for text in ("hello easy", "what is 2 + 2", "prove the hard theorem", ""):
        ask(router, "auto", [{"role": "user", "content": text}])
    ask(router, "router-mf-0", EASY)  # a threshold in the name comes before the bands
    made.close()
    assert called(provider) == ["weak", "middle", "strong", "strong", "strong"]


def test_bands_where_scoring_fails(provider: StubProvider, config: Any) -> None:
    made = Classifier(config=config, bands={"SIMPLE": 0.5, "MEDIUM": 1}, on_error="weak")
    made.controller.routers["mf"] = Broken()
    entry = made.entry("auto", strong="strong", weak="weak", MEDIUM="middle")
    ask(make_router(provider, entry), "auto", HARD)
    made.close()
    assert called(provider) == ["weak"]


def test_a_threshold_for_other_names(provider: StubProvider, config: Any) -> None:
    made = Classifier(config=config, threshold=0.0)
    ask(make_router(provider, made.entry("auto", strong="strong", weak="weak")), "auto", EASY)
    made.close()
    assert called(provider) == ["strong"]


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ({"EASY": 1.0}, "tier 'EASY'; LiteLLM's tiers are SIMPLE, MEDIUM, COMPLEX, REASONING"),
        ({"SIMPLE": 0.5, "COMPLEX": 0.9}, "must rise, the last being 1"),
        ({"SIMPLE": 0.5, "MEDIUM": 0.5, "COMPLEX": 1.0}, "must rise, the last being 1"),
    ],
)
def test_wrong_bands(config: Any, bands: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Classifier(config=config, bands=bands)


def test_a_wrong_entry_is_refused_when_it_is_made(classifier: Classifier) -> None:
    with pytest.raises(RoutingError, match="no threshold is given"):
        classifier.entry("auto", strong="strong", weak="weak")
    with pytest.raises(RoutingError, match="unknown router 'nope'"):
        classifier.entry("router-nope-0.5", strong="strong", weak="weak")
    with pytest.raises(ThresholdError):
        classifier.entry("router-mf-1.5", strong="strong", weak="weak")
    with pytest.raises(ConfigError, match="tier 'HARD'"):
        classifier.entry(NAME, strong="strong", weak="weak", HARD="middle")


def test_the_routers_copy_of_its_list_shares_the_model(classifier: Classifier) -> None:
    entry = deepcopy(classifier.entry(NAME, strong="strong", weak="weak"))
    config = entry["litellm_params"]["complexity_router_config"]
    assert config["classifier_plugin"] is classifier


def test_the_ready_made_classifier_has_the_bundle_in_the_box() -> None:
    made = litellm_plugin.classifier
    assert made is litellm_plugin.classifier
    assert list(made.controller.routers) == ["mf"]
    with pytest.raises(AttributeError, match="no attribute 'clasifier'"):
        _ = litellm_plugin.clasifier


@pytest.fixture
def make_hook(config: Any) -> Iterator[Callable[..., Hook]]:
    made: list[Hook] = []

    def make(**settings: Any) -> Hook:
        made.append(Hook(strong="strong", weak="weak", config=config, **settings))
        return made[-1]

    yield make
    for hook in made:
        hook.controller.close()


def run_hook(hook: Hook, data: dict[str, Any], call_type: str = "acompletion") -> Any:
    made: Coroutine[Any, Any, Any] = hook.async_pre_call_hook(None, None, data, call_type)
    return asyncio.run(made)


def headers_of(hook: Hook, data: dict[str, Any]) -> dict[str, str] | None:
    return asyncio.run(hook.async_post_call_response_headers_hook(data, None, None))


def test_the_hook_changes_the_model_and_says_why(make_hook: Callable[..., Hook]) -> None:
    hook = make_hook(aliases={"auto": 1.0})
    data = {"model": "router-mf-0.5", "messages": HARD, "metadata": {"mine": 1}, "n": 2}
    assert run_hook(hook, data) is data
    assert {key: data[key] for key in ("model", "messages", "n")} == {
        "model": "strong",
        "messages": HARD,
        "n": 2,
    }
    assert data["metadata"]["mine"] == 1
    headers = headers_of(hook, data) or {}
    assert headers["x-thriftroute-model"] == "strong"
    assert headers["x-thriftroute-threshold"] == "0.5"
    assert float(headers["x-thriftroute-score"]) > 0.5
    assert headers["x-thriftroute-reason"].endswith(">= threshold 0.5")
    assert run_hook(hook, {"model": "auto", "messages": HARD})["model"] == "weak"


def test_the_hook_leaves_other_models_alone(make_hook: Callable[..., Hook]) -> None:
    data: dict[str, Any] = {"model": "gpt-4o", "messages": HARD}
    hook = make_hook()
    assert run_hook(hook, data) is None
    assert run_hook(hook, {"file": b""}) is None
    assert data == {"model": "gpt-4o", "messages": HARD}
    assert headers_of(hook, data) is None


@pytest.mark.parametrize("key", ["input", "prompt"])
def test_the_hook_scores_other_requests_text(make_hook: Callable[..., Hook], key: str) -> None:
    hook = make_hook()
    for text, model in (("prove the hard theorem", "strong"), ("hello easy", "weak")):
        data = {"model": NAME, key: text, "litellm_metadata": {}}
        assert run_hook(hook, data)["model"] == model
        assert data["litellm_metadata"]["thriftroute"]["model"] == model
        assert (headers_of(hook, data) or {})["x-thriftroute-model"] == model


def test_the_hook_where_scoring_fails(make_hook: Callable[..., Hook]) -> None:
    hook = make_hook(on_error="weak")
    hook.controller.routers["mf"] = Broken()
    data = {"model": NAME, "messages": HARD}
    assert run_hook(hook, data)["model"] == "weak"
    headers = headers_of(hook, data) or {}
    assert "x-thriftroute-score" not in headers
    assert headers["x-thriftroute-reason"].startswith("scoring failed: RuntimeError")


def test_a_wrong_name_is_the_clients_mistake(make_hook: Callable[..., Hook]) -> None:
    for name in ("router-nope-0.5", "router-mf", "router-mf-high", "router-mf-2"):
        with pytest.raises(load_litellm().BadRequestError) as caught:
            run_hook(make_hook(), {"model": name, "messages": HARD})
        assert caught.value.status_code == 400  # what the proxy answers with


def blocks(kind: str) -> list[str]:
    guide = Path(__file__).parent.parent / "docs" / "litellm.md"
    return re.findall(rf"^```{kind}\n(.*?)^```", guide.read_text(encoding="utf-8"), re.M | re.S)


def test_the_guides_examples_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKPOINTS.parent)
    names: dict[str, Any] = {}
    try:
        for block in blocks("python"):
            exec(compile(block, "docs/litellm.md", "exec"), names)
    finally:
        names["provider"].close()
    assert "Answer of " in capsys.readouterr().out
    assert {"classifier", "ladder", "hook"} <= set(names)
    names["classifier"].close()
    names["hook"].controller.close()


def test_the_guides_proxy_entry_is_the_one_that_python_makes(classifier: Classifier) -> None:
    first, second = (yaml.safe_load(block) for block in blocks("yaml"))
    *models, entry = first["model_list"]
    assert models == second["model_list"]
    made = classifier.entry(entry["model_name"], strong="large", weak="small")
    config = made["litellm_params"]["complexity_router_config"]
    config["classifier_plugin"] = "thriftroute.integrations.litellm_plugin.classifier"
    assert entry == made
    assert second["litellm_settings"] == {"callbacks": ["routing.hook"]}
