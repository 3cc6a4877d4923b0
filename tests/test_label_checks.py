"""Checks: what is right, what a file may hold, and code that runs for real."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from thriftroute.data.logs.schema import LogRow
from thriftroute.errors import ConfigError, DataError
from thriftroute.labels.checks import (
    Check,
    Checks,
    check_of,
    code_in,
    number_in,
    passes,
    read_checks,
)


def checks_of(tmp_path: Path, *records: Any, run_code: bool = False) -> Checks:
    path = tmp_path / "checks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_checks(path, run_code=run_code)


def row(name: str, prompt: str = "p") -> LogRow:
    return LogRow(id=name, messages=({"role": "user", "content": prompt},), prompt=prompt)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Paris", True),
        (" paris.\n", True),
        ("**Paris**", True),
        ("The city of\n light", True),
        ("It is Paris", False),
        ("", False),
    ],
)
def test_exact_is_without_case_and_marks(answer: str, right: bool) -> None:
    assert passes(Check("exact", ["Paris", "the city of light"]), answer) is right


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42),
        ("7 + 8 = 15", 15),
        ("$1,234.50", 1234.5),
        ("-3", -3),
        ("1e3", 1000),
        (".5", 0.5),
        ("1,2", 2),  # a list, no thousands
        ("none", None),
    ],
)
def test_the_last_number_counts(text: str, number: float | None) -> None:
    assert number_in(text) == number


def test_a_number_is_right_within_its_tolerance() -> None:
    assert passes(Check("number", 3.14159, 0.01), "about 3.14")
    assert not passes(Check("number", 3.14159), "about 3.14")
    assert passes(Check("number", 1_000_000), "1,000,000")
    assert not passes(Check("number", 0), "nothing")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"n": 1}', True),
        ('Here:\n```json\n{"n": 1}\n```\nDone.', True),
        ('{"n": "1"}', False),
        ("n is 1", False),
        ("```\n{}\n```\n```\n{}\n```", False),
        ("[" * 100_000, False),
    ],
)
def test_json_is_held_against_its_schema(answer: str, right: bool) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert passes(Check("schema", schema), answer) is right


def test_code_is_the_longest_block() -> None:
    assert code_in("a = 1") == "a = 1"
    assert code_in("Run\n```sh\nls\n```\nof\n```python\na = 1\nb = 2\n```\n") == "a = 1\nb = 2\n"


TEST = "from answer import add\nassert add(1, 2) == 3\n"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Sure:\n```python\ndef add(a, b):\n    return a + b\n```", True),
        ("def add(a, b):\n    return a - b", False),
        ("I cannot do that.", False),
        ("import sys\nsys.exit(1)", False),
    ],
)
def test_a_test_runs_the_answers_code(answer: str, right: bool) -> None:
    assert passes(Check("test", TEST), answer, timeout_s=300) is right


def test_a_test_that_does_not_end_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    told = tmp_path / "alive"
    child = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        f"    open({str(told)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(100)\n"
        "time.sleep(100)\n"
    )
    assert not passes(Check("test", child), "", timeout_s=3)
    process = int(told.read_text())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":  # dead, and whoever inherited it has not looked yet
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{process}").exists()


def test_a_test_sees_none_of_our_keys_nor_our_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.chdir(tmp_path)
    code = (
        "import os\n"
        "assert 'OPENAI_API_KEY' not in os.environ, os.environ\n"
        f"assert os.getcwd() != {str(tmp_path)!r}\n"
        "assert sorted(os.listdir()) == ['answer.py', 'answer.txt', 'test.py'], os.listdir()\n"
        "assert open('answer.txt').read() == 'hello'\n"
    )
    assert passes(Check("test", code), "hello", timeout_s=300)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_a_test_has_a_limit_on_memory() -> None:
    assert not passes(Check("test", "x = bytearray(3 << 30)"), "", timeout_s=300)
    assert passes(Check("test", "x = bytearray(1 << 20)"), "", timeout_s=300)
    assert os.environ  # nothing of this process was limited


def test_a_check_is_found_by_id_or_prompt(tmp_path: Path) -> None:
    found = checks_of(
        tmp_path,
        {"id": "a", "exact": ["x", "y"]},
        {"prompt": "How many?", "number": "1,000", "tolerance": 1},
        {"id": "b", "test": "pass"},
        run_code=True,
    )
    assert len(found) == 3
    assert check_of(found, row("a")) == Check("exact", ["x", "y"])
    assert check_of(found, row("z", "How many?")) == Check("number", 1000.0, 1)
    assert check_of(found, row("b")) == Check("test", "pass")
    assert check_of(found, row("z")) is None


@pytest.mark.parametrize(
    ("record", "field", "words"),
    [
        ({"id": "a"}, "exact", "found none"),
        ({"id": "a", "exact": "x", "number": 1}, "exact", "found exact, number"),
        ({"exact": "x"}, "prompt", "expected id or prompt"),
        ({"id": 3, "exact": "x"}, "id", "expected id or prompt"),
        ({"id": "a", "exact": 3}, "exact", "3 is not text"),
        ({"id": "a", "exact": []}, "exact", "not text"),
        ({"id": "a", "number": "many"}, "number", "'many' is not a finite number"),
        ({"id": "a", "number": True}, "number", "not a finite number"),
        ({"id": "a", "number": 1, "tolerance": -1}, "tolerance", "not a number >= 0"),
        ({"id": "a", "schema": {"type": "objekt"}}, "schema", "not a JSON schema"),
        ({"id": "a", "schema": 3}, "schema", "not a JSON schema"),
        ({"id": "a", "test": " "}, "test", "not Python code"),
    ],
)
def test_a_bad_check_is_named(
    tmp_path: Path, record: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        checks_of(tmp_path, {"id": "good", "exact": "x"}, record, run_code=True)
    assert (caught.value.line, caught.value.field) == (2, field)


def test_a_second_check_of_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' has a check already"):
        checks_of(tmp_path, {"id": "a", "exact": "x"}, {"id": "a", "number": 1})


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        checks_of(tmp_path)


def test_code_is_run_only_where_that_was_allowed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--run-code allows it"):
        checks_of(tmp_path, {"id": "a", "test": "pass"})
