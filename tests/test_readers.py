import csv
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from thriftroute.data.readers import OnBad, read_prompts, read_rows
from thriftroute.data.schema import Comparison, PromptScore
from thriftroute.errors import DataError

Writer = Callable[[Path, list[dict[str, Any]]], Path]

SCORES: list[dict[str, Any]] = [
    {"prompt": "what is 2+2?", "model": "S", "score": 1.0, "task": "math", "cost_usd": 0.01},
    {"prompt": "what is 2+2?", "model": "W", "score": 0, "raw_score": 7, "input_tokens": 5},
]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def write_csv(path: Path, records: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0].keys())
        writer.writeheader()
        writer.writerows(records)
    return path


def write_parquet(path: Path, records: list[dict[str, Any]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = list(dict.fromkeys(name for r in records for name in r))
    parquet.write_table(pa.table({n: [r.get(n) for r in records] for n in names}), path)
    return path


def failure(path: Path | str, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_rows(path, **options))
    return caught.value


def test_jsonl_scores_keep_known_columns_and_ignore_others(tmp_path: Path) -> None:
    reader = read_rows(write_jsonl(tmp_path / "a.jsonl", SCORES))
    strong, weak = list(reader)
    assert strong == PromptScore(
        prompt="what is 2+2?", model="S", score=1.0, category="math", cost_usd=0.01
    )
    assert (weak.score, weak.input_tokens) == (0.0, 5.0)
    assert (reader.rows, reader.skipped, reader.layout) == (2, 0, "scores")


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", SCORES)
    with path.open("a") as file:
        file.write("not json\n")
    reader = read_rows(path)
    assert next(reader).model == "S"
    assert next(reader).model == "W"
    with pytest.raises(DataError):
        next(reader)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.parquet", "raw"])
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    records = [
        {"prompt": 'he said "hi",\nthen 你好 😀', "model_a": "x", "model_b": "y", "outcome": o}
        for o in ("a", "b", "tie", "0.25")
    ]
    plain = tmp_path / name.removesuffix(".gz")
    writer = {"csv": write_csv, "parquet": write_parquet}.get(plain.suffix[1:], write_jsonl)
    path = writer(plain, records)
    if name.endswith(".gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(plain.read_bytes()))
    rows = list(read_rows(path))
    assert [r.score_a for r in rows] == [1.0, 0.0, 0.5, 0.25]
    assert {(r.prompt, r.model_a, r.model_b) for r in rows} == {(records[0]["prompt"], "x", "y")}


def test_a_prompt_of_a_megabyte(tmp_path: Path) -> None:
    record = {"prompt": "x" * 1_000_000, "model": "S", "score": "1"}
    for path in (
        write_csv(tmp_path / "a.csv", [record]),
        write_jsonl(tmp_path / "b.jsonl", [record]),
    ):
        assert len(next(read_rows(path)).prompt) == 1_000_000


@pytest.mark.parametrize("writer", [write_jsonl, write_csv, write_parquet])
def test_arena_export_with_json_turns(tmp_path: Path, writer: Writer) -> None:
    base = {"model_a": "x", "model_b": "y", "response_a": "r", "response_b": "r"}
    records = [
        base | {"prompt": '["one"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        base | {"prompt": '["one","two"]', "winner_model_a": 0, "winner_model_b": 1,
                "winner_tie": 0},
        base | {"prompt": '["one"]', "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
    ]  # fmt: skip
    reader = read_rows(writer(tmp_path / f"arena.{writer.__name__[6:]}", records), format="arena")
    rows = list(reader)
    assert [r.score_a for r in rows] == [1.0, 0.0, 0.5]
    assert [r.prompt for r in rows] == ["one", "one\n\ntwo", "one"]
    assert rows[0].messages is None
    assert [m["content"] for m in rows[1].messages] == ["one", "two"]


def test_arena_is_detected_and_has_newer_winners(tmp_path: Path) -> None:
    conversation = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "only model a said this"},
        {"role": "user", "content": [{"type": "text", "text": "more"}]},
    ]
    records = [
        {"conversation_a": conversation, "model_a": "x", "model_b": "y", "winner": winner}
        for winner in ("model_a", "model_b", "tie", "tie (bothbad)")
    ]
    reader = read_rows(write_jsonl(tmp_path / "a.jsonl", records))
    rows = list(reader)
    assert reader.layout == "arena"
    assert [r.score_a for r in rows] == [1.0, 0.0, 0.5, 0.5]
    assert rows[0].prompt == "hello\n\nmore"
    assert all(m["role"] == "user" for m in rows[0].messages)


@pytest.mark.parametrize(
    "flags", [(1, 1, 0), (0, 0, 0), (2, 0, 0), ("x", 0, 0)], ids=["two", "none", "range", "text"]
)
def test_arena_winner_must_be_one(tmp_path: Path, flags: tuple[object, ...]) -> None:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    record = {
        "prompt": '["q"]',
        "model_a": "x",
        "model_b": "y",
        **dict(zip(names, flags, strict=True)),
    }
    assert failure(write_jsonl(tmp_path / "a.jsonl", [record])).field == "winner_model_a"


@pytest.mark.parametrize("as_text", [True, False])
def test_messages_as_list_or_json(tmp_path: Path, as_text: bool) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    record = {"messages": json.dumps(messages) if as_text else messages, "model": "S", "score": 1}
    row = next(read_rows(write_jsonl(tmp_path / "a.jsonl", [record])))
    assert (row.prompt, list(row.messages)) == ("u", messages)


def test_one_user_message_is_a_prompt(tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "u"}], "model": "S", "score": 1}
    row = next(read_rows(write_jsonl(tmp_path / "a.jsonl", [record])))
    assert (row.prompt, row.messages) == ("u", None)


