"""Objects from files: every layout of JSON, CSV, packed or not, and what is wrong with a file."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thriftroute.data.logs.reader import blocks, json_lines, objects
from thriftroute.errors import DataError

TWO = [{"a": 1}, {"b": {"c": [None]}}]


def read(path: Path) -> list[tuple[int, object]]:
    return [(line, str(o) if isinstance(o, DataError) else dict(o)) for line, o in objects(path)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('{"a": 1}\n\n{"b": {"c": [null]}}', (1, 3)),
        ('\ufeff{"a": 1}\n{"b": {"c": [null]}}\n', (1, 2)),
        ('[{"a": 1},\n{"b": {"c": [null]}}]', (1, 2)),
        ('\ufeff[\n{"a": 1}, {"b": {"c": [null]}}\n]\n', (2, 2)),
        ('{\n"a": 1\n}\n{\n"b": {"c": [null]}}', (1, 4)),
        ('{"a": 1}{"b": {"c": [null]}}', (1, 1)),
        ('{"data": [{"a": 1}, {"b": {"c": [null]}}], "total": 2}', (1, 1)),
        ('{"data": [{"a": 1}]}\n{"data": [{"b": {"c": [null]}}]}', (1, 2)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_layout_gives_the_same(
    tmp_path: Path, text: str, lines: tuple[int, int], packed: bool
) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert read(path) == list(zip(lines, TWO, strict=True))


def test_a_page_of_a_request_is_no_page(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    record = {"messages": [], "data": [{"a": 1}]}
    path.write_text(json.dumps(record))
    assert read(path) == [(1, record)]


def test_objects_larger_than_a_chunk(tmp_path: Path) -> None:
    many = [{"n": n, "text": "é\n{[" * 300_000} for n in range(3)]
    path = tmp_path / "log.json"
    path.write_text(json.dumps(many, indent=1, ensure_ascii=False), encoding="utf-8")
    assert [dict(o) for _, o in objects(path) if not isinstance(o, DataError)] == many


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text().filter(lambda k: k != "data"), JSON), max_size=6))
def test_a_list_and_lines_read_the_same(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    (folder / "list.json").write_text(json.dumps(records, indent=2))
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert [o for _, o in objects(folder / "list.json")] == records
    assert [o for _, o in objects(folder / "lines.jsonl")] == records


def test_what_is_bad_on_a_line_is_found_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": \n[1]\n{"t": "\xff"}\n{"z": 1}\n')
    found = read(path)
    assert [line for line, _ in found] == [1, 2, 3, 4, 5]
    assert found[0][1] == {"a": 1} and found[4][1] == {"z": 1}
    assert "not valid JSON" in str(found[1][1])
    assert "[1] is not a JSON object" in str(found[2][1])
    assert "not UTF-8" in str(found[3][1])


def test_a_file_of_lines_may_begin_with_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"b": \n\n{"a": 1}\n')
    assert [line for line, _ in read(path)] == [1, 3]


def test_json_lines_stops_at_what_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n[]\n')
    lines = json_lines(path)
    assert next(lines) == (1, {"a": 1})
    with pytest.raises(DataError) as error:
        next(lines)
    assert (error.value.path, error.value.line) == (str(path), 2)


@pytest.mark.parametrize(
    ("data", "problem", "line"),
    [
        (b'[{"a": 1},\n', "has no end", None),
        (b'[{"a": 1}, oops]', "not valid JSON", 1),
        (b'{\n"a": 1', "not valid JSON", 1),
        (b'[\n{"a": "\xff"}]', "not UTF-8", 1),
        (gzip.compress(b'{"a": 1}\n' * 9999)[:-20], "truncated", None),
    ],
)
def test_a_file_that_cannot_be_read_on(
    tmp_path: Path, data: bytes, problem: str, line: int | None
) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=problem) as error:
        list(objects(path))
    assert error.value.path == str(path)
    assert line is None or error.value.line == line


def test_csv_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('\ufeffid,text,cost\n1,"two\nlines",\n2,b\n3,"c ""d""",0.5\n')
    assert read(path) == [
        (2, {"id": "1", "text": "two\nlines"}),
        (4, "2 cells; expected 3 as in the header"),
        (5, {"id": "3", "text": 'c "d"', "cost": "0.5"}),
    ]


