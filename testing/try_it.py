"""`thriftroute try`: what routing does, in a minute, with no key and no training.

The server runs as it would in production, between prompts of the samples and a local stub that
plays two models at their real prices. With a log of one's own nothing is called: it only says where
each prompt would go.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from ..data.logs.import_rows import ImportSettings
from ..data.logs.importing import import_logs
from ..data.readers import read_prompts
from ..errors import ConfigError, DataError, ThriftrouteError
from ..router.routers import load_router, tables_of
from ..router.text import as_conversation
from ..router.threshold import share_table
from .stub import StubProvider
from .stub_faults import Fault

STRONG, WEAK = "gpt-4o", "gpt-4o-mini"
MIX = Path(__file__).resolve().parent.parent / "data" / "samples" / "ordinary.jsonl"
SHARE = 0.3  # of ordinary prompts that goes to strong
ANSWER_TOKENS = 300  # that each simulated answer is billed for
CONFIG = "config.yaml"  # JSON, which is YAML
START_S = 60.0  # the longest that the server may take to answer
CLIENTS = 4
EXAMPLES = 5


@dataclass(frozen=True)
class Routed:
    """A prompt and where it went (or would go). `harder`: share of ordinary prompts below it."""

    prompt: str
    strong: bool
    harder: float | None


@dataclass(frozen=True)
class Tried:
    """What came of the prompts. cost, always_strong: USD, None where nothing was called. page: its
    address, while the server runs."""

    routed: tuple[Routed, ...]
    cost: float | None = None
    always_strong: float | None = None
    page: str | None = None

    @property
    def strong(self) -> int:
        """How many went to the strong model."""
        return sum(one.strong for one in self.routed)

    def examples(self, *, strong: bool) -> list[Routed]:
        """Those furthest to one side, different prompts."""
        chosen = {one.prompt: one for one in self.routed if one.strong is strong}
        key = (lambda one: -(one.harder or 0.0)) if strong else (lambda one: one.harder or 0.0)
        return sorted(chosen.values(), key=key)[:EXAMPLES]


class Trial:
    """The stub and the server, while the block runs; `send` asks and adds up.

    Raises ConfigError where the server does not start; its own words are in it.
    """

    def __init__(self) -> None:
        self._provider = StubProvider((STRONG, WEAK))
        self._provider.always(Fault(usage={"completion_tokens": ANSWER_TOKENS}))
        self._server: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="thriftroute-try-")
        self._log = Path(self._folder.name) / "server.log"
        self._client = httpx.Client(timeout=START_S, trust_env=False)

    def __enter__(self) -> "Trial":
        self._provider.start()
        command = [sys.executable, "-m", "thriftroute.cli", "serve", "--config", CONFIG]
        command += ["--port", "0"]
        where = self._folder.name  # its records go with it
        models = [
            {
                **{"name": f"openai/{name}", "api_base": self._provider.url, "api_key": "none"},
                "tags": ["simulated"],  # the page says so
            }
            for name in (STRONG, WEAK)
        ]
        pair = {"strong": models[0]["name"], "weak": models[1]["name"]}
        settings = {"models": models, **pair, "router": {"name": "mf", "strong_share": SHARE}}
        Path(where, CONFIG).write_text(json.dumps(settings), encoding="utf-8")
        with self._log.open("w", encoding="utf-8") as log:
            self._server = subprocess.Popen(command, stderr=log, cwd=where)
        try:
            self._client.base_url = httpx.URL(self._address())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
        self._provider.close()
        self._folder.cleanup()

    def _address(self) -> str:
        """As the server's log says it."""
        assert self._server is not None
        while self._server.poll() is None:
            for line in self._log.read_text(encoding="utf-8").splitlines():
                if " serves " in line and "/v1" in line:
                    return line.split(" serves ")[1].split("/v1")[0]
            time.sleep(0.05)
        said = " ".join(self._log.read_text(encoding="utf-8").split())
        raise ConfigError(f"the server did not start: {said}")

    def send(self, prompts: Sequence[str]) -> Tried:
        """Ask each prompt, a few at a time. Raises ThriftrouteError for an answer that failed."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            routed = tuple(pool.map(self._ask, prompts))
        deadline = time.monotonic() + START_S
        while True:  # records are written in batches
            totals = self._client.get("/stats").json()["totals"]
            if totals["requests"] >= len(routed):
                break
            if time.monotonic() > deadline:
                raise ThriftrouteError("the server did not record what it answered")
            time.sleep(0.1)
        spent = float(totals["cost"])
        page = str(self._client.base_url.join("/"))
        return Tried(routed, spent, spent + float(totals["saving"]), page)

    def _ask(self, prompt: str) -> Routed:
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
        answer = self._client.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            raise ThriftrouteError(f"the server answered {answer.status_code}: {answer.text[:300]}")
        told = answer.headers
        harder = told.get("x-thriftroute-percentile")
        strong = told["x-thriftroute-choice"] == "strong"
        return Routed(prompt, strong, None if harder is None else float(harder))

    def wait(self) -> None:
        """Until the server ends; Ctrl-C reaches it too."""
        assert self._server is not None
        self._server.wait()


def mix() -> list[str]:
    """The prompts that `try` sends: ordinary ones, on which no bundle was trained."""
    lines = MIX.read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["prompt"]) for line in lines]


def would_route(log: str) -> Tried:
    """Where the distinct requests of a log would go; nothing is called. The log: any that
    `logs import` reads, or a file of prompts. Raises DataError, BundleError."""
    router = load_router("mf")
    table = share_table(tables_of(router))
    assert table is not None
    threshold, _ = table.threshold_for(SHARE)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "logs.jsonl"
        try:
            import_logs([log], source, ImportSettings(on_bad="skip"))
        except DataError:  # no log that is known: prompts, or what says what is wrong
            source = Path(log)
        prompts = list(read_prompts(source))
    scores = router.scores([as_conversation(prompt) for prompt in prompts])
    return Tried(
        tuple(
            Routed(prompt, bool(score >= threshold), table.percentile(float(score)))
            for prompt, score in zip(prompts, scores, strict=True)
        )
    )
