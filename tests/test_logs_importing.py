"""Import: distinct requests, how often each came, masks, samples, and what is no request."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data.logs.import_rows import ImportSettings
from thriftroute.data.logs.importing import DESCRIBED, describe_logs, import_logs
from thriftroute.data.logs.normalize import digest
from thriftroute.data.logs.schema import LogRow, read_logs
from thriftroute.data.schema import Message
from thriftroute.errors import ConfigError, DataError

KINDS = ("alpha", "beta", "gamma")


class FirstWords:
    """Embeds a request by its first word: three kinds, and the rest."""

    def __init__(self) -> None:
        self.embedded = 0

    def embeddings(self, prompts: Sequence[Sequence[Message]], /) -> npt.NDArray[np.float32]:
        self.embedded += len(prompts)
        firsts = [str(p[-1]["content"]).split()[0] for p in prompts]
        at = [KINDS.index(word) if word in KINDS else 3 for word in firsts]
        return np.eye(4, dtype=np.float32)[at]


def write(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def entry(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def imported(tmp_path: Path, records: Sequence[Any], **options: Any) -> tuple[list[LogRow], Any]:
    embedder = FirstWords() if "sample" in options else None
    out = tmp_path / "out.jsonl"
    result = import_logs(
        [write(tmp_path / "in.jsonl", records)], out, ImportSettings(**options), embedder=embedder
    )
    rows = list(read_logs(out))
    assert result.written == len(rows)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] == ".") == []
    return rows, result


def test_repeats_become_one_row_that_counts_them(tmp_path: Path) -> None:
    records = [entry("a", response="1"), entry("b"), entry("a", response="2"), entry("a")]
    rows, result = imported(tmp_path, records)
    assert [(r.prompt, r.weight, r.answer) for r in rows] == [("a", 3.0, "1"), ("b", 1.0, None)]
    assert (result.entries, result.distinct, result.requests) == (4, 2, 4.0)


def test_other_messages_are_another_request(tmp_path: Path) -> None:
    system = {"role": "system", "content": "s"}
    asked = {"role": "user", "content": "a"}
    rows, _ = imported(tmp_path, [entry("a"), {"messages": [system, asked]}])
    assert len(rows) == 2


def test_an_import_of_an_import_keeps_its_weights(tmp_path: Path) -> None:
    rows, _ = imported(tmp_path, [entry("a"), entry("a"), entry("b")])
    result = import_logs([tmp_path / "out.jsonl"], tmp_path / "again.jsonl")
    assert list(read_logs(tmp_path / "again.jsonl")) == rows
    assert result.requests == 3.0


def test_several_files_of_several_formats(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [entry("a", id=1), entry("b", id=2)])
    spend = {"request_id": "1", "spend": 0.5, "startTime": "2026-01-01", "messages": "c"}
    write(tmp_path / "b.jsonl", [spend])
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    result = import_logs(files, tmp_path / "out.jsonl")
    assert list(result.formats.values()) == ["openai", "litellm"]
    rows = list(read_logs(tmp_path / "out.jsonl"))
    assert [r.prompt for r in rows] == ["a", "b", "c"]
    # Two logs may number alike; a row is known by its id.
    assert len({r.id for r in rows}) == 3
    assert rows[2].id.startswith("1-")


def test_personal_data_is_masked_everywhere(tmp_path: Path) -> None:
    records = [
        entry("write to bob@example.com", response="to bob@example.com", user="bob@example.com"),
        entry("write to eve@example.com", user="eve@example.com"),
        entry("hello", user="acme"),
    ]
    rows, result = imported(tmp_path, records, mask=True)
    assert "@" not in (tmp_path / "out.jsonl").read_text()
    assert [(r.prompt, r.answer, r.weight) for r in rows] == [
        ("write to [email]", "to [email]", 2.0),
        ("hello", None, 1.0),
    ]
    assert rows[0].tenant.startswith("masked-") and rows[1].tenant == "acme"
    assert result.masked == 1
    unmasked, _ = imported(tmp_path, records)
    assert unmasked[0].prompt == "write to bob@example.com"


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    records = [entry("a"), entry("b", status_code=500), entry("c", status_code=500), entry(" ")]
    rows, result = imported(tmp_path, records)
    assert len(rows) == 1
    assert result.to_dict()["left_out"] == {"failed": 2, "no text of a user": 1}


def test_a_bad_entry_stops_or_is_skipped_and_kept(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(entry("a", cost="much")) + "\n{oops\n" + json.dumps(entry("b")))
    with pytest.raises(DataError) as error:
        import_logs([source], tmp_path / "out.jsonl")
    assert (error.value.path, error.value.line, error.value.field) == (str(source), 1, "cost_usd")
    assert not (tmp_path / "out.jsonl").exists()

    options = ImportSettings(on_bad="skip", rejects=tmp_path / "bad.jsonl")
    result = import_logs([source], tmp_path / "out.jsonl", options)
    assert (result.bad, result.written) == (2, 1)
    assert "in.jsonl:1, field 'cost_usd'" in str(result.problem)
    kept = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [k["line"] for k in kept] == [1, 2]
    assert kept[0]["row"]["cost"] == "much"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"request_id": "1", "spend": 1, "startTime": 1, "messages": {}}, "store_prompts_in_spend"),
        (
            {"prompt_hash": "x", "choice": "weak", "threshold": 0.1, "prompt": None},
            "records.text: true",
        ),
        ({"messages": [{"role": "user", "content": ""}]}, "1 no text of a user"),
    ],
)
def test_a_log_without_text_says_how_to_get_it(
    tmp_path: Path, record: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match="no request can be used") as error:
        imported(tmp_path, [record])
    assert told in str(error.value)


def test_a_log_of_nothing_but_bad_entries(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 bad, the first: .*no known log"):
        imported(tmp_path, [{"x": 1}, {"y": 2}], on_bad="skip")


def traffic(n: int) -> list[dict[str, Any]]:
    """Requests over n minutes: alpha early, beta late, gamma seldom; one that comes every time."""
    records = []
    for i in range(n):
        kind = "gamma" if i % 25 == 0 else "alpha" if i < 0.6 * n else "beta"
        records.append(entry(f"{kind} number {i}", time=1760000000 + 60 * i, model="m"))
        records.append(entry("delta is asked every time", time=1760000000 + 60 * i))
    return records


def test_a_sample_has_the_shares_of_clusters_and_of_time(tmp_path: Path) -> None:
    rows, result = imported(tmp_path, traffic(500), sample=51)
    assert len(rows) == 51
    assert sum(row.weight for row in rows) == pytest.approx(1000)
    words = Counter(row.prompt.split()[0] for row in rows)
    assert words == {"delta": 1, "alpha": 29, "beta": 19, "gamma": 2}
    assert {row.weight for row in rows if row.prompt[0] == "d"} == {500.0}
    assert {row.weight for row in rows if row.prompt[0] != "d"} == {10.0}
    alphas = [int(row.prompt.split()[-1]) for row in rows if row.prompt.startswith("alpha")]
    assert all(9 <= b - a <= 12 for a, b in pairwise(alphas))
    assert len({row.cluster for row in rows}) == 4
    assert all(row.prompt for row in rows) and result.distinct == 501


def test_a_sample_with_so_many_of_each_cluster(tmp_path: Path) -> None:
    rows, _ = imported(tmp_path, traffic(500), sample=51, at_least=8)
    words = Counter(row.prompt.split()[0] for row in rows)
    assert words["gamma"] == 8 and words["delta"] == 1
    total = sum(row.weight for row in rows if row.prompt.startswith("gamma"))
    assert total == pytest.approx(20)


def test_the_same_seed_samples_the_same(tmp_path: Path) -> None:
    first, again, other = (
        [row.id for row in imported(tmp_path, traffic(100), sample=20, seed=seed)[0]]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_no_more_is_embedded_than_is_needed(tmp_path: Path) -> None:
    n = DESCRIBED + 500
    source = write(tmp_path / "in.jsonl", [entry(f"alpha {i}") for i in range(n)])
    embedder = FirstWords()
    result = import_logs(
        [source], tmp_path / "out.jsonl", ImportSettings(sample=10, report=True), embedder=embedder
    )
    assert embedder.embedded == DESCRIBED
    rows = list(read_logs(tmp_path / "out.jsonl"))
    assert sum(row.weight for row in rows) == pytest.approx(n)
    assert result.traffic is not None
    assert (result.traffic.described, result.traffic.requests) == (DESCRIBED, n)


def test_a_report_changes_nothing_of_what_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", traffic(20))
    import_logs([source], tmp_path / "a.jsonl")
    result = import_logs(
        [source], tmp_path / "b.jsonl", ImportSettings(report=True), embedder=FirstWords()
    )
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert result.traffic is not None and result.traffic.requests == 40
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_report_of_logs_that_are_not_imported(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [*traffic(20), entry("x", status_code=500)])
    found = describe_logs([source], ImportSettings(mask=True), embedder=FirstWords())
    assert (found.rows, found.requests) == (40, 40.0)
    with pytest.raises(DataError, match="no request can be used"):
        describe_logs(
            [write(tmp_path / "none.jsonl", [entry("")])], ImportSettings(), embedder=FirstWords()
        )


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected auto or one of openai"):
        ImportSettings(format="splunk")
    with pytest.raises(ConfigError, match="a sample of 0"):
        ImportSettings(sample=0)
    with pytest.raises(ConfigError, match="how large"):
        ImportSettings(at_least=3)
    with pytest.raises(ConfigError, match="--router"):
        import_logs([tmp_path / "x"], tmp_path / "y", ImportSettings(sample=3))


def test_the_digest_of_messages_is_of_what_they_say() -> None:
    first = digest([{"role": "user", "content": "a"}])
    assert first == digest([{"content": "a", "role": "user"}])
    assert first != digest([{"role": "user", "content": "b"}])