def test_csv_with_a_quote_that_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('id,text\n1,"two')
    ((line, problem),) = read(path)
    assert line == 2 and "not valid CSV" in str(problem)


def test_nothing_is_in_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(" \n")
    assert read(tmp_path / "log.jsonl") == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"is a pipe .* write it to a file first"):
        list(objects(tmp_path / "pipe"))


@pytest.mark.parametrize("name", ["log.json", "log.csv"])
def test_a_file_may_be_read_in_part(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("a,b\n1,2\n3,4\n" if name == "log.csv" else '[{"a": 1},\n{"a": 3}]')
    found = objects(path)
    assert next(found)[0] in (1, 2)
    found.close()  # type: ignore[attr-defined]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        list(objects(tmp_path / "none"))
    with pytest.raises(DataError, match="cannot be opened"):
        list(objects(tmp_path))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PAR1\x15\x04", "Parquet"),
        ('{"prompt": "q"}\n'.encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04", "a ZIP archive"),
    ],
)
def test_a_file_of_another_kind_is_named(data: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"is {what}; expected JSON Lines, JSON or CSV"):
        list(objects(path))


LONG = 65 << 20  # bytes: more than is read of a line
GOOD = b'{"prompt": "q", "answer": "a"}\n'


def test_a_line_that_is_too_long_is_passed_over_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    line = b'{"prompt": "' + b"x" * LONG + b'"}\n'
    path.write_bytes(gzip.compress(GOOD + line + GOOD, 1))
    found = read(path)
    assert [line for line, _ in found] == [1, 2, 3]
    assert "longer than 64 MiB" in str(found[1][1])
    assert found[0][1] == found[2][1] == {"prompt": "q", "answer": "a"}
    # A file whose first line is too long has lines still, and may end within it.
    path.write_bytes(gzip.compress(line[:-3], 1))
    assert [line for line, _ in read(path)] == [1]


def test_a_place_behind_a_line_that_is_too_long_is_read_on_from(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(GOOD + b'{"prompt": "' + b"x" * LONG + b'"}\n' + GOOD)
    ends = [block.end for block in blocks(path)]
    ends = [block.end for block in blocks(path)]
    assert [end.line for end in ends] == [3, 4]
    again = [line for block in blocks(path, ends[0]) for line, _ in block.found()]
    assert again == [3]


@pytest.mark.parametrize(
    ("name", "head", "tail"),
    [
        ("log.json", b'[{"prompt": "', b'"}]'),
        ("log.json", b'{\n"prompt": "', b'"}'),
        ("log.csv", b'id,prompt\n1,"', b'"\n'),
        ("log.csv", b"id,prompt\n1,", b"\n"),
        ("log.csv", b"id,", b"\n1,2\n"),
    ],
)
def test_nothing_that_is_too_long_is_read_in_any_layout(
    tmp_path: Path, name: str, head: bytes, tail: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(head + b"x" * LONG + tail, 1))
    with pytest.raises(DataError, match="longer than 64 MiB") as error:
        list(objects(path))
    assert error.value.line is not None


def test_a_list_may_be_one_line_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "log.json.gz"
    entry = b'{"prompt": "' + b"x" * (9 << 20) + b'"}, '
    path.write_bytes(gzip.compress(b"[" + entry * 9 + b"{}]", 1))
    assert [line for line, _ in read(path)] == [1] * 10


def test_a_bad_row_of_csv_is_found_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b'id,prompt\n1,a\n2,"b"c\n3,\xff\n4,d\n')
    found = read(path)
    assert [line for line, _ in found] == [2, 3, 4, 5]
    assert found[3][1] == {"id": "4", "prompt": "d"}
    assert "not valid CSV" in str(found[1][1])
    assert "not UTF-8" in str(found[2][1])
