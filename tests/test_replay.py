"""What policies would have cost on recorded sessions: the simulation, the command, the page."""

import csv
import json
import sqlite3
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.cli import app
from thriftroute.data.logs.steps import Sessions, read_steps
from thriftroute.errors import DataError
from thriftroute.eval.replay.replay import each_call, natural_points, never, priced
from thriftroute.providers.prices import Price
from thriftroute.providers.prompt_cache import CachePrice, CacheRules
from thriftroute.router.switching import Pair
from thriftroute.serve.records import Record
from thriftroute.serve.records.database import create_schema, insert, open_engine
from thriftroute.serve.records.table import to_row
from typer.testing import CliRunner

RULES = CacheRules(1024, 300)
STRONG, WEAK = Price(5, 25, 0.5, 6.25, 10), Price(1, 5, 0.1, 1.25)
PAIR = Pair(CachePrice(STRONG, RULES), CachePrice(WEAK, RULES))
PRICES = ["--strong-price", "5,25,0.5,6.25", "--weak-price", "1,5,0.1,1.25"]
MODELS = ["--strong", "a", "--weak", "b", *PRICES]


def rows(n: int, session: str = "s", *, gap: float = 10.0, start: int = 20_000) -> list[Any]:
    """Steps of a session that adds 1,000 tokens to its prompt each time, all else cached."""
    return [
        {
            **{"session": session, "model": "a", "time": 1000 + gap * i, "input_tokens": 0},
            "cache_read_tokens": start + 1000 * (i - 1) if i else 0,
            "cache_write_tokens": 1000 if i else start,
            **{"output_tokens": 100, "messages": i + 1, "tool_results": i, "tool_errors": 0},
        }
        for i in range(n)
    ]


def write(path: Path, lines: list[Any]) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")
    return path


def sessions(tmp_path: Path, lines: list[Any]) -> Sessions:
    return read_steps([write(tmp_path / "steps.jsonl", lines)]).sessions()


def run(*arguments: object) -> dict[str, Any]:
    found = CliRunner().invoke(app, ["replay", *map(str, arguments), "--json"])
    assert found.exit_code == 0, found.output
    return dict(json.loads(found.stdout))


def test_never_to_switch_costs_what_was_recorded(tmp_path: Path) -> None:
    found = never(sessions(tmp_path, rows(3)), PAIR, strong=True)
    wanted = [
        20_000 * 6.25 + 100 * 25,
        20_000 * 0.5 + 1_000 * 6.25 + 100 * 25,
        21_000 * 0.5 + 1_000 * 6.25 + 100 * 25,
    ]
    np.testing.assert_allclose(found.usd, np.array(wanted) / 1e6)
    assert not found.switched.any()


def test_a_switch_pays_for_the_whole_prompt_anew(tmp_path: Path) -> None:
    steps = sessions(tmp_path, rows(4))
    found = each_call(steps, PAIR, np.array([True, False, False, True]))
    wanted = [
        20_000 * 6.25 + 100 * 25,
        21_000 * 1.25 + 100 * 5,  # new to the session
        21_000 * 0.1 + 1_000 * 1.25 + 100 * 5,  # its own cache
        20_000 * 0.5 + 3_000 * 6.25 + 100 * 25,  # what it saw at first is still there
    ]
    np.testing.assert_allclose(found.usd, np.array(wanted) / 1e6)
    assert found.switched.tolist() == [False, True, False, True]
    assert found.warm.sum() < found.usd.sum()


def test_a_model_that_comes_back_too_late_finds_nothing(tmp_path: Path) -> None:
    steps = sessions(tmp_path, rows(3, gap=200.0))
    found = each_call(steps, PAIR, np.array([True, False, True]))
    np.testing.assert_allclose(found.usd[2], (22_000 * 6.25 + 100 * 25) / 1e6)