BAD_LINES = [
    (b'{"prompt": "p", "model": "S"', None, "not valid JSON"),
    (b"[1, 2]", None, "not a JSON object"),
    (b'{"prompt": "p", "model": "S"}', "score", "missing"),
    (b'{"prompt": "p", "score": 1}', "model", "missing"),
    (b'{"model": "S", "score": 1}', "prompt", "missing"),
    (b'{"prompt": "p", "model": "", "score": 1}', "model", "empty"),
    (b'{"prompt": "", "model": "S", "score": 1}', "prompt", "empty"),
    (b'{"prompt": "p", "model": "S", "score": 1.5}', "score", r"\[0, 1\]"),
    (b'{"prompt": "p", "model": "S", "score": NaN}', "score", r"\[0, 1\]"),
    (b'{"prompt": "p", "model": "S", "score": "high"}', "score", r"\[0, 1\]"),
    (b'{"prompt": "\\ud800", "model": "S", "score": 1}', "prompt", "surrogate"),
    (b'{"prompt": "\xff", "model": "S", "score": 1}', None, "not UTF-8"),
]


@pytest.mark.parametrize(("line", "field", "problem"), BAD_LINES)
def test_a_bad_line_stops_with_file_line_and_field(
    tmp_path: Path, line: bytes, field: str | None, problem: str
) -> None:
    path = tmp_path / "a.jsonl"
    # The blank line counts: the number is that of the physical line.
    path.write_bytes(json.dumps(SCORES[0]).encode() + b"\n\n" + line + b"\n")
    error = failure(path)
    assert (error.path, error.line, error.field) == (str(path), 3, field)
    with pytest.raises(DataError, match=problem):
        raise error


def test_equal_models_and_bad_outcome(tmp_path: Path) -> None:
    good = {"prompt": "p", "model_a": "x", "model_b": "y", "outcome": "a"}
    for field, value in [("model_b", "x"), ("outcome", "c"), ("outcome", 2)]:
        path = write_jsonl(tmp_path / "a.jsonl", [good, {**good, field: value}])
        error = failure(path)
        assert (error.line, error.field) == (2, field)


