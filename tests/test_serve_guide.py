"""docs/serve.md: its configs are read, its examples run, and it leaves no setting out."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from thriftroute.router.output_tokens import OutputTokens
from thriftroute.router.routers import Router, load_router
from thriftroute.serve.api.admin import admin_routes
from thriftroute.serve.api.chat_request import OPTIONS, read_request
from thriftroute.serve.config import settings
from thriftroute.serve.config.loader import load_config
from thriftroute.serve.policy.pipeline import Pipeline
from thriftroute.serve.registry import Registry
from thriftroute.serve.request import Options, Principal
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import serving

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
# Of LiteLLM's own, at its first call: pydantic's words about its models.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:Warning"),
]
ENVIRON = {"OPENAI_API_KEY": "provider-key"}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", GUIDE, re.M | re.S)


SMALLEST, *SECTIONS = blocks("yaml")


def file_of(section: str, folder: Path) -> Path:
    """The smallest file of the guide, with a section of it in place of its own."""
    merged = {**yaml.safe_load(SMALLEST), **yaml.safe_load(section)}
    path = folder / "thriftroute.yaml"
    path.write_text(yaml.safe_dump(merged, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def router() -> Router:
    return load_router("mf")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.split(":", 1)[0])
def test_a_section_is_read_and_decides(section: str, tmp_path: Path, router: Router) -> None:
    config = load_config(file_of(section, tmp_path), ENVIRON)
    registry = Registry.build(config)
    assert set(registry) == {model.name for model in config.models}
    body = {"model": "auto", "messages": [{"role": "user", "content": "What is 2+2?"}]}
    asked = read_request(
        body,
        Options(),
        Principal(),
        id="1",
        lengths=OutputTokens(10),
        count=lambda messages, tools: 10,
    )
    plan = Pipeline(config, registry, router).plan(asked)
    assert set(plan.models) <= set(registry)
    assert not plan.reason.startswith("scoring failed")


def names_of(kind: type[BaseModel]) -> set[str]:
    return set(kind.model_fields)


def test_every_setting_is_in_the_guide() -> None:
    known = set().union(*(names_of(kind) for kind in settings.Settings.__subclasses__()))
    shown = set(re.findall(r"[a-z_0-9]+", " ".join(blocks("yaml"))))
    shown |= set(re.findall(r"`([a-z_0-9]+)[`:]", GUIDE))
    assert sorted(known - shown) == []


def test_every_option_and_route_is_in_the_guide() -> None:
    assert [name for name in OPTIONS if f"| `{name}` |" not in GUIDE] == []
    routes = [route.path for route in admin_routes(None)]  # type: ignore[arg-type]
    assert [path for path in routes if f" {path}" not in GUIDE] == []


def test_the_guide_names_no_error_that_there_is_not() -> None:
    table = GUIDE.split("## Errors")[1].split("\n## ")[0]
    codes = set(re.findall(r"`([a-z]+(?:_[a-z]+)+|overloaded)`", table))
    files = [*(ROOT / "serve").rglob("*.py"), *(ROOT / "providers").rglob("*.py")]
    source = "\n".join(path.read_text() for path in files)
    assert len(codes) > 20
    assert [code for code in sorted(codes) if f'"{code}"' not in source] == []


def test_links_lead_somewhere() -> None:
    titles = re.findall(r"^##+ (.+)$", GUIDE, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = set(re.findall(r"\]\(#([^)]+)\)", GUIDE))
    assert links
    assert links <= anchors


def test_the_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(file_of("expected_output_tokens: 512", tmp_path), ENVIRON)
    with StubProvider() as provider:
        models = [model.model_copy(update={"api_base": provider.url}) for model in config.models]
        records = settings.RecordSettings(url=f"sqlite:///{tmp_path / 'records.db'}")
        update = {"models": tuple(models), "records": records}
        with serving(config.model_copy(update=update)) as server:
            names: dict[str, Any] = {}
            try:
                for block in blocks("python"):
                    there = block.replace("http://127.0.0.1:6060", server.url)
                    exec(compile(there, "docs/serve.md", "exec"), names)
            finally:
                names["client"].close()
            for block in blocks("sh"):
                command = block.replace("http://127.0.0.1:6060", server.url)
                done = subprocess.run(
                    ["bash", "-c", command.replace("curl ", "curl -sS --fail-with-body ")],
                    capture_output=True,
                    text=True,
                    timeout=300,
                    check=False,
                )
                assert done.returncode == 0, done.stderr + done.stdout
                assert "gpt-4o" in done.stdout
    shown = capsys.readouterr().out
    assert "Answer of gpt-4o" in shown
    assert "x-thriftroute-decision-id" in shown
    assert names["row"]["feedback"] == 1.0
    assert names["report"]["totals"]["requests"] >= 4
    assert provider.requests[0].api_key == "provider-key"