def test_what_a_compaction_took_is_in_no_cache(tmp_path: Path) -> None:
    lines = rows(4)
    lines[2] |= {"cache_read_tokens": 5_000, "cache_write_tokens": 1_000}
    lines[3] |= {"cache_read_tokens": 6_000, "cache_write_tokens": 1_000}
    steps = sessions(tmp_path, lines)
    assert natural_points(steps).tolist() == [True, False, True, False]
    found = each_call(steps, PAIR, np.array([True, False, False, True]))
    np.testing.assert_allclose(found.usd[3], (5_000 * 0.5 + 2_000 * 6.25 + 100 * 25) / 1e6)


def test_sessions_do_not_touch_one_another(tmp_path: Path) -> None:
    both = sessions(tmp_path, [*rows(3, "x"), *rows(5, "y", start=40_000), *rows(1, "z")])
    wish = np.array([True, False, True, True, True, False, False, True, False])
    together = each_call(both, PAIR, wish)
    at = 0
    for n, name, start in ((3, "x", 20_000), (5, "y", 40_000), (1, "z", 20_000)):
        alone = sessions(tmp_path, rows(n, name, start=start))
        found = each_call(alone, PAIR, wish[at : at + n])
        np.testing.assert_allclose(together.usd[at : at + n], found.usd)
        at += n


def test_priced_routing_follows_a_wish_at_natural_points_alone(tmp_path: Path) -> None:
    lines = rows(6)
    for line in lines[3:]:
        line["messages"] += 1  # the user said something before step 3
    steps = sessions(tmp_path, lines)
    wish = np.array([False, True, True, True, True, True])
    assert priced(steps, PAIR, wish).strong.tolist() == [False, False, False, True, True, True]
    assert not priced(steps, PAIR).strong.any()


def test_rows_without_counts_of_messages_may_each_be_a_turn(tmp_path: Path) -> None:
    lines = [{k: v for k, v in row.items() if k in LEAST} for row in rows(3)]
    assert natural_points(sessions(tmp_path, lines)).all()


LEAST = {"session", "time", "model", "input_tokens", "cache_read_tokens", "output_tokens"}


def test_steps_are_in_the_order_of_their_time(tmp_path: Path) -> None:
    found = sessions(tmp_path, [*reversed(rows(4, "x")), *rows(2, "y")])
    assert found.time[:4].tolist() == [1000, 1010, 1020, 1030]
    assert found.names == ["x", "y"] and found.starts.tolist() == [0, 4, 6]


def test_failed_results_in_a_row_are_a_natural_point(tmp_path: Path) -> None:
    lines = rows(6)
    for line, errors in zip(lines, (0, 1, 2, 3, 3, 4), strict=True):
        line["tool_errors"] = errors
    found = sessions(tmp_path, lines)
    assert found.failed.tolist() == [0, 1, 2, 3, 0, 1]
    assert natural_points(found).tolist() == [True, False, False, True, False, False]


def test_the_command_prints_json(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [*rows(20, "x"), *rows(30, "y"), *rows(5, "z")])
    found = run(path, *MODELS)
    assert [each["policy"] for each in found["policies"]] == ["strong", "weak", "blind", "priced"]
    assert (found["sessions"], found["steps"], found["bad"]) == (3, 55, 0)
    strong, weak, blind, by_price = found["policies"]
    for each in found["policies"]:
        assert each["steps"] == 55
        assert each["usd_ci"][0] <= each["usd"] <= each["usd_ci"][1]
    assert strong["usd"] == pytest.approx(found["recorded"]["usd"])
    assert by_price["usd"] <= 1.05 * min(strong["usd"], weak["usd"])
    assert strong["switches"] == weak["switches"] == 0 < blind["switches"]
    assert found["differences"]["blind, warm"]["usd_ci"][0] > 0
    assert found["advice"].startswith("do not switch inside sessions")
    assert run(path, *MODELS) == found


