"""Scripts in all that a page shows, in a real browser; permissions of what is written."""

import asyncio
import json
import os
import random
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ...tests.helpers.browser import drawn
from .harness import Row, Server, serving, settings
from .provider import Provider

# Any of these that runs changes the page's title.
SCRIPTS = (
    "<script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "<svg onload=\"document.title='ran'\">",
    "'\"><iframe srcdoc=\"<script>parent.document.title='ran'</script>\">",
    "javascript:document.title='ran'",
    "</style></script><script>document.title='ran'</script>",
    "${document.title='ran'}{{document.title='ran'}}",
)
PICTURES = Path("out") / "trials"  # of the folder that the trials are run in


async def pages(scale: float) -> list[Row]:
    """Scripts in prompts, models, tenants, tasks and rules: page and report in Chromium."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="thriftroute-") as name:
        folder = Path(name)
        return [await _page(folder), await _report(folder)]


async def rights(scale: float) -> list[Row]:
    """Permissions of all that a server with two workers, records and a disk cache writes."""
    found: dict[str, str] = {}
    before = os.umask(0o022)
    try:
        async with Provider().serve() as provider:

            def make(folder: Path) -> dict[str, Any]:
                more: dict[str, Any] = {"records": {"text": True}, "server": {"workers": 2}}
                cache = {"backend": "disk", "path": str(folder / "cache")}
                made = settings(provider.url, folder, cache=cache, **more)
                made["keys"][0]["tier"] = None  # budgets of two workers would need Redis
                return {**made, "tiers": {}}

            async with serving(make) as server:
                for index in range(40):
                    await server.ask("weak", f"{index}")
                await server.settled()
                temporary = Path(tempfile.gettempdir()).glob("thriftroute-*")
                own = [path for path in temporary if _holds(path, server)]
                for top in (server.folder, *own):
                    for path in (top, *sorted(top.iterdir())):
                        name = "" if path == top else path.name
                        found[f"{'temporary' if top in own else 'records'}/{name}"] = _mode(path)
    finally:
        os.umask(before)
    found.pop("records/thriftroute.yaml")  # the harness' own
    found.pop("records/")
    shut = [name for name, mode in found.items() if name.endswith("/") and mode[4:] == "------"]
    loose = [
        name
        for name, mode in found.items()
        if mode[4:] != "------" and not name.startswith(tuple(shut))
    ]
    row = Row("permissions, umask 022", n=len(found), losses=len(loose))
    row.note = "; ".join(f"{name} {mode}" for name, mode in sorted(found.items()))
    return [row]


async def _page(folder: Path) -> Row:
    row = Row("scripts on the server's page")
    async with Provider().serve() as provider:

        def make(at: Path) -> dict[str, Any]:
            made = settings(provider.url, at)
            made["keys"], made["server"] = (), {"port": 0}  # the page then asks for no key
            made["default_tier"] = "all"
            for model, script in zip(made["models"], SCRIPTS, strict=False):
                model["name"] = script  # LiteLLM's name for it stays "openai/strong"
            made["strong"], made["weak"] = SCRIPTS[0], SCRIPTS[1]
            made["rules"] = [{"name": SCRIPTS[2], "when": {"task": ["rule"]}, "model": SCRIPTS[1]}]
            made["records"]["text"] = True
            return made

        async with serving(make) as server:
            for index, script in enumerate(SCRIPTS * 4):
                await _chat(server, script, "rule" if index % 3 else script)
            await server.settled()
            urls = {"page": server.url}
            row.losses, row.n = await asyncio.to_thread(_look, urls, folder)
    row.note = f"title unchanged: {row.losses == 0}; pictures in {PICTURES}"
    return row


async def _chat(server: Server, script: str, task: str) -> None:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": script}],
        "metadata": {"task": task, "tenant": script, "session": script},
        "user": script,
    }
    async with server.session.post(f"{server.url}/v1/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()


async def _report(folder: Path) -> Row:
    row = Row("scripts in the audit's report")
    labels, page = folder / "labels.jsonl", folder / "report.html"
    draw, strong, weak = random.Random(0), SCRIPTS[0], SCRIPTS[1]
    with labels.open("w", encoding="utf-8") as out:
        for index in range(400):
            hard = index % 2 == 0
            what = "Prove the theorem" if hard else "Say hello"
            for model, right in ((strong, 0.9), (weak, 0.3 if hard else 0.9)):
                line = {
                    "prompt": f"{what} {SCRIPTS[index % len(SCRIPTS)]} {index}",
                    "model": model,
                    "score": float(draw.random() < right),
                    "category": SCRIPTS[index % 3],
                }
                out.write(json.dumps(line) + "\n")
    run = "from thriftroute.cli import main; main()"
    command = [sys.executable, "-c", run, "report", "--data", str(labels), "--out", str(page)]
    command += ["--strong", strong, "--weak", weak]
    done = await asyncio.to_thread(
        subprocess.run, command, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-500:]
    row.losses, row.n = await asyncio.to_thread(_look, {"report": page.as_uri()}, folder)
    row.note = f"title unchanged: {row.losses == 0}; pictures in {PICTURES}"
    return row


def _look(urls: dict[str, str], folder: Path) -> tuple[int, int]:
    """(scripts that ran or stand as elements, looks); pictures wide and narrow, light and dark."""
    wrong = looks = 0
    for name, url in urls.items():
        for width in (1280, 390):
            html = drawn(url, folder / f"browser-{name}-{width}", width=width)
            looks += 1
            title = re.search(r"<title>([^<]*)</title>", html)
            wrong += title is None or "ran" in title.group(1)
            scripts = len(re.findall(r"<script\b", html))
            wrong += scripts > (name == "page") or bool(re.search(r"<(img|iframe)\b", html))
            for dark in (False, True):
                shade = "dark" if dark else "light"
                picture = PICTURES.absolute() / f"{name}-{width}-{shade}.png"
                drawn(
                    url, folder / f"{name}-{width}-{shade}", width=width, dark=dark, picture=picture
                )
    return wrong, looks


def _holds(folder: Path, server: Server) -> bool:
    """True for the folder in which this server's parent process tells its workers the settings."""
    config = folder / "config.json"
    return config.is_file() and str(server.folder) in config.read_text("utf-8")


def _mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)