def test_skipped_rows_are_counted_written_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, rejects = tmp_path / "a.jsonl", tmp_path / "bad.jsonl"
    lines = [line for line, _, _ in BAD_LINES]
    path.write_bytes(b"\n".join([*lines, json.dumps(SCORES[0]).encode()]))
    reader = read_rows(path, on_bad="skip", rejects=rejects)
    with caplog.at_level(logging.WARNING, "thriftroute.data"):
        rows = list(reader)
    assert (len(rows), reader.rows, reader.skipped) == (1, 1, len(BAD_LINES))
    written = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [w["line"] for w in written] == list(range(1, len(BAD_LINES) + 1))
    assert [w["field"] for w in written][6:10] == ["prompt", "score", "score", "score"]
    assert written[0]["row"] == lines[0].decode()
    assert all(w["path"] == str(path) and w["problem"] for w in written)
    assert f"{len(BAD_LINES)} bad rows skipped" in caplog.text
    assert str(rejects) in reader.report()


def test_all_rows_bad_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("nonsense\n")
    assert "no usable row" in failure(path, on_bad="skip").problem


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_an_empty_file(tmp_path: Path, name: str, on_bad: OnBad) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    error = failure(path, on_bad=on_bad)
    assert error.path == str(path)


def test_a_header_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,model,score\n")
    assert "empty" in failure(path).problem


@pytest.mark.parametrize("kind", ["missing", "folder-less name"])
def test_a_path_that_is_not_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        read_rows(tmp_path / "none.jsonl" if kind == "missing" else "no/such:split")


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_csv_with_a_missing_column_names_it_and_those_found(tmp_path: Path, on_bad: OnBad) -> None:
    path = write_csv(tmp_path / "a.csv", [{"prompt": "p", "model": "S", "points": 1}])
    error = failure(path, on_bad=on_bad)
    assert "column score is missing; found model, points, prompt" in str(error)
    if on_bad == "stop":
        assert (error.line, error.field) == (2, "score")


def test_csv_line_is_the_physical_line_where_the_row_starts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,model,score\n"two\nlines",S,1\np,S,2\n')
    error = failure(path)
    assert (error.line, error.field) == (4, "score")


@pytest.mark.parametrize(
    ("text", "problem"),
    [(b"p,S\n", "2 cells"), (b"p\xff,S,1\n", "UTF-8"), (b'"p,S,1\n', "not valid CSV")],
)
def test_bad_csv_rows(tmp_path: Path, text: bytes, problem: str) -> None:
    path, rejects = tmp_path / "a.csv", tmp_path / "bad.jsonl"
    path.write_bytes(b"\xef\xbb\xbfprompt,model,score\nq,S,1\n" + text)
    error = failure(path)
    assert error.line == 3
    assert problem in error.problem
    reader = read_rows(path, on_bad="skip", rejects=rejects)
    assert [r.prompt for r in reader] == ["q"]
    assert len(rejects.read_text().splitlines()) == 1


def test_csv_with_a_column_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,model,model,score\np,S,S,1\n")
    assert failure(path).field == "model"


def test_parquet_row_and_truncation(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [*SCORES, SCORES[0] | {"score": 3.0}])
    error = failure(path)
    assert (error.line, error.field) == (3, "score")
    path.write_bytes(path.read_bytes()[:-20])
    assert "truncated" in failure(path, on_bad="skip").problem


