"""Cluster centres of a run: fitted on a sample of the whole log, or read from a file."""

import json
from pathlib import Path

import numpy as np
import pytest
from thriftroute import Scorer
from thriftroute.data.batch.chunks import plan_chunks
from thriftroute.data.batch.run import fit_centers, read_centers
from thriftroute.data.clusters import assign
from thriftroute.errors import ConfigError


def write(path: Path, texts: list[str]) -> Path:
    rows = [{"id": str(i), "prompt": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_sample_of_all_the_log_finds_its_kinds(tiny_bundle: Path, tmp_path: Path) -> None:
    # Sorted by kind: a sample of the log's beginning would miss the second.
    log = write(tmp_path / "log.jsonl", ["easy hello"] * 70 + ["prove theorem"] * 30)
    scorer = Scorer.load(tiny_bundle)
    planned = plan_chunks([log], chunk_rows=10)
    centers = fit_centers(planned, scorer, 2, rows=20)
    assert assign(scorer.embeddings(["easy hello", "prove theorem"]), centers).tolist() == [0, 1]
    np.testing.assert_array_equal(centers, fit_centers(planned, scorer, 2, rows=20))


def test_a_log_of_bad_rows_has_no_clusters(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("{no json\n")
    with pytest.raises(ConfigError, match="expected at least one"):
        fit_centers(plan_chunks([tmp_path / "log.jsonl"]), Scorer.load(tiny_bundle), 2)


def test_centres_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.npy"
    np.save(path, np.eye(3, dtype=np.float32))
    np.testing.assert_array_equal(read_centers(path), np.eye(3, dtype=np.float32))
    np.save(path, np.eye(3))
    with pytest.raises(ConfigError, match=r"float64\[3, 3\]; expected centres"):
        read_centers(path)
    path.write_text("no array")
    with pytest.raises(ConfigError, match="no readable"):
        read_centers(path)
    with pytest.raises(ConfigError, match="no readable"):
        read_centers(tmp_path / "none.npy")
