"""The report of a log: totals, shares, lengths, languages, clusters; and how it is shown."""

import io
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from thriftroute.data.logs.importing import Imported
from thriftroute.data.logs.schema import LogRow
from thriftroute.data.logs.show import show_import, show_traffic
from thriftroute.data.logs.traffic_profile import Tally, Traffic, describe

EMBEDDINGS = np.eye(4, dtype=np.float32)


def row(prompt: str, **fields: Any) -> LogRow:
    messages = fields.pop("messages", ({"role": "user", "content": prompt},))
    return LogRow(id=prompt, prompt=prompt, messages=messages, **fields)


ROWS = [
    row("translate this sentence 1", model="big", cost_usd=0.3, input_tokens=10, output_tokens=4,
        time="2026-01-02T00:00:00+00:00", feedback=1.0, answer="x", weight=3.0, task="t"),
    row("translate this sentence 2", model="big", cost_usd=0.1, input_tokens=20, output_tokens=8,
        time="2026-01-01T00:00:00+00:00", feedback=0.0, answer="x", tenant="acme"),
    row("prove that theorem", model="small", cost_usd=0.5, session="s",
        messages=({"role": "system", "content": "s"}, {"role": "user", "content": "prove"},
                  {"role": "tool", "content": "7"}, {"role": "user", "content": "that theorem"})),
    row("prove [red]another[/red] theorem, at length " + "and " * 50, model=None),
]  # fmt: skip


def described(rows: list[LogRow] = ROWS, **options: Any) -> Traffic:
    tally = Tally()
    for each in rows:
        tally.add(each)
    kinds = EMBEDDINGS[[0 if "translate" in each.prompt else 1 for each in rows]]
    options = {"language": None, **options}
    return describe(tally, rows, kinds, **options)


def shown(traffic: Traffic, width: int = 120) -> str:
    out = io.StringIO()
    show_traffic(traffic, Console(file=out, width=width))
    return out.getvalue()


def test_totals_count_each_row_with_its_weight() -> None:
    found = described()
    assert (found.rows, found.requests, found.described) == (4, 6.0, 4)
    assert (found.start, found.end) == (ROWS[1].time, ROWS[0].time)
    assert found.answered == pytest.approx(4 / 6)
    assert found.rated == pytest.approx(4 / 6)
    assert found.feedback == pytest.approx(0.75)
    assert found.cost == pytest.approx(1.5)
    assert list(found.models) == ["big", "small", "?"]
    big = found.models["big"]
    assert big["requests"] == 4.0 and big["cost"] == pytest.approx(1.0)
    assert big["mean_input_tokens"] == pytest.approx(12.5)
    assert found.models["small"]["mean_input_tokens"] is None
    assert found.models["?"]["unpriced"] == 1.0
    assert found.tasks == {"t": 0.5}
    assert found.tenants == {"acme": pytest.approx(1 / 6)}
    assert found.conversations == found.with_system == found.with_tools == pytest.approx(1 / 6)


def test_clusters_tell_their_shares_words_and_examples() -> None:
    first, second = described(k=2).clusters
    assert (first.share, second.share) == (pytest.approx(4 / 6), pytest.approx(2 / 6))
    assert first.cost_share == pytest.approx(1.0 / 1.5)
    assert set(first.words) == {"translate", "this", "sentence"}
    assert {"prove", "theorem"} <= set(second.words)
    # What differs in its numbers alone is one example.
    assert first.examples == ("translate this sentence 1",)
    assert len(second.examples[1]) == 200
    assert first.models == {"big": 1.0}
    assert first.feedback == pytest.approx(0.75) and second.feedback is None


def test_one_cluster_has_its_most_frequent_words() -> None:
    (only,) = described(k=1).clusters
    assert only.share == 1.0
    assert only.words[:3] == ("sentence", "this", "translate")


def test_centers_that_are_there_are_used() -> None:
    found = described(centers=EMBEDDINGS[[2, 0, 1]])
    assert [c.number for c in found.clusters] == [1, 2]


def test_languages_where_they_can_be_told() -> None:
    found = described(language=lambda text: "de" if "translate" in text else None)
    assert found.languages == {"de": pytest.approx(4 / 6), "?": pytest.approx(2 / 6)}
    assert described().languages is None


def test_percentiles_of_lengths_are_weighed() -> None:
    rows = [row("x" * 10, weight=98.0), row("y" * 500), row("z" * 1000)]
    assert described(rows).characters == {"p10": 10.0, "p50": 10.0, "p90": 10.0, "p99": 500.0}


def test_cost_that_is_not_logged_is_estimated_and_marked() -> None:
    known = row("a", model="gpt-4o", input_tokens=1_000_000, output_tokens=100_000)
    unknown = row("b", model="nobody/knows", input_tokens=5, output_tokens=5)
    found = described([known, unknown])
    use = found.models["gpt-4o"]
    assert use["cost"] == use["estimated"] == pytest.approx(3.5)
    assert found.models["nobody/knows"]["unpriced"] == 1.0
    text = shown(found)
    assert "~3.50" in text and "~3,500.00" in text
    half = replace(known, input_tokens=None)
    assert ">~3.50" in shown(described([known, half]))


def test_the_report_is_json() -> None:
    text = json.dumps(asdict(described(k=2)), allow_nan=False)
    assert json.loads(text)["clusters"][0]["examples"] == ["translate this sentence 1"]


@pytest.mark.parametrize("width", [60, 120])
def test_what_the_terminal_shows(width: int) -> None:
    text = shown(described(k=2, language=lambda _: "en"), width)
    assert "6 requests, 4 rows, 2026-01-01T00:00 to 2026-01-02T00:00 (UTC)" in text
    assert "languages: en 100%" in text
    assert "prove [red]another[/re" in text  # as it stands, no markup
    assert "67%" in text and "big" in text
    tables = text[text.index("Models") :].splitlines()
    assert all(len(line) <= width for line in tables)


def test_what_was_looked_at_is_said() -> None:
    tally = Tally()
    for each in ROWS:
        tally.add(each)
    found = describe(tally, ROWS[:2], EMBEDDINGS[:2], language=None)
    text = shown(found)
    assert "from 2 of 4 rows" in text
    assert "languages: not told; pip install 'thriftroute[serve]'" in text


def test_an_import_on_the_terminal(tmp_path: Any) -> None:
    result = Imported(formats={"a[0].jsonl": "openai"}, entries=9, distinct=4, requests=6.0)
    result.left_out["failed"] = 2
    result.bad, result.problem, result.masked, result.written = 1, "a[0].jsonl:3: no", 2, 3
    out = io.StringIO()
    show_import(result, tmp_path / "x.jsonl", Console(file=out, width=60))
    text = out.getvalue()
    assert "a[0].jsonl: openai" in text
    assert "9 entries read, 4 distinct requests in 6; left out: 2 failed; 1 bad" in text
    assert "something masked in 2" in text
    assert "wrote 3 rows" in text and "which stand for 6" in text
