"""The deployment's files: they parse, they fit each other, and the server takes its config."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from thriftroute.cli import app
from thriftroute.errors import ConfigError
from thriftroute.serve.api.app import create_app
from thriftroute.serve.config.loader import load_config
from thriftroute.serve.config.settings import Config
from thriftroute.serve.registry import Registry
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
VARIABLE = re.compile(r"\$\{(\w+)")
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)*")
ENVIRON = {
    "OPENAI_API_KEY": "k",
    "THRIFTROUTE_KEY_SHA256": "a" * 64,
    "THRIFTROUTE_ADMIN_SHA256": "b" * 64,
    "POSTGRES_PASSWORD": "secret",
}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = read("compose.yaml")
    return found


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(DEPLOY / "thriftroute.yaml", ENVIRON)


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest), comments left out, continued lines joined."""
    lines = [
        line
        for line in (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(word, rest) for word, rest in found]


def last(dockerfile: list[tuple[str, str]], word: str) -> str:
    return [rest for found, rest in dockerfile if found == word][-1]


def mounts(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(source, target) of a service's volumes."""
    for volume in service.get("volumes", ()):
        source, target = volume.split(":")[:2]
        yield source, target


def test_the_config_is_taken_and_its_models_have_prices(config: Config) -> None:
    registry = Registry.build(config)
    assert registry[config.strong].input_price > registry[config.weak].input_price > 0
    assert config.keys
    assert config.server.admin_sha256 is not None
    assert not config.server.public_metrics


@pytest.mark.parametrize("missing", sorted(ENVIRON))
def test_a_missing_secret_stops_the_server(missing: str) -> None:
    rest = {name: value for name, value in ENVIRON.items() if name != missing}
    with pytest.raises(ConfigError, match=missing):
        load_config(DEPLOY / "thriftroute.yaml", rest)


def test_what_the_config_needs_is_handed_in_and_explained(compose: dict[str, Any]) -> None:
    needed = set(VARIABLE.findall((DEPLOY / "thriftroute.yaml").read_text(encoding="utf-8")))
    assert needed == set(ENVIRON)
    assert needed <= set(compose["services"]["thriftroute"]["environment"])
    example = (DEPLOY / ".env.example").read_text(encoding="utf-8")
    explained = dict(line.split("=", 1) for line in example.splitlines() if "=" in line)
    used = set(VARIABLE.findall((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    used |= {secret["environment"] for secret in compose["secrets"].values()}
    assert set(explained) == used
    assert not any(explained.values())  # no secret is in the repository


def test_every_secret_of_compose_is_asked_for() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert len(VARIABLE.findall(text)) == len(re.findall(r"\$\{\w+:\?", text))


def test_images_are_pinned(compose: dict[str, Any], dockerfile: list[tuple[str, str]]) -> None:
    images = [rest.split()[0] for word, rest in dockerfile if word == "FROM"]
    built = [s["image"] for s in compose["services"].values() if "build" in s]
    images += [s["image"] for s in compose["services"].values() if "build" not in s]
    assert built == ["thriftroute:local"]
    assert len(images) == 6
    assert [image for image in images if not PINNED.fullmatch(image)] == []
    assert len({image for image in images if image.startswith("python")}) == 1


def test_the_image_runs_as_nobody_important(dockerfile: list[tuple[str, str]]) -> None:
    words = [word for word, _ in dockerfile]
    user = last(dockerfile, "USER")
    assert user.isdigit()
    assert int(user) > 0
    created = [rest for word, rest in dockerfile if word == "RUN" and "useradd" in rest]
    assert f"--uid {user}" in created[0]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")
    assert "ADD" not in words


def test_the_images_ports_and_checks_are_the_servers(
    dockerfile: list[tuple[str, str]], compose: dict[str, Any], config: Config
) -> None:
    port = config.server.port
    assert last(dockerfile, "EXPOSE") == str(port)
    check = last(dockerfile, "HEALTHCHECK")
    words = json.loads(check.split("CMD", 1)[1])
    compile(words[2], "healthcheck", "exec")
    assert f"http://127.0.0.1:{port}/health'" in words[2]
    assert compose["services"]["thriftroute"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert config.server.host == "0.0.0.0"
    grace = compose["services"]["thriftroute"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > config.server.shutdown_s


def test_the_command_reads_the_config_that_compose_mounts(
    dockerfile: list[tuple[str, str]], compose: dict[str, Any]
) -> None:
    service = compose["services"]["thriftroute"]
    assert json.loads(last(dockerfile, "ENTRYPOINT")) == ["thriftroute"]
    serve, flag, path, *address = json.loads(last(dockerfile, "CMD"))
    assert (serve, flag) == ("serve", "--config")
    assert address == ["--host", "0.0.0.0"]  # else a config of `init` could not be reached
    assert dict(mounts(service))["./thriftroute.yaml"] == path
    # All else is read-only: what may be written is the folder that the image leaves the user.
    writable = [target for source, target in mounts(service) if not source.startswith("./")]
    assert service["read_only"] is True
    assert json.loads(last(dockerfile, "VOLUME")) == [last(dockerfile, "WORKDIR")] == writable


def test_what_the_image_is_built_from() -> None:
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in allowed if line.startswith("!")}
    assert allowed[1] == "*"
    assert [name for name in sorted(kept) if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["setuptools"]["packages"]
    folders = {name.split(".")[1] for name in packages if "." in name}
    data = project["tool"]["setuptools"]["package-data"]["thriftroute"]
    folders |= {pattern.split("/")[0] for pattern in data}
    files = {"pyproject.toml", "README.md", "LICENSE", *(path.name for path in ROOT.glob("*.py"))}
    assert folders | files <= kept


def test_every_service_is_healthy_confined_and_kept(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "healthcheck" in service or "build" in service, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert not service.get("privileged")
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        for source, target in mounts(service):
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in compose["volumes"]
            assert target.startswith("/")
        for secret in service.get("secrets", ()):
            assert secret in compose["secrets"]
        for other in service.get("depends_on", ()):
            assert other in compose["services"]
    build = compose["services"]["thriftroute"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert (DEPLOY / build["context"]).resolve() == ROOT


def test_the_config_names_compose_services(compose: dict[str, Any], config: Config) -> None:
    found = re.findall(r"[/@](\w+):\d+", f"{config.redis_url} {config.records.url}")
    assert found == ["redis", "postgres"]
    assert set(found) <= set(compose["services"])
    waits = compose["services"]["thriftroute"]["depends_on"]
    assert set(waits) == set(found)
    database = compose["services"]["postgres"]["environment"]
    user, name = database["POSTGRES_USER"], database["POSTGRES_DB"]
    url = str(config.records.url)
    assert url.startswith(f"postgresql+psycopg://{user}:{ENVIRON['POSTGRES_PASSWORD']}@")
    assert url.endswith(f"/{name}")
    assert config.cache.backend == "redis"


def test_prometheus_scrapes_the_server_with_the_admin_key(
    compose: dict[str, Any], config: Config
) -> None:
    (job,) = read("prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"thriftroute:{config.server.port}"]}]
    assert job["metrics_path"] == "/metrics"
    service = compose["services"]["prometheus"]
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in service["secrets"]
    assert dict(mounts(service))["./prometheus.yml"] == "/etc/prometheus/prometheus.yml"


def test_grafana_finds_prometheus_and_the_dashboard(compose: dict[str, Any]) -> None:
    service = compose["services"]["grafana"]
    mounted = dict(mounts(service))
    assert mounted["./grafana/provisioning"] == "/etc/grafana/provisioning"
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert host in compose["services"]
    assert port in str(compose["services"][host]["healthcheck"]["test"])
    (provider,) = read("grafana/provisioning/dashboards/thriftroute.yaml")["providers"]
    dashboard = Path(mounted["./grafana/thriftroute.json"])
    assert str(dashboard.parent) == provider["options"]["path"]
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == str(dashboard)


def test_the_dashboards_sources_are_provisioned() -> None:
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    board = json.loads((DEPLOY / "grafana" / "thriftroute.json").read_text(encoding="utf-8"))
    variables = [v for v in board["templating"]["list"] if v["type"] == "datasource"]
    assert [v["query"] for v in variables] == [source["type"]]
    allowed = {source["uid"], "-- Grafana --", *(f"${{{v['name']}}}" for v in variables)}
    found = set(re.findall(r'"uid": "([^"]+)"', json.dumps(board["panels"])))
    assert found <= allowed


def unit_section(name: str) -> dict[str, str]:
    # EnvironmentFile and the like may stand twice in a unit, though not in this one.
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "thriftroute.service", encoding="utf-8")
    return dict(unit[name])


def test_the_unit_fits_the_command_and_the_config(config: Config) -> None:
    service = unit_section("Service")
    program, command, flag, path = shlex.split(service["ExecStart"])
    assert Path(program).name == "thriftroute"
    serve = get_command(app).commands[command]  # type: ignore[attr-defined]
    assert flag in {name for option in serve.params for name in option.opts}
    assert Path(path).parent == Path(service["EnvironmentFile"]).parent
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert int(service["TimeoutStopSec"]) > config.server.shutdown_s
    assert service["RestartPreventExitStatus"] == "2"  # of a ConfigError


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "thriftroute.service").read_text(encoding="utf-8")
    here = tmp_path / "thriftroute.service"
    here.write_text(text.replace("/opt/thriftroute/bin/thriftroute", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", here], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """By kind."""
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    return {found["kind"]: found for found in yaml.safe_load_all(text)}


def test_the_pods_fit_the_image_and_the_config(
    manifests: dict[str, dict[str, Any]], dockerfile: list[tuple[str, str]], config: Config
) -> None:
    spec = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsUser"] == int(last(dockerfile, "USER"))
    assert [port["containerPort"] for port in container["ports"]] == [config.server.port]
    env = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"]}
    assert {name: ref["key"] for name, ref in env.items()} == {name: name for name in ENVIRON}
    assert {ref["name"] for ref in env.values()} == {"thriftroute"}
    _, _, path, *_ = json.loads(last(dockerfile, "CMD"))
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted["config"] == str(Path(path).parent)
    assert mounted["state"] == last(dockerfile, "WORKDIR")
    assert set(mounted) == {volume["name"] for volume in spec["volumes"]}
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > wait + config.server.shutdown_s
    routes = {getattr(route, "path", None) for route in create_app(config).routes}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in routes
        assert container[probe]["httpGet"]["port"] == container["ports"][0]["name"]


def test_the_manifests_fit_each_other(manifests: dict[str, dict[str, Any]]) -> None:
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    budget = manifests["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["minAvailable"] < manifests["Deployment"]["spec"]["replicas"]