def test_truncated_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps(SCORES[0] | {"prompt": f"q{i * 7919}"}) + "\n" for i in range(999))
    packed = gzip.compress(lines.encode())
    path.write_bytes(packed[: len(packed) // 2])
    assert "truncated" in failure(path, on_bad="skip").problem


def test_unknown_format_and_on_bad(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", SCORES)
    with pytest.raises(DataError, match="parquet"):
        read_rows(path, format="xlsx")
    with pytest.raises(DataError, match="skip"):
        read_rows(path, on_bad="ignore")


def test_item_tells_rows_of_one_prompt_apart(tmp_path: Path) -> None:
    records = [SCORES[0] | {"item_id": "x1"}, SCORES[0] | {"row": 7}]
    assert [r.item for r in read_rows(write_jsonl(tmp_path / "a.jsonl", records))] == ["x1", "7"]


def test_votes_are_a_weight(tmp_path: Path) -> None:
    record = {"prompt": "p", "model_a": "x", "model_b": "y", "score_a": 0.5, "n_votes": 4}
    row = next(read_rows(write_jsonl(tmp_path / "a.jsonl", [record])))
    assert isinstance(row, Comparison)
    assert (row.score_a, row.weight) == (0.5, 4.0)


def test_read_prompts_from_every_container(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    paths = [
        tmp_path / "a.txt",
        write_jsonl(
            tmp_path / "a.jsonl",
            [{"prompt": "one"}, {"messages": [{"role": "user", "content": "two"}]}],
        ),
        write_csv(tmp_path / "a.csv", [{"prompt": "one"}, {"prompt": "two"}]),
        write_parquet(tmp_path / "a.parquet", [{"prompt": "one"}, {"prompt": "two"}]),
    ]
    for path in paths:
        assert list(read_prompts(path)) == ["one", "two"]


def test_read_prompts_refuses_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\xff\n")
    with pytest.raises(DataError, match="UTF-8") as caught:
        list(read_prompts(path))
    assert caught.value.line == 2
    path.write_bytes(b"\n")
    with pytest.raises(DataError, match="empty"):
        list(read_prompts(path))


def test_saved_dataset_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{k: r[k] for k in ("prompt", "model", "score")}
                                        for r in SCORES])  # fmt: skip
    table.save_to_disk(tmp_path / "one")
    assert [r.model for r in read_rows(tmp_path / "one")] == ["S", "W"]
    splits = datasets.DatasetDict({"first": table, "second": table.select([1])})
    splits.save_to_disk(tmp_path / "two")
    assert [r.model for r in read_rows(f"{tmp_path / 'two'}:second")] == ["W"]
    assert "first, second" in failure(tmp_path / "two").problem


def test_a_folder_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "repository"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{k: r[k] for k in ("prompt", "model", "score")}
                                         for r in SCORES])  # fmt: skip
    write_jsonl(folder / "test.jsonl", [{"prompt": "t", "model": "T", "score": 1.0}])
    assert [r.model for r in read_rows(folder)] == ["S", "W"]
    assert [r.model for r in read_rows(f"{folder}:test")] == ["T"]
    bad = tmp_path / "nothing"
    bad.mkdir()
    assert "cannot be read" in failure(bad).problem


def test_a_dataset_name_of_another_form() -> None:
    assert "owner/name" in failure("hf:just-a-name").problem


LONG = 65 << 20  # bytes: more than is read of a line


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_line_that_is_too_long_is_not_held(tmp_path: Path, name: str) -> None:
    head, tail = {
        "a.jsonl": (b'{"prompt": "a"}\n{"prompt": "', b'"}\n{"prompt": "b"}\n'),
        "a.csv": (b'prompt\na\n"', b'"\nb\n'),
        "a.txt": (b"a\n", b"\nb\n"),
    }[name]
    path = tmp_path / name
    path.write_bytes(gzip.compress(head + b"x" * LONG + tail, 1))
    prompts = read_prompts(path)
    assert next(prompts) == "a"
    with pytest.raises(DataError, match="longer than 64 MiB") as error:
        next(prompts)
    assert error.value.line == (3 if name == "a.csv" else 2)


def test_a_line_that_is_too_long_can_be_skipped(tmp_path: Path) -> None:
    lines = [json.dumps(SCORES[0]).encode(), b"x" * LONG, json.dumps(SCORES[1]).encode()]
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(b"\n".join(lines), 1))
    reader = read_rows(path, on_bad="skip", rejects=tmp_path / "bad.jsonl")
    assert len(list(reader)) == 2
    assert [problem.line for problem in reader.problems] == [2]
    assert (tmp_path / "bad.jsonl").stat().st_size < 1000


def test_rows_of_csv_of_many_lines_are_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt\n"' + (b"x" * (1 << 20) + b"\n") * 65 + b'"\n')
    with pytest.raises(DataError, match="longer than 64 MiB"):
        list(read_prompts(path))


def test_numbers_that_no_float_holds_are_bad(tmp_path: Path) -> None:
    huge = "1" + "0" * 400
    for name in ("score", "weight", "cost_usd", "input_tokens"):
        path = tmp_path / f"{name}.jsonl"
        record = json.dumps({**SCORES[0], name: 0.5}).replace("0.5", huge)
        path.write_text(record + "\n")
        assert failure(path).field == name


def test_a_table_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["x" * LONG]}), path, compression="gzip")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"'prompt' unpacks to 65 MiB"):
        list(read_prompts(path))
