import base64
import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from thriftroute.serve.api.admin import PAGE, content_security_policy
from thriftroute.serve.api.auth import digest
from thriftroute.serve.records.record import Record
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.browser import drawn
from thriftroute.tests.helpers.serving import pool, serving

TEXT = PAGE.read_text(encoding="utf-8")
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


def part(tag: str) -> str:
    (found,) = re.findall(rf"<{tag}>(.*?)</{tag}>", TEXT, re.S)
    return str(found)


def test_the_policy_allows_this_script_and_this_style_and_nothing_else() -> None:
    policy = dict(item.split(" ", 1) for item in content_security_policy(TEXT).split("; "))
    for tag in ("script", "style"):
        hashed = base64.b64encode(hashlib.sha256(part(tag).encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{hashed}'"
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in content_security_policy(TEXT)


def test_nothing_comes_from_outside() -> None:
    namespaces = TEXT.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"(?:https?:)?//[\w.]", re.sub(r"(?m)^\s*//.*$| // .*$", "", namespaces))
    assert not re.findall(
        r"@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|<iframe|<img", TEXT
    )


def test_data_never_becomes_markup_or_code() -> None:
    script = part("script")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "srcdoc",
    ):
        assert word not in script
    body = TEXT[TEXT.index("<body>") :].replace(script, "")
    assert not re.findall(r"\son\w+=|\sstyle=|javascript:", body)


def test_every_element_that_the_script_looks_for_is_there() -> None:
    ids = set(re.findall(r'\sid="([\w-]+)"', TEXT))
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', part("script")))
    assert wanted <= ids
    assert len(wanted) > 15


def text_of(html: str, id: str) -> str:
    """The text within the element of that id, up to the next section."""
    rest = html[html.index(f'id="{id}"') :]
    return " ".join(re.sub(r"<[^>]*>", " ", rest[: rest.index("</section>")]).split())


@pytest.fixture(scope="module")
def provider() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


def records(n: int, **more: Any) -> Iterator[Record]:
    for i in range(n):
        strong = i % 4 == 0
        yield Record(
            **{
                "id": f"decision-{i}",
                "time": time.time() - 600 * i,
                "requested": "auto",
                "model": "strong" if strong else "weak",
                "strong": strong,
                "choice": "strong" if strong else "weak",
                "score": 0.75 if strong else 0.25,
                "threshold": 0.5,
                "reason": f"reason {i}",
                "router": "mf",
                "cost": 0.04 if strong else 0.01,
                "strong_cost": 0.04,
                "latency_s": 0.5,
                "feedback": 1.0 if i == 1 else None,
                **more,
            }
        )


@contextlib.contextmanager
def filled(
    provider: StubProvider, folder: Path, rows: Iterable[Record], *, text: bool = False, **more: Any
) -> Iterator[str]:
    records = {"url": f"sqlite:///{folder / 'decisions.db'}", "flush_s": 0.02, "text": text}
    with serving(pool(provider.url, records=records, **more)) as running:
        for row in rows:
            running.state.recorder.put(row)
        while running.state.recorder.pending:
            time.sleep(0.01)
        yield running.url


def test_a_browser_draws_spend_models_and_decisions(provider: StubProvider, tmp_path: Path) -> None:
    tried = (
        {"model": "weak", "status": 500, "error": "BrokenError", "seconds": 0.1},
        {"model": "strong", "status": 200, "error": None, "seconds": 0.2},
    )
    steps = [["eligibility", "2 of 2"], ["percentile", "harder than 83% of ordinary prompts"]]
    with filled(provider, tmp_path, records(20, attempts=tried, steps=steps)) as url:
        html = drawn(url, tmp_path / "browser")
    tiles = html[html.index('id="tiles"') : html.index("</dl>")]
    values = re.findall(r'class="value">([^<]*)<', tiles)
    # 5 strong answers at $0.04 and 15 weak ones at $0.01, instead of 20 at $0.04; latencies are
    # kept in steps of 5%.
    assert values == ["$0.35", "$0.45", "25.0%", "505 ms", "20", "0"]
    assert "strong 5 0 505 ms $0.20 $0 weak 15 0 505 ms $0.15 $0.45" in text_of(html, "groups")
    assert "Named models and rules are left out." in html
    assert "20 of the latest 20 requests were routed by score" in text_of(html, "scores")
    assert html.count('class="score"') == 20  # bars
    assert "At threshold 0.500: 25.0% strong, 75.0% saved" in text_of(html, "scores")
    for id in ("shadow", "notices", "looks", "sessions"):
        assert re.search(rf'id="{id}"[^>]* hidden', html)
    assert "$10.00 $20.00" in text_of(html, "models")
    decisions = text_of(html, "decisions")
    assert "reason 0" in decisions
    assert "reason 19; harder than 83% of ordinary prompts" in decisions
    assert decisions.count("weak 500 BrokenError, strong 200") == 20
    assert html.count('aria-pressed="true"') == 1
    assert '<section id="gate" class="card" hidden' in html
    assert "<rect" in html


