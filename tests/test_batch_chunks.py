"""A log cut into chunks: every line in one of them, none too large, and the rows as they stand."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thriftroute.data.batch.chunks import LogPrompt, plan_chunks, prompts_of
from thriftroute.data.logs.normalize import LeftOutError
from thriftroute.data.logs.schema import read_logs
from thriftroute.errors import ConfigError, DataError
from thriftroute.router.text import as_conversation


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def simple(n: int) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "prompt": f"question {i}"} for i in range(n)]


def good(path: Path, **limits: int) -> list[LogPrompt]:
    found = [row for chunk in plan_chunks([path], **limits).chunks for row in prompts_of(chunk)]
    assert not [row for row in found if isinstance(row, DataError)]
    return [row for row in found if isinstance(row, LogPrompt)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    rows=st.integers(1, 9),
    size=st.integers(1, 90),
    ends=st.booleans(),
)
def test_chunks_cover_every_line_once_and_keep_to_the_limits(
    lengths: list[int], rows: int, size: int, ends: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("cut") / "log.jsonl"
    lines = [b"x" * n + b"\n" for n in lengths]
    if not ends and lengths[-1]:
        lines[-1] = lines[-1][:-1]
    data = b"".join(lines)
    path.write_bytes(data)
    found = plan_chunks([path], format="logs", chunk_rows=rows, chunk_bytes=size).chunks
    assert [c.index for c in found] == list(range(len(found)))
    assert b"".join(data[c.start : c.stop] for c in found) == data
    line = 0
    for chunk in found:
        assert chunk.line == line + 1
        own = lines[line : line + chunk.lines]
        assert data[chunk.start : chunk.stop] == b"".join(own)
        assert 1 <= chunk.lines <= rows
        assert chunk.stop - chunk.start <= size or chunk.lines == 1
        line += chunk.lines
    assert line == len(lines)
    for chunk, after in itertools.pairwise(found):
        full = chunk.lines == rows
        assert full or chunk.stop - chunk.start + len(lines[after.line - 1]) > size


def test_rows_are_those_of_read_logs(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Prove it."},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    path = jsonl(tmp_path / "log.jsonl", [*simple(3), {"id": "talk", "messages": turns}])
    found = good(path, chunk_rows=2)
    assert [row.id for row in found] == [row.id for row in read_logs(path)]
    assert [as_conversation(row.prompt) for row in found] == [
        as_conversation(row.messages) for row in read_logs(path)
    ]
    assert [row.line for row in found] == [1, 2, 3, 4]
    assert as_conversation(found[3].prompt).last == "Why?"


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "prompt": "x"}\n\n  \n{"id": "b", "prompt": "y"}')
    assert [(row.line, row.id) for row in good(path, chunk_rows=1)] == [(1, "a"), (4, "b")]


def test_logs_of_other_tools_are_read_as_they_are(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Prove it."}]
    entries = [
        {"id": "a", "request": {"messages": asked}, "response": {"choices": []}},
        {"id": "b", "request": {"input": "x"}, "response": {}, "url": "/v1/embeddings"},
        {"id": "c", "request": {"messages": "?"}},
    ]
    path = jsonl(tmp_path / "raw.jsonl", entries)
    planned = plan_chunks([path, jsonl(tmp_path / "log.jsonl", simple(1))], chunk_rows=2)
    assert [c.format for c in planned.chunks] == ["openai", "openai", "logs"]
    first, left_out, last, other = (row for c in planned.chunks for row in prompts_of(c))
    assert isinstance(first, LogPrompt) and isinstance(other, LogPrompt)
    assert (first.id, as_conversation(first.prompt).last, other.id) == ("a", "Prove it.", "r0")
    assert isinstance(left_out, LeftOutError)
    assert isinstance(last, LogPrompt | DataError | LeftOutError)
    (named,) = plan_chunks([path], format="openai").chunks
    assert named.format == "openai"


def test_a_field_that_no_score_depends_on_is_not_looked_at(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", [{"id": "a", "prompt": "x", "time": "yesterday"}])
    assert [row.id for row in good(path)] == ["a"]


@pytest.mark.parametrize(
    ("line", "field", "problem"),
    [
        (b'{"id": "a", "prompt": ', None, "not valid JSON"),
        (b'["a"]', None, "not a JSON object"),
        (b'{"id": "a", "prompt": "\xff"}', None, "not UTF-8"),
        (b'{"prompt": "x"}', "id", "missing"),
        (b'{"id": "a"}', "prompt", "missing"),
        (b'{"id": "a", "prompt": "  "}', "prompt", "empty"),
        (b'{"id": "a", "messages": [{"role": "system", "content": "x"}]}', "messages", "no user"),
    ],
)
def test_a_bad_row_has_its_file_line_and_field(
    line: bytes, field: str | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"id": "ok", "prompt": "x"}\n' * 3 + line + b"\n")
    found = [row for chunk in plan_chunks([path], chunk_rows=2).chunks for row in prompts_of(chunk)]
    assert [isinstance(row, DataError) for row in found] == [False, False, False, True]
    bad = found[3]
    assert isinstance(bad, DataError)
    assert (bad.path, bad.line, bad.field) == (str(path), 4, field)
    assert problem in bad.problem


def test_parquet_in_chunks_of_its_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    talk = [{"role": "user", "content": "Prove it."}]
    rows = [{**row, "messages": None, "answer": "a"} for row in simple(10)]
    rows.append({"id": "talk", "prompt": None, "messages": talk, "answer": None})
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=6)
    found = plan_chunks([path], chunk_rows=4).chunks
    places = [(c.group, c.start, c.stop, c.line) for c in found]
    assert places == [(0, 0, 4, 1), (0, 4, 6, 5), (1, 0, 4, 7), (1, 4, 5, 11)]
    read = good(path, chunk_rows=4)
    assert [row.id for row in read] == [*(f"r{i}" for i in range(10)), "talk"]
    assert [row.line for row in read] == list(range(1, 12))
    assert as_conversation(read[10].prompt).last == "Prove it."


def test_messages_may_be_their_json_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    text = json.dumps([{"role": "user", "content": "Prove it."}])
    pq.write_table(pa.table({"id": ["a"], "messages": [text]}), path)
    assert as_conversation(good(path)[0].prompt).last == "Prove it."


@pytest.mark.parametrize(
    ("columns", "field"), [({"prompt": ["x"]}, "id"), ({"id": ["a"], "text": ["x"]}, "prompt")]
)
def test_a_table_that_is_no_log(columns: dict[str, list[str]], field: str, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match="it has:") as caught:
        plan_chunks([path])
    assert (caught.value.path, caught.value.field) == (str(path), field)


def test_files_that_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        plan_chunks([tmp_path / "none.jsonl"])
    with pytest.raises(DataError, match="cannot be read"):
        plan_chunks([tmp_path])
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match="is empty"):
        plan_chunks([jsonl(tmp_path / "log.jsonl", simple(1)), empty])
    packed = tmp_path / "log.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"id": "a", "prompt": "x"}\n'))
    with pytest.raises(DataError, match="unpack it first"):
        plan_chunks([packed])
    listed = tmp_path / "log.json"
    listed.write_text('[\n"a"\n]\n')
    with pytest.raises(DataError, match="thriftroute logs import"):
        plan_chunks([listed])
    strange = tmp_path / "strange.jsonl"
    strange.write_text('\n{"colour": "red"}\n')
    with pytest.raises(DataError, match="no known log has entries of colour") as caught:
        plan_chunks([strange])
    assert caught.value.line == 2
    with pytest.raises(ConfigError, match="format 'csv'"):
        plan_chunks([strange], format="csv")
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not readable as Parquet"):
        plan_chunks([torn])


def test_several_files_are_numbered_through_and_hashed(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", simple(3))
    second = jsonl(tmp_path / "b.jsonl", simple(2))
    found = plan_chunks([first, second], chunk_rows=2)
    assert [(Path(c.path).name, c.index, c.lines) for c in found.chunks] == [
        ("a.jsonl", 0, 2), ("a.jsonl", 1, 1), ("b.jsonl", 2, 2),
    ]  # fmt: skip
    assert found.lines == 5
    was = list(found.files.values())
    jsonl(second, [*simple(1), {"id": "r1", "prompt": "question 2"}])
    now = list(plan_chunks([first, second]).files.values())
    assert was[0] == now[0] and was[1] != now[1]


def test_a_line_that_is_too_long_is_a_bad_row_and_no_more(tmp_path: Path) -> None:
    long = b'{"id": "b", "prompt": "' + b"x" * (65 << 20) + b'"}\n'
    for first in (b'{"id": "a", "prompt": "x"}\n', b""):
        path = tmp_path / "log.jsonl"
        path.write_bytes(first + long + b'{"id": "c", "prompt": "y"}\n')
        found = [row for chunk in plan_chunks([path]).chunks for row in prompts_of(chunk)]
        ids = ["" if isinstance(row, DataError) else getattr(row, "id", None) for row in found]
        assert ids == (["a", "", "c"] if first else ["", "c"])
        (bad,) = (row for row in found if isinstance(row, DataError))
        assert "longer than 64 MiB" in bad.problem and bad.line == (2 if first else 1)
