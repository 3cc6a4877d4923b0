"""A model has one price, whoever asks: the server, `label`, `calibrate`, `audit`, `logs report`."""

import copy
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from thriftroute.data.logs.schema import LogRow
from thriftroute.data.logs.traffic_profile import Tally, model_use
from thriftroute.errors import CalibrationError, ConfigError
from thriftroute.eval.pricing import CostOptions, costs_of
from thriftroute.labels.settings import LabelSettings, make_setup
from thriftroute.providers import price_map
from thriftroute.providers.completion import load_litellm
from thriftroute.router.routers import BundleRouter, load_router
from thriftroute.serve.config.settings import Config
from thriftroute.serve.registry import Registry

TEXT = "Name a river in France."
OUTPUT = 100  # tokens


@pytest.fixture(scope="module")
def router() -> BundleRouter:
    found = load_router("mf")
    assert isinstance(found, BundleRouter)
    return found


Price = Callable[[str], float]  # USD of TEXT and an answer of OUTPUT tokens


@pytest.fixture(params=["serve", "label", "calibrate and audit", "logs report"])
def price(request: pytest.FixtureRequest, router: BundleRouter) -> Price:
    tokens = router.scorer.count_tokens(TEXT)

    def serve(model: str) -> float:
        models = {"models": [{"name": model}], "strong": model, "weak": model}
        return Registry.build(Config.model_validate(models))[model].estimate(tokens, OUTPUT)

    def label(model: str) -> float:
        prices = {"strong": "1,1"}
        settings = LabelSettings(
            Path("log"), Path("out"), "openai/other", model, votes=1, prices=prices
        )
        return make_setup(settings, []).weak.usd(tokens, OUTPUT)

    def calibrate(model: str) -> float:
        options = CostOptions(model, model, output_tokens=OUTPUT)
        costs, _ = costs_of(router, [TEXT], None, options, True)
        assert costs is not None
        return float(costs[0][0])

    def report(model: str) -> float:
        tally = Tally()
        messages = ({"role": "user", "content": TEXT},)
        counts = {"input_tokens": tokens, "output_tokens": OUTPUT}
        tally.add(LogRow("1", messages, TEXT, model=model, **counts))
        use = model_use(model, tally.models[model])
        return float(use["cost"]) if not use["unpriced"] else float("nan")

    ways = {"serve": serve, "label": label, "calibrate and audit": calibrate, "logs report": report}
    return ways[request.param]


@pytest.fixture
def refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Puts a copy of the map into the cache folder, gpt-4o at ten times its price."""
    monkeypatch.setenv("THRIFTROUTE_CACHE", str(tmp_path))

    def put() -> None:
        entries = {"gpt-4o": copy.deepcopy(load_litellm().model_cost["gpt-4o"])}
        for name in ("input_cost_per_token", "output_cost_per_token"):
            entries["gpt-4o"][name] *= 10
        head = {"url": "u", "fetched_at": "t", "models": 1, "changed": 1, "added": 0, "removed": 0}
        whole = {"format": 1, **head, "litellm": metadata.version("litellm"), "entries": entries}
        price_map.map_path().parent.mkdir(parents=True, exist_ok=True)
        price_map.map_path().write_text(json.dumps(whole))

    return put


def test_everybody_asks_the_same_map(
    price: Price, router: BundleRouter, refreshed: Callable[[], None]
) -> None:
    entry = load_litellm().model_cost["gpt-4o"]
    usd = (
        router.scorer.count_tokens(TEXT) * entry["input_cost_per_token"]
        + OUTPUT * entry["output_cost_per_token"]
    )
    assert price("gpt-4o") == pytest.approx(usd, rel=1e-6)
    assert price("openai/gpt-4o") == pytest.approx(usd, rel=1e-6)
    refreshed()
    assert price("gpt-4o") == pytest.approx(10 * usd, rel=1e-6)


@pytest.mark.parametrize("model", ["my/own-model", "anthropic/gpt-4o", "openai/free"])
def test_nobody_takes_another_provider_s_price_or_none(
    model: str, price: Price, refreshed: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
    free = {**prices, "mode": "chat", "litellm_provider": "openai"}
    monkeypatch.setitem(load_litellm().model_cost, "free", free)
    try:
        found = price(model)
    except (CalibrationError, ConfigError) as error:
        assert repr(model) in str(error)
    else:
        assert found != found  # a report goes on, and counts the request as unpriced