def test_bad_lines_are_counted_and_named(tmp_path: Path) -> None:
    lines = rows(5)
    lines[1]["output_tokens"] = -1
    lines[2]["time"] = "yesterday"
    lines[3]["input_tokens"] = {}
    path = write(tmp_path / "s.jsonl", [*lines, "{torn", "[1]", json.dumps({"x": 1})])
    found = run(path, *MODELS)
    assert (found["steps"], found["bad"]) == (2, 6)
    for line, told in ((2, "below 0"), (3, "no moment"), (4, "number"), (6, "JSON")):
        assert any(f"s.jsonl:{line}" in p and told in p for p in found["problems"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--weak", "b", *PRICES], "--strong MODEL is missing"),
        (["--strong", "no/such", "--weak", "gpt-4o"], "--strong-price IN,OUT"),
        ([*MODELS, "--threshold", "0.5"], "give --router"),
        ([*MODELS, "--router", "mf"], "no text to score"),
        ([*MODELS, "--out", "page.txt"], "ends in .html"),
        ([*MODELS, "--steps", "nowhere/x.csv"], "there is no folder"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, arguments: list[str], told: str) -> None:
    path = write(tmp_path / "s.jsonl", rows(3))
    found = CliRunner().invoke(app, ["replay", str(path), *arguments])
    assert found.exit_code != 0
    assert told in " ".join(found.stderr.split())


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        read_steps([tmp_path / "missing.jsonl"])
    chat = write(tmp_path / "chat.jsonl", [{"prompt": "Hello", "answer": "Hi"}])
    steps = read_steps([chat])
    assert steps.bad == 1 and "nothing of sessions" in steps.problems[0]
    with pytest.raises(DataError, match="no step of a session in 1 entries"):
        steps.sessions()


def test_other_files_of_a_folder_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "steps.jsonl", rows(3))
    write(tmp_path / "settings.json", [{"theme": "dark"}])
    write(tmp_path / "torn.json", ["{torn"])
    steps = read_steps([tmp_path])
    assert (steps.rows, steps.empty, steps.bad) == (3, 1, 1)


def test_our_own_records_in_a_database(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/own.db")
    create_schema(engine)
    records = [
        Record(
            *(f"r{i}", 100.0 + i),
            **{"session_hash": "h", "model": "a", "completion_tokens": 9},
            **{"prompt_tokens": 5000 + i, "cached_tokens": 4000},
            status=500 if i == 2 else 200,
            cache="hit" if i == 3 else "off",
        )
        for i in range(5)
    ]
    with engine.begin() as connection:
        insert(connection, list(map(to_row, records)))
    engine.dispose()
    found = read_steps([tmp_path / "own.db"]).sessions()
    assert (found.n, found.steps) == (1, 3)
    assert found.usage.input.tolist() == [1000, 1001, 1004]
    assert found.usage.cache_read.tolist() == [4000] * 3


def test_messages_of_opencode_in_a_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "opencode.db") as connection:
        connection.execute("CREATE TABLE message (id TEXT, session_id TEXT, data TEXT)")
        tokens = {"input": 10, "output": 5, "reasoning": 1, "cache": {"read": 90, "write": 7}}
        data = {"role": "assistant", "modelID": "m", "time": {"created": 1e12}, "tokens": tokens}
        connection.execute("INSERT INTO message VALUES ('a', 's', ?)", (json.dumps(data),))
    connection.close()
    found = read_steps([tmp_path / "opencode.db"]).sessions()
    assert (found.names, found.usage.cache_write.tolist()) == (["s"], [7.0])


def test_spend_logs_and_spans_tell_what_was_cached(tmp_path: Path) -> None:
    spend = {
        **{"request_id": "r", "startTime": "2026-01-01T00:00:00Z", "spend": 0.1},
        **{"session_id": "s", "model": "m", "prompt_tokens": 1000, "completion_tokens": 5},
        "metadata": {"usage_object": {"cache_read_input_tokens": 700}},
    }
    usage = {"input_tokens": 1000, "output_tokens": 5, "cache_read.input_tokens": 600}
    span = {
        **{"traceId": "t", "spanId": "x", "startTimeUnixNano": "1767225600000000000"},
        "attributes": {
            **{f"gen_ai.usage.{name}": count for name, count in usage.items()},
            **{"gen_ai.request.model": "m", "gen_ai.conversation.id": "c"},
        },
    }
    files = [write(tmp_path / "a.jsonl", [spend]), write(tmp_path / "b.jsonl", [span])]
    found = read_steps(files).sessions()
    assert found.names == ["s", "c"]
    assert found.usage.input.tolist() == [300, 400]
    assert found.usage.cache_read.tolist() == [700, 600]


def test_steps_and_page_are_written(tmp_path: Path) -> None:
    name = "<b>x</b>"
    path = write(tmp_path / "s.jsonl", [*rows(20, name), *rows(3, "y")])
    out, steps = tmp_path / "page.html", tmp_path / "steps.csv"
    run(path, *MODELS, "--out", out, "--steps", steps)
    html = out.read_text()
    HTMLParser().feed(html)
    assert "Do not switch inside sessions" in html and "<b>x</b>" not in html
    assert "Simulated" not in html
    prices = ("--strong-price", "5,25,0.5,6.25", "--weak-price", "1,5,0.1,1.25")
    made_up = ("--strong", "openai/strong-sim", "--weak", "openai/weak-sim", *prices)
    assert run(path, *made_up, "--out", out)["simulated"] is True
    assert "<strong>Simulated.</strong> simulated data: no model answered" in out.read_text()
    with steps.open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 23
    assert float(table[1]["strong_usd"]) > float(table[1]["weak_usd"]) > 0
    assert {row["blind_model"] for row in table} == {"strong", "weak"}


def test_a_router_s_wishes_are_those_of_what_the_user_said(tmp_path: Path) -> None:
    from tests.test_logs_transcripts import CLAUDE
    from tests.test_logs_transcripts import write as transcript

    path = transcript(tmp_path / "s1.jsonl", CLAUDE)
    all_strong, none = (run(path, *MODELS, "--router", "mf", "--threshold", t) for t in ("0", "1"))
    assert [each["strong_steps"] for each in all_strong["policies"]] == [4, 0, 4, 4]
    assert [each["strong_steps"] for each in none["policies"]] == [4, 0, 0, 0]
    assert "blind routing would have sent every session to one model" in none["advice"]


def test_the_server_s_file_names_pair_prices_and_router(tmp_path: Path) -> None:
    config = tmp_path / "thriftroute.yaml"
    price = "{input: 5, output: 25, cached_input: 0.5}"
    models = [f"  - {{name: {name}, price: {price}}}" for name in ("big", "small")]
    config.write_text("\n".join(["models:", *models, "strong: big", "weak: small"]) + "\n")
    found = run(write(tmp_path / "s.jsonl", rows(9)), "--config", config)
    assert (found["strong"], found["weak"], found["router"]) == ("big", "small", None)
    strong, weak, *_ = found["policies"]
    assert strong["usd"] == weak["usd"] > 0


def test_real_sessions_meet_the_bars(data_dir: Path) -> None:
    found = run(
        data_dir / "agent_steps.parquet",
        *("--strong", "claude-opus-4-6", "--weak", "claude-haiku-4-5"),
    )
    strong, weak, _, by_price = found["policies"]
    assert by_price["usd"] <= 1.05 * min(strong["usd"], weak["usd"])
    assert found["differences"]["blind, warm"]["usd_ci"][0] > 0
    whole = read_steps([data_dir / "agent_steps.parquet"]).sessions()
    # Sessions of the strong model alone: what they cost at the map's prices.
    code = whole.models.index("claude-opus-4-6")
    usage = whole.usage
    paid = usage.input * 5 + usage.cache_read * 0.5 + usage.cache_write * 6.25 + usage.output * 25
    mine = whole.model == code
    opus = never(whole, Pair(CachePrice(STRONG, RULES), PAIR.weak), strong=True)
    assert mine.sum() == 400
    assert opus.usd[mine].sum() == pytest.approx(paid[mine].sum() / 1e6, rel=0.01)