def test_shadow_mode_notices_second_looks_sessions_and_prompts_are_told(
    provider: StubProvider, tmp_path: Path
) -> None:
    told = json.dumps(
        [{"role": "system", "content": "hush"}, {"role": "user", "content": "Hello!"}]
    )
    rows = [
        *records(4, model="strong", strong=True, choice="shadow", cost=0.04, routed_cost=0.01,
                 routed="weak", prompt=told),
        *records(2, id="a", escalated=False, cost=0.01),
        *(Record(id=f"s{i}", time=time.time(), session_hash="5e55" * 16, model="weak", cost=0.01,
                 strong_cost=0.03, steps=[["switch", said]]) for i, said in
          enumerate(("start: new", "switch: it pays", "stay: no natural point"))),
        *records(1, id="b", escalated=True, cost=0.05),
        *records(1, id="c", cache="hit", cost=0.0),
    ]  # fmt: skip
    models = [{**model, "tags": ["simulated"]} for model in pool(provider.url)["models"]]
    for number, row in enumerate(rows):
        row.id = f"{number}"
    with filled(provider, tmp_path, rows, text=True, shadow=True, models=models) as url:
        html = drawn(url, tmp_path / "browser")
    shadow = re.sub("<[^>]*>", "", html[html.index('id="shadow"') : html.index('id="notices"')])
    assert "routing would have saved $0.12, 75.0% of always strong." in shadow
    assert "4 requests were decided; by score, 25.0% would have gone to it." in shadow
    assert "simulated models (strong, weak): answers are made up" in html
    # $0.06 of answers that stood, $0.06 of the session, less $0.01 of the escalation.
    assert "$0.11 by routing, $0.04 by the cache" in html
    looks = text_of(html, "looks")
    assert "looked at 3 escalated 1 (33.3%) escalations cost $0.01 more" in looks
    assert "that stood saved $0.06" in looks
    assert "5e555e55 weak" in text_of(html, "sessions")
    assert "3 1 $0.03 $0.06" in text_of(html, "sessions")
    prompts = re.findall(r'<td class="wide">Hello!</td>', html)
    assert len(prompts) == 4


def test_hostile_text_stays_text(provider: StubProvider, tmp_path: Path) -> None:
    named = dict.fromkeys(("tenant", "key", "tier", "model", "reason", "error", "task"), HOSTILE)
    rows = records(3, **named, requested=HOSTILE, choice=HOSTILE, steps=[[HOSTILE, HOSTILE]])
    with filled(provider, tmp_path, rows) as url:
        html = drawn(url, tmp_path / "browser")
    assert "<title>thriftroute</title>" in html
    assert "<img" not in html
    assert html.count("<script>") == 1
    assert html.count("&lt;img src=x onerror=") >= 9


def test_an_empty_server_says_so(provider: StubProvider, tmp_path: Path) -> None:
    with filled(provider, tmp_path, records(0)) as url:
        html = drawn(url, tmp_path / "browser", width=500)
    assert "No decisions yet in this period." in text_of(html, "decisions")
    assert "No requests in this period yet." in text_of(html, "chart")
    assert "NaN" not in html.replace(part("script"), "")


def test_a_server_that_records_nothing_says_so(provider: StubProvider, tmp_path: Path) -> None:
    with serving(pool(provider.url)) as running:
        html = drawn(running.url, tmp_path / "browser")
    assert "Decisions are not recorded: records.url is null" in text_of(html, "decisions")


def test_a_server_with_keys_asks_for_one(provider: StubProvider, tmp_path: Path) -> None:
    settings = pool(provider.url, server={"admin_sha256": digest("sk-root")})
    with serving(settings) as running:
        html = drawn(running.url, tmp_path / "browser")
    assert '<section id="gate" class="card"><' in html.replace("\n", "").replace("  ", "")
    assert '<div id="board" hidden' in html
    assert "to whoever has its admin key" in html
