"""Nothing calls home: no look-up, no connection past loopback and no file that nobody asked for.

The programs run under strace, because the libraries below connect from C++, where nothing in Python
sees it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONTROLLER = """
from thriftroute import Controller
from thriftroute.testing.stub import StubProvider

with StubProvider() as provider:
    client = Controller(
        routers=["mf"], strong_model="openai/s", weak_model="openai/w",
        api_base=provider.url, api_key="k",
    )
    messages = [{"role": "user", "content": "hi"}]
    print(client.chat.completions.create(model="router-mf-0.5", messages=messages))
"""
SERVER = """
import json, pathlib, signal, subprocess, sys, time, urllib.request
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.servers import free_port
from thriftroute.tests.helpers.serving import pool

def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=60)

with StubProvider() as provider:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = pool(provider.url, server={"port": port, "host": "127.0.0.1"})
    config = pathlib.Path("config.yaml")  # JSON is YAML
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "thriftroute.cli", "serve", "--config", str(config)]
    server = subprocess.Popen(command)
    for _ in range(1200):
        assert server.poll() is None
        try:
            call("/ready")
            break
        except OSError:
            time.sleep(0.1)
    asked = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    assert json.load(call("/v1/chat/completions", asked))["choices"]
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) in (0, -signal.SIGTERM)
"""
CLI = "from thriftroute.cli import main; main()"
# What our own environment may have set, and what the package sets where nobody did.
QUIET = (
    *("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "HF_UPDATE_DOWNLOAD_COUNTS"),
    *("RAY_USAGE_STATS_ENABLED", "DO_NOT_TRACK", "DISABLE_TELEMETRY", "HF_HUB_OFFLINE"),
)


def traced(folder: Path, code: str, *arguments: str) -> tuple[set[str], set[str]]:
    """Run Python code under strace: (addresses past loopback and name servers that it connected or
    sent to, files that it left in its home)."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed: apt-get install strace")
    home, log = folder / "home", folder / "trace"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in QUIET}
    environment |= {"HOME": str(home), "THRIFTROUTE_CACHE": str(folder / "cache")}
    environment.pop("XDG_CACHE_HOME", None)
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    done = subprocess.run(
        [
            strace,
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-e",
            calls,
            "-o",
            str(log),
            sys.executable,
            "-c",
            code,
            *arguments,
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr[-3000:]
    reached = {
        address
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        for address in re.findall(r'sin6?_port=htons\((\d+)\).*?"([0-9a-f.:]+)"', line)
    }
    far = {
        f"{address}:{port}"
        for port, address in reached
        if port == "53" or not (address.startswith("127.") or address == "::1")
    }
    return far, {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()}


def test_what_the_user_has_set_stays() -> None:
    code = f"import json, os, thriftroute; print(json.dumps([os.environ.get(n) for n in {QUIET}]))"
    unset = {k: v for k, v in os.environ.items() if k not in QUIET}
    for given, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**unset, **given}, capture_output=True, check=True
        )
        assert json.loads(done.stdout) == [expected, "1", "0", "0", None, None, None]


@pytest.mark.parametrize("code", [CONTROLLER, SERVER], ids=["controller", "serve"])
def test_routing_calls_nobody_but_the_provider(tmp_path: Path, code: str) -> None:
    assert traced(tmp_path, code) == (set(), set())


def test_the_commands_call_nobody(tmp_path: Path, tiny_encoder: Path) -> None:
    """`route`; scoring on two processes; training, which loads and exports an encoder."""
    log, rows = tmp_path / "log.jsonl", tmp_path / "rows.jsonl"
    log.write_text("".join(json.dumps({"prompt": f"what is {i}"}) + "\n" for i in range(200)))
    labels = [
        {"prompt": f"easy {i}" if i % 2 else f"prove {i}", "model_a": "s", "model_b": "w"}
        | {"winner": ["model_a", "model_b", "tie"][i % 3]}
        for i in range(90)
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in labels))
    for name, arguments in {
        "route": ["route", "hi"],
        "score": ["logs", "score", str(log), "--workers", "2", "--out", "scores.jsonl"],
        "train": [
            *("train", "mf", "--data", str(rows), "--strong", "s", "--weak", "w", "--out", "mine"),
            *("--encoder", str(tiny_encoder), "--max-tokens", "48"),
        ],
    }.items():
        (tmp_path / name).mkdir()
        assert traced(tmp_path / name, CLI, *arguments) == (set(), set()), name
