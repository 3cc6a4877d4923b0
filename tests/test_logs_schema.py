"""Rows of a log: what makes one valid, and their file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from thriftroute.data.logs.schema import LogRow, read_logs, row_of, write_logs
from thriftroute.data.readers import read_prompts
from thriftroute.errors import DataError

PLAIN = row_of({"id": "1", "prompt": "What is 2+2?"})
FULL = LogRow(
    id="2",
    messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe?"}),
    prompt="Größe?",
    time="2026-01-31T09:30:00.000+00:00",
    answer="7",
    model="gpt-4o",
    input_tokens=5,
    output_tokens=1,
    cost_usd=0.25,
    task="size",
    session="s",
    tenant="t",
    feedback=0.0,
    cluster=0,
    weight=2.5,
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    out = tmp_path / "logs.jsonl"
    assert write_logs([PLAIN, FULL], out) == 2
    assert list(read_logs(out)) == [PLAIN, FULL]
    assert out.read_text().splitlines()[0] == '{"id": "1", "prompt": "What is 2+2?"}'
    assert write_logs(iter([FULL]), out) == 1
    assert json.loads(out.read_text())["messages"] == list(FULL.messages)


def test_a_log_is_read_wherever_prompts_are(tmp_path: Path) -> None:
    write_logs([PLAIN, FULL], tmp_path / "logs.jsonl")
    assert list(read_prompts(tmp_path / "logs.jsonl")) == ["What is 2+2?", "Größe?"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "logs.jsonl"
    write_logs([PLAIN], out)

    def broken() -> Any:
        yield FULL
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        write_logs(broken(), out)
    assert list(read_logs(out)) == [PLAIN]
    assert [path.name for path in tmp_path.iterdir()] == ["logs.jsonl"]


def test_an_answer_after_the_request_is_no_part_of_it() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert row_of({"id": "1", "messages": turns}).to_dict() == {"id": "1", "prompt": "a"}


def test_counts_of_other_languages_are_whole() -> None:
    row = row_of({"id": "1", "prompt": "a", "input_tokens": 12.0, "cluster": 3.0})
    assert (row.input_tokens, row.cluster) == (12, 3)
    assert type(row.input_tokens) is int


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", 7),
        ("prompt", "  "),
        ("time", "yesterday"),
        ("time", 1700000000),
        ("answer", 7),
        ("tenant", ["a"]),
        ("input_tokens", -1),
        ("output_tokens", "many"),
        ("cost_usd", float("nan")),
        ("cost_usd", float("inf")),
        ("feedback", 1.5),
        ("feedback", True),
        ("cluster", -1),
        ("cluster", 1.5),
        ("weight", 0),
        ("weight", -2),
    ],
)
def test_a_bad_value_is_named_with_file_line_and_field(
    tmp_path: Path, field: str, value: object
) -> None:
    out = tmp_path / "logs.jsonl"
    bad = {"id": "2", "prompt": "b", field: value}
    out.write_text('{"id": "1", "prompt": "a"}\n\n' + json.dumps(bad) + "\n")
    with pytest.raises(DataError) as error:
        list(read_logs(out))
    assert (error.value.path, error.value.line, error.value.field) == (str(out), 3, field)


def test_messages_without_a_message() -> None:
    with pytest.raises(DataError, match="at least one message"):
        replace(PLAIN, messages=())


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs.jsonl").write_text("\n")
    with pytest.raises(DataError, match="at least one row"):
        list(read_logs(tmp_path / "logs.jsonl"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        list(read_logs(tmp_path / "none.jsonl"))
