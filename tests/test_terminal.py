"""What other people wrote cannot steer a terminal, whichever command prints it."""

import csv
import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table
from thriftroute.terminal import LogFormatter, new_console, one_line, visible

CLEAR = "\x1b[2J\x1b]0;gone\x07"  # clears the screen and renames the window
EVIL = f"A river{CLEAR}\x9b31m\u202egnp.exe\u2066 \x7f[red]x[/red] :boom:"
STEERING = set(
    [chr(c) for c in range(32) if c not in (9, 10)]
    + [chr(c) for c in range(0x7F, 0xA0)]
    + list("\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)


def steering(text: str) -> set[str]:
    return STEERING & set(text)


def test_steering_characters_become_visible_and_others_stay() -> None:
    assert visible("a\x1b[31mb\x07\r\nc\u202ed\te") == "a\\x1b[31mb\\x07\nc\\u202ed\te"
    assert visible("\x9b1m\U000e0041") == "\\u009b1m\\udb40\\udc41"
    said = "Zażółć 日本語 👩\u200d🚀 क्\u200dष ا é\nline\ttab"
    assert visible(said) == said
    assert one_line("a\nb\r\x1bc") == "a b \\x1bc"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_stays_the_same_json(text: str) -> None:
    told = visible(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(told) == {text: [text]}
    assert not steering(told)


def test_a_console_has_no_escape_of_others() -> None:
    out = io.StringIO()
    console = new_console(file=out, width=200, force_terminal=True, color_system="standard")
    console.print(EVIL, markup=False, highlight=False)
    table = Table("name")
    table.add_row(escape(EVIL), style="bold")
    console.print(table)
    console.print(escape(EVIL), style="red", highlight=False)
    printed = out.getvalue()
    assert printed.count("\\x1b[2J") == 3 and printed.count("\\u202e") == 3
    assert printed.count("[red]x[/red] :boom:") == 3
    # Its own colours are there still.
    assert "\x1b[31m" in printed and "\x1b[2J" not in printed and "\x1b]" not in printed


def test_a_log_record_is_one_line_whatever_it_is_about() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LogFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("%s %s", "GET", f"/v1\nERROR forged {EVIL}")
    try:
        raise ValueError(EVIL)
    except ValueError:
        logger.exception("it broke")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("WARNING GET /v1\\nERROR forged A river\\x1b[2J")
    assert lines[1] == "ERROR it broke" and "ValueError" in lines[-1]
    assert not steering(out.getvalue())


def command(*args: object, cwd: Path) -> str:
    """What a command writes to both streams, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "thriftroute.cli", *map(str, args)],
        capture_output=True,
        timeout=300,
        check=False,
        cwd=cwd,
    )
    return (done.stdout + done.stderr).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of other people's writing."""
    found = tmp_path_factory.mktemp("evil")
    rows: list[dict[str, Any]] = [
        {"id": f"{i}{EVIL}", "prompt": f"{EVIL} number {i}", "answer": EVIL, "model": EVIL,
         "task": f"t\nerror: forged {EVIL}", "tenant": EVIL, "session": EVIL}
        for i in range(40)
    ]  # fmt: skip
    write(found / "log.jsonl", rows)
    write(found / "bad.jsonl", [{f"c{EVIL}": 1}])
    write(found / "prompts.jsonl", [{"prompt": EVIL}])
    pairs = [
        {"prompt": f"{EVIL} {i}", "model_a": f"S{EVIL}", "model_b": "W", "outcome": "ab"[i % 2],
         "category": EVIL}
        for i in range(60)
    ]  # fmt: skip
    write(found / "pairs.jsonl", pairs)
    with (found / "bad.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "model", "score"], ["q", "m", EVIL]])
    models = [
        {"name": f"{side}{EVIL}", "model": f"openai/{side}", "price": {"input": 1, "output": 1}}
        for side in ("strong", "weak")
    ]
    strong, weak = (model["name"] for model in models)
    config = {"models": models, "strong": strong, "weak": weak, "router": {"name": "random"}}
    (found / "thriftroute.yaml").write_text(json.dumps(config))  # which is YAML, too
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


NAMES = ("--strong", f"S{EVIL}", "--weak", "W")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("score", EVIL), "\\x1b[2J"),
        (("score", "--data", "prompts.jsonl"), "\\x1b[2J"),
        (("route", "q", "--router", "random", "--threshold", "0.5", "--strong-model", EVIL,
          "--weak-model", EVIL),
         "\\x1b[2J"),
        (("route", "q", "--router", "random", "--threshold", "0.5", "--json", "--strong-model",
          EVIL, "--weak-model", EVIL), "\\u202e"),
        (("score", "--data", f"none{CLEAR}.jsonl"), "\\x1b[2J"),
        (("inspect", f"none{CLEAR}"), "\\x1b[2J"),
        (("logs", "report", "log.jsonl", "--clusters", "1"), "\\x1b[2J"),
        (("logs", "import", "log.jsonl", "--out", "o.jsonl", "--report", "--clusters", "1"),
         "\\x1b[2J"),
        (("logs", "import", "bad.jsonl", "--out", "o.jsonl"), "\\x1b[2J"),
        (("logs", "score", "bad.jsonl", "--out", f"o{CLEAR}.jsonl"), "\\x1b[2J"),
        (("label", "log.jsonl", "--out", "l.jsonl", "--strong", f"openai/{EVIL}", "--weak",
          "openai/w", "--judge", f"openai/{EVIL}", "--strong-price", "1,1", "--weak-price", "1,1",
          "--judge-price", "1,1", "--estimate"), "\\x1b[2J"),
        (("evaluate", "--router", "mf", "--data", "pairs.jsonl", *NAMES), "\\x1b[2J"),
        (("evaluate", "--router", "mf", "--data", "bad.csv", *NAMES), "\\x1b[2J"),
        (("audit", "--router", "random", "--data", "pairs.jsonl", *NAMES), None),
        (("models", "--config", "thriftroute.yaml"), "\\x1b[2J"),
        (("models", "--config", "thriftroute.yaml", "--json"), "\\u202e"),
        (("keys", "new", "--name", "anna", "--tenant", "a\u202eb"), None),
        (("watch", "--config", f"none{CLEAR}.yaml"), "\\x1b[2J"),
    ],
)  # fmt: skip
def test_no_command_prints_what_steers_a_terminal(
    folder: Path, args: tuple[str, ...], told: str | None
) -> None:
    printed = command(*args, cwd=folder)
    assert not steering(printed), printed
    assert printed.strip() and "Traceback" not in printed, printed
    assert "\nerror: forged" not in printed
    if told is not None:
        assert told in printed, printed
