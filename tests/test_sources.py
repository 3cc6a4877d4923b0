import json
import os
from pathlib import Path

import pytest
from thriftroute.data import sources
from thriftroute.data.readers import read_rows
from thriftroute.data.schema import PromptScore
from thriftroute.data.sources import (
    JUDGED_STRONG,
    JUDGED_WEAK,
    ORDINARY,
    SOURCES,
    eval_sources,
    is_evaluation_file,
    source,
    train_sources,
)
from thriftroute.data.tables import pair_table
from thriftroute.errors import DataError

needs_data = pytest.mark.skipif(
    not os.environ.get("THRIFTROUTE_DATA"), reason="THRIFTROUTE_DATA is not set"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with two small files of the real layout."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    models = ["S", "gpt-4o-2024-08-06"]
    table = pa.table({"prompt": ["p", "p"], "model": models, "score": [1.0, 0.0]})
    for name in ("bfcl_v1", "llmrouter_fusionbench", "routellm_gsm8k"):
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    monkeypatch.setenv("THRIFTROUTE_DATA", str(tmp_path))
    return tmp_path


def test_unknown_source_lists_all() -> None:
    with pytest.raises(DataError, match=r"'mmlu'.*routellm_mmlu.*planbench"):
        source("mmlu")


def test_roles_part_the_registry() -> None:
    assert set(train_sources()) | set(eval_sources()) == set(SOURCES)
    assert not set(train_sources()) & set(eval_sources())
    assert "routellm_mmlu" in eval_sources()


def test_published_checkpoints_use_no_unknown_licence() -> None:
    names = train_sources(publishable=True)
    assert "mmlu_pro" in names
    assert not [
        n for n in names if "unknown" in source(n).licence or "unclear" in source(n).licence
    ]
    assert set(train_sources()) - set(names) == {
        "routerbench_arc_mbpp_winogrande", "bfcl_v1", "livecodebench"
    }  # fmt: skip


def test_variable_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THRIFTROUTE_DATA", raising=False)
    with pytest.raises(DataError, match=r"THRIFTROUTE_DATA is not set; set it to .*mmlu_pro"):
        source("mmlu_pro").rows()


def test_file_missing(folder: Path) -> None:
    with pytest.raises(DataError, match=r"is missing; put kor_bench\.parquet") as caught:
        source("kor_bench").rows()
    assert caught.value.path == str(folder / "kor_bench.parquet")


@pytest.mark.parametrize("name", eval_sources())
def test_evaluation_files_are_refused_for_training(name: str) -> None:
    with pytest.raises(DataError, match=r"evaluation only.*own_logs=True"):
        source(name).rows(for_training=True)


def test_own_logs_is_the_way_in(folder: Path) -> None:
    assert len(list(source("routellm_gsm8k").rows(for_training=True, own_logs=True))) == 2
    assert len(list(source("routellm_gsm8k").rows())) == 2
    assert is_evaluation_file(folder / "routellm_gsm8k.parquet")
    assert not is_evaluation_file(folder / "bfcl_v1.parquet")
    assert not is_evaluation_file("my_logs.jsonl")


@pytest.mark.usefixtures("folder")
def test_weights_and_models_left_out() -> None:
    rows = list(source("llmrouter_fusionbench").rows(for_training=True))
    assert [(r.model, r.weight) for r in rows] == [("S", 0.25), ("gpt-4o-2024-08-06", 0.25)]
    assert [r.model for r in source("bfcl_v1").rows()] == ["S"]


class TestOrdinary:
    """The corpus comes with a clone, and needs no folder of data."""

    @pytest.fixture(autouse=True)
    def without_data(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("THRIFTROUTE_DATA", raising=False)

    def test_two_tiers_by_the_means_of_both_ratings(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = {"weak_ok": 30, "strong_ok": 80, "weak_ok_blind": 40.0, "strong_ok_blind": 95.0}
        row = {"prompt": "Größe?", "kind": "k", "area": "office", "lang": "de", **said}
        path = tmp_path / "corpus.jsonl"
        path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        monkeypatch.setattr(sources, "CORPUS", path)
        assert source(ORDINARY).path() == path
        strong, weak = source(ORDINARY).rows(for_training=True)
        where = {"source": ORDINARY, "category": "office"}
        assert strong == PromptScore("Größe?", JUDGED_STRONG, 0.875, **where)
        assert weak == PromptScore("Größe?", JUDGED_WEAK, 0.35, **where)

    def test_the_real_one(self) -> None:
        rows = list(source(ORDINARY).rows(for_training=True))
        assert {row.model for row in rows} == {JUDGED_STRONG, JUDGED_WEAK}
        table = pair_table(rows, JUDGED_STRONG, JUDGED_WEAK)
        assert 2 * table.n == len(rows)
        assert (table.strong.min() >= 0) and (table.strong.max() <= 1)
        assert table.strong.mean() > table.weak.mean() + 0.1
        assert ORDINARY in train_sources(publishable=True)

    def test_where_it_is_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "CORPUS", tmp_path / "corpus.jsonl")
        with pytest.raises(DataError, match="part of a clone, not of the installed package"):
            source(ORDINARY).rows()


@needs_data
@pytest.mark.parametrize("name", [name for name in SOURCES if name != ORDINARY])
def test_every_real_file_reads_from_its_first_row(name: str) -> None:
    reader = read_rows(source(name).path())
    assert next(reader).prompt
    assert reader.layout == ("comparisons" if name == "mtbench_pairs" else "scores")


@needs_data
def test_models_left_out_exist_in_the_real_file() -> None:
    models = {row.model for row in read_rows(source("bfcl_v1").path())}
    assert source("bfcl_v1").leave_out <= models


@needs_data
def test_real_means_are_those_of_the_release() -> None:
    rows = source("routellm_mmlu").rows()
    table = pair_table(rows, "gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1")
    assert (table.n, table.weight.sum()) == (13_937, 14_042.0)
    strong = (table.strong * table.weight).sum() / table.weight.sum()
    assert strong == pytest.approx(0.8058, abs=5e-5)
