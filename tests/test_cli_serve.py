"""The commands around the server: what they print and write, and every mistake with them."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from thriftroute.cli import app
from thriftroute.providers.completion import load_litellm
from thriftroute.serve.api.auth import principal
from thriftroute.serve.config.loader import load_config
from thriftroute.serve.config.template import TEMPLATE
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import pool
from typer.testing import CliRunner, Result

POOL = """\
models:
  - name: gpt-4o
    api_key: hunter2
  - name: "[red]own"
    model: openai/own
    price: {input: 0.1, output: 0.3}
    context_window: 32768
    tags: [secure, eu]
strong: gpt-4o
weak: "[red]own"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run; the user's cache is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THRIFTROUTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def ok(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.stdout)


def fails(status: int, *args: str) -> list[str]:
    """The lines on stderr, each of which begins with 'error:'."""
    result = run(*args)
    assert result.exit_code == status, (result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def test_init_writes_a_config_that_loads() -> None:
    assert "thriftroute models --config thriftroute.yaml" in ok("init")
    assert load_config(Path("thriftroute.yaml"), {}).strong == "gpt-4o"
    assert fails(2, "init") == ["thriftroute.yaml is there already; --force replaces it"]
    Path("thriftroute.yaml").write_text("mine", encoding="utf-8")
    ok("init", "--force")
    assert Path("thriftroute.yaml").read_text(encoding="utf-8") == TEMPLATE


def test_init_elsewhere() -> None:
    assert ok("init", "--out", "-") == TEMPLATE
    assert not Path("-").exists()
    ok("init", "--out", "other.yaml")
    assert Path("other.yaml").is_file()
    assert fails(1, "init", "--out", "no/such/folder.yaml") == [
        "no/such/folder.yaml: No such file or directory"
    ]


def test_models_as_a_table() -> None:
    Path("thriftroute.yaml").write_text(POOL, encoding="utf-8")
    printed = ok("models")
    rows = {
        line.split()[0]: " ".join(line.split()) for line in printed.splitlines() if line.strip()
    }
    price = load_litellm().model_cost["gpt-4o"]["input_cost_per_token"] * 1e6
    assert f"gpt-4o (strong) {price:g} " in rows["gpt-4o"]
    assert rows["gpt-4o"].endswith("- litellm")
    assert "[red]own (weak) 0.1 0.3 32,768 " in rows["[red]own"]
    assert "eu secure price config, rest" in rows["[red]own"]
    assert "USD per million tokens" in printed
    assert "hunter2" not in printed


def test_models_as_json() -> None:
    Path("other.yaml").write_text(POOL, encoding="utf-8")
    printed = ok("models", "--config", "other.yaml", "--json")
    first, second = json.loads(printed)
    assert (first["name"], first["side"], first["sources"]["price"]) == (
        "gpt-4o",
        "strong",
        "litellm",
    )
    assert second == {
        "name": "[red]own",
        "model": "openai/own",
        "side": "weak",
        "price": {"input": 0.1, "output": 0.3, "cached_input": 0.1},
        "context_window": 32768,
        "max_output_tokens": None,
        "capabilities": ["json_schema", "reasoning", "tools", "vision"],
        "tags": ["eu", "secure"],
        "bundle_model": None,
        "sources": {"price": "config", "context_window": "config", "capabilities": "assumed"},
    }
    assert "hunter2" not in printed


def test_each_error_of_a_config_has_its_line() -> None:
    text = POOL.replace("32768", "x").replace("0.3", "-1")
    Path("thriftroute.yaml").write_text(text, encoding="utf-8")
    assert fails(2, "models") == [
        "thriftroute.yaml:6: models[1].price.output: expected a number >= 0, got -1",
        "thriftroute.yaml:7: models[1].context_window: expected a whole number >= 1, got 'x'",
    ]
    (missing,) = fails(2, "models", "--config", "none.yaml")
    assert "there is no such file; `thriftroute init --out none.yaml` writes one" in missing


def test_models_without_a_price_are_an_error() -> None:
    text = POOL.replace("    price: {input: 0.1, output: 0.3}\n", "")
    Path("thriftroute.yaml").write_text(text, encoding="utf-8")
    (line,) = fails(2, "models")
    told = "models[1] ([red]own): LiteLLM's map does not know 'openai/own'"
    assert line.startswith(f"thriftroute.yaml:4: {told}")


def test_a_model_whose_provider_nobody_knows_stops_the_start() -> None:
    text = POOL.replace("model: openai/own", "model: own:32b")
    Path("thriftroute.yaml").write_text(text, encoding="utf-8")
    told = "LiteLLM cannot tell who serves the model 'own:32b'"
    for command in ("models", "serve"):
        (line,) = fails(2, command)
        assert line.startswith(f"thriftroute.yaml:4: models[1] ([red]own): {told}")
        assert "openai/own:32b" in line
    flags = ["--strong-model", "own:32b", "--weak-model", "openai/own:8b", "--api-base"]
    prices = ["--strong-price", "1,1", "--weak-price", "1,1", "--port", "0"]
    (line,) = fails(2, "serve", *flags, "http://127.0.0.1:9/v1", *prices)
    assert line.startswith(f"models[0] (own:32b): {told}")


@pytest.mark.parametrize(
    ("more", "line", "told"),
    [
        ("router: {name: nosuch}", 11, "router.name: unknown router 'nosuch'; available: mf, "),
        ("router:\n  name: mf\n  checkpoint_path: none", 13, "router 'mf': checkpoint_path '"),
        ("records: {url: 'sqlite:///none/x.db'}", 11, "records.url: cannot write decisions to "),
        (
            "router: {name: random}\ncache: {backend: memory, semantic: {enabled: true}}",
            12,
            "cache.semantic: needs a router with an encoder (a bundle); 'random' has none",
        ),
        (
            "router: {name: random, strong_share: 0.3}",
            11,
            "router.strong_share: router 'random' has no table of thresholds; give ",
        ),
        (
            "router: {strategy: pool, threshold: 0.5}",
            8,
            "model '[red]own': bundle_model 'nosuch' is not in the bundle of router 'mf'",
        ),
    ],
)
def test_what_is_found_wrong_when_all_is_loaded_has_its_line_too(
    more: str, line: int, told: str
) -> None:
    """Before anything is served, and however many workers there are."""
    text = POOL.replace("    tags:", "    bundle_model: nosuch\n    tags:")
    Path("router.yaml").write_text(f"{text if line == 8 else POOL}{more}\n", encoding="utf-8")
    (found,) = fails(2, "serve", "--config", "router.yaml", "--port", "0", "--workers", "2")
    assert found.startswith(f"router.yaml:{line}: {told}")


def test_a_flag_for_the_strong_share_and_one_for_the_threshold() -> None:
    flags = ("--strong-model", "gpt-4o", "--weak-model", "gpt-4o-mini", "--strong-share")
    (line,) = fails(2, "serve", *flags, "0.3", "--threshold", "0.5")
    assert line == "--strong-share: give threshold or strong_share, and not both"
    (line,) = fails(2, "serve", *flags, "30")
    assert line == "--strong-share: expected a number >= 0 and <= 1, got 30.0"


def test_prices_of_models() -> None:
    entry = load_litellm().model_cost["gpt-4o"]
    expected = f"gpt-4o: {entry['input_cost_per_token'] * 1e6:g} in, "
    assert ok("prices", "show", "gpt-4o", "gpt-4o").startswith(expected)
    (found,) = json.loads(ok("prices", "show", "gpt-4o", "--json"))
    assert found["price"]["output"] == pytest.approx(entry["output_cost_per_token"] * 1e6)
    assert "side" not in found
    assert "does not know 'nope'" in fails(2, "prices", "show", "nope")[0]


def test_the_map_in_use(folder: Path) -> None:
    assert "installed with LiteLLM" in ok("prices", "show")
    assert json.loads(ok("prices", "show", "--json")) is None
    assert ok("prices", "reset") == "there is no downloaded map\n"
    copy = folder / "cache" / "prices.json"
    copy.parent.mkdir(parents=True)
    head = {
        "format": 1, "url": "https://example.com/map", "fetched_at": "2026-11-22T12:00:00+00:00",
        "litellm": "99", "models": 1, "changed": 0, "added": 1, "removed": 0,
    }  # fmt: skip
    entry = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    copy.write_text(json.dumps({**head, "entries": {"brand-new": entry}}), encoding="utf-8")
    printed = ok("prices", "show")
    assert f"in use: {copy}, 1 models, from https://example.com/map at 2026-11-22" in printed
    assert json.loads(ok("prices", "show", "--json"))["litellm"] == "99"
    assert ok("prices", "show", "brand-new") == (
        "brand-new: 1 in, 2 out, 1 cached in, USD per million tokens (refreshed)\n"
    )
    assert ok("prices", "reset") == f"deleted {copy}\n"
    assert not copy.exists()


def test_a_refresh_that_fails() -> None:
    (line,) = fails(1, "prices", "refresh", "--url", "http://127.0.0.1:1/map.json")
    assert line.startswith("http://127.0.0.1:1/map.json: ConnectError")
    (line,) = fails(2, "prices", "refresh", "--url", "http://example.com/map.json")
    assert line == "--url 'http://example.com/map.json': expected https://"


def test_a_new_key_is_printed_once_and_opens_the_server() -> None:
    printed = ok("keys", "new", "--name", "no", "--tenant", "acme", "--tier", "pro", "--admin")
    key, _, block = printed.partition("\n")
    assert re.fullmatch(r"tr-[\w-]{43}", key)
    assert key not in block
    settings = yaml.safe_load(block)["keys"][0]
    assert settings == {
        "name": "no",
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "tenant": "acme",
        "tier": "pro",
        "admin": True,
    }
    Path("thriftroute.yaml").write_text(f"{POOL}tiers: {{pro: {{}}}}\n{block}", encoding="utf-8")
    who = principal({"authorization": f"Bearer {key}"}, load_config(Path("thriftroute.yaml"), {}))
    assert (who.key, who.tenant, who.tier, who.admin) == ("no", "acme", "pro", True)


def test_keys_differ_and_are_json_for_programs() -> None:
    first, second = (json.loads(ok("keys", "new", "--name", "a", "--json")) for _ in range(2))
    assert first["key"] != second["key"]
    assert set(first["settings"]) == {"name", "sha256"}


def test_a_key_needs_a_name() -> None:
    (line,) = fails(2, "keys", "new", "--name", "")
    assert line == "--name: string should have at least 1 character"
    assert "Missing option '--name'" in run("keys", "new").output


def test_serving_without_the_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    (line,) = fails(1, "serve", "--strong-model", "gpt-4o", "--weak-model", "gpt-4o-mini")
    assert line == "'uvicorn' is not installed; run: pip install 'thriftroute[serve]'"


def test_the_command_line_stays_light() -> None:
    code = "import json, sys, thriftroute.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint({"pydantic", "starlette", "uvicorn", "sqlalchemy", "yaml", "httpx"})


@pytest.mark.parametrize(
    "command", [["init"], ["models"], ["check"], ["prices", "refresh"], ["keys", "new"]]
)
def test_help_shows_an_example(command: list[str]) -> None:
    assert f"Example: thriftroute {' '.join(command)}" in ok(*command, "--help")


def test_records_are_exported_whole_or_not_at_all(tmp_path: Path) -> None:
    from thriftroute.serve.config.settings import RecordSettings
    from thriftroute.serve.records import Record, Recorder

    url = f"sqlite:///{tmp_path}/records.db"
    recorder = Recorder(RecordSettings(url=url))
    recorder.start()
    for index in range(3):
        recorder.put(Record(id=f"{index}", time=1_700_000_000.0 + index, model="weak"))
    recorder.close()
    out = tmp_path / "out.jsonl"
    done = CliRunner().invoke(app, ["records", "export", "--url", url, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "wrote 3 decisions" in done.output
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["0", "1", "2"]
    later = ["--since", "2030-01-01", "--out", "-"]
    assert CliRunner().invoke(app, ["records", "export", "--url", url, *later]).stdout == ""
    missing = f"sqlite:///{tmp_path}/none/records.db"
    failed = CliRunner().invoke(app, ["records", "export", "--url", missing, "--out", str(out)])
    assert failed.exit_code != 0
    assert "records cannot be read" in str(failed.output) + str(failed.exception)
    assert len(out.read_text().splitlines()) == 3
    assert list(tmp_path.glob("*.part")) == []


@pytest.fixture
def provider() -> Iterator[StubProvider]:
    with StubProvider() as running:
        yield running


def test_a_config_that_would_serve_passes_its_check(provider: StubProvider) -> None:
    settings = {**pool(provider.url), "records": {"url": "sqlite:///own.db"}}
    Path("thriftroute.yaml").write_text(json.dumps(settings), encoding="utf-8")
    assert ok("check") == "thriftroute.yaml: valid; 2 models, each with a price; router mf\n"
    assert provider.requests == []
    assert not Path("own.db").exists()
    assert ok("check", "--probe").splitlines()[1:] == ["strong: reached", "weak: reached"]
    provider.status = 500
    told = fails(1, "check", "--probe")
    assert [line.split(":")[0] for line in told] == ["strong", "weak"]
    assert all("500" in line and "provider-key" not in line for line in told)


def test_a_key_that_is_missing_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ok("init")
    told = fails(1, "check")
    assert [line.rsplit(" ", 1)[1] for line in told] == ["OPENAI_API_KEY"] * len(told)
    assert fails(2, "check", "--config", "none.yaml")[0].startswith("config none.yaml: there is no")
    bad = POOL + "router: {name: nosuch}\n"
    Path("bad.yaml").write_text(bad, encoding="utf-8")
    assert fails(2, "check", "--config", "bad.yaml")[0].startswith("bad.yaml:11: router.name: ")
