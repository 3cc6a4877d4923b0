"""Runs over a whole log: the scores of `Scorer`, in order, however it is cut, stopped or shared."""

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from thriftroute import Scorer
from thriftroute.data.batch.run import ScoreProgress, ScoreSummary
from thriftroute.data.batch.run import score_logs as run_settings
from thriftroute.data.batch.settings import ScoreSettings
from thriftroute.errors import (
    BundleError,
    BundleIntegrityError,
    ConfigError,
    DataError,
    MissingExtraError,
)
from thriftroute.router.bundle import Bundle, write_bundle
from thriftroute.router.routers import CHECKPOINTS


def score_logs(
    inputs: Sequence[Path],
    out: Path,
    progress: Callable[[ScoreProgress], None] | None = None,
    **options: Any,
) -> ScoreSummary:
    return run_settings(ScoreSettings(inputs=inputs, out=out, **options), progress)


WORDS = ("prove", "theorem", "hard", "easy", "hello", "integral", "what", "is", "2")


def prompts(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 1 + i % 7).tolist()) + f" {'+' * (i % 5)}" for i in range(n)]


def write(path: Path, texts: list[str]) -> Path:
    rows = [{"id": f"r{i}", "prompt": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "log.jsonl", prompts(100))


def left_of(out: Path) -> list[str]:
    """What a run left beside its file."""
    return sorted(p.name for p in out.parent.iterdir() if p.name.startswith(f"{out.name}."))


@pytest.mark.parametrize("workers", [1, 2])
def test_scores_are_those_of_the_scorer_in_the_order_of_the_log(
    workers: int, log: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    states: list[ScoreProgress] = []
    summary = score_logs(
        [log], out, router=str(tiny_bundle), workers=workers, chunk_rows=7, progress=states.append
    )
    found = lines(out)
    assert [row["id"] for row in found] == [f"r{i}" for i in range(100)]
    assert [row["score"] for row in found] == Scorer.load(tiny_bundle).scores(prompts(100)).tolist()
    # The tiny graph tells no familiarity, and nobody asked for clusters.
    assert {tuple(row) for row in found} == {("id", "score")}
    assert (summary.rows, summary.chunks, summary.bad, summary.resumed) == (100, 15, 0, 0)
    assert [s.done for s in states] == sorted(s.done for s in states)
    assert states[-1].done == states[-1].total == 100
    assert states[-1].left == 0.0
    assert left_of(out) == []


@pytest.mark.parametrize("wanted", [{}, {"embeddings": True}, {"clusters": 2}])
def test_the_second_graph_is_loaded_only_for_embeddings_and_clusters(
    wanted: dict[str, Any], log: Path, make_bundle: Callable[..., Bundle], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import onnxruntime as ort

    make, found, made = ort.InferenceSession, [], []

    def counted(*args: Any, **options: Any) -> Any:
        made[-1] += 1
        return make(*args, **options)

    monkeypatch.setattr(ort, "InferenceSession", counted)
    for split in (False, True):
        made.append(0)
        bundle = make_bundle(f"split-{split}", split=split, features=["tokens", "numbers"])
        out = tmp_path / f"{split}.parquet"
        score_logs([log], out, router=str(bundle.path), workers=2, **wanted)
        found.append(pq.read_table(out).to_pydict())
    assert (made[1] > made[0]) == bool(wanted)
    whole, two = found
    assert two.pop("id") == whole.pop("id")
    for name, column in whole.items():
        np.testing.assert_allclose(two[name], column, atol=1e-3)


def test_repeated_prompts_are_scored_once_and_counted(tiny_bundle: Path, tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", ["hard theorem", "hello", "hard theorem", "hello", "easy"])
    summary = score_logs([log], tmp_path / "s.jsonl", router=str(tiny_bundle), chunk_rows=2)
    assert (summary.rows, summary.repeats) == (5, 2)
    scores = [row["score"] for row in lines(tmp_path / "s.jsonl")]
    assert scores[0] == scores[2] > scores[1] == scores[3]


def test_what_the_context_leaves_out_makes_no_difference_and_the_rest_does(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    talks = [
        [{"role": "system", "content": s}, {"role": "user", "content": h},
         {"role": "assistant", "content": "."}, {"role": "user", "content": "hard"}]
        for s, h in (("a", "hello"), ("hello", "hello"), ("a", "prove"))
    ]  # fmt: skip
    log = tmp_path / "log.jsonl"
    rows = [{"id": str(i), "messages": talk} for i, talk in enumerate(talks)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for context, repeats in (("last", 2), ("conversation", 1), ("full", 0)):
        out = tmp_path / f"{context}.jsonl"
        summary = score_logs([log], out, router=str(tiny_bundle), context=context)
        scorer = Scorer.load(tiny_bundle, context=context)
        assert [row["score"] for row in lines(out)] == [scorer.score(talk) for talk in talks]
        assert summary.repeats == repeats


def test_parquet_with_all_columns_from_the_built_in_bundle(tmp_path: Path) -> None:
    texts = [f"What is {i} + {i}?" for i in range(6)] + ["Prove that pi is irrational."] * 2
    log = write(tmp_path / "log.jsonl", texts)
    out = tmp_path / "scores.parquet"
    score_logs([log], out, chunk_rows=3, embeddings=True, clusters=2, workers=1)
    table = pq.read_table(out)
    scorer = Scorer.load(CHECKPOINTS / "mf")
    assert table.column_names == ["id", "score", "familiarity", "cluster", "embedding"]
    assert table["score"].to_pylist() == scorer.scores(texts).tolist()
    assert table["familiarity"].to_pylist() == [scorer.familiarity(text) for text in texts]
    embeddings = np.array(table["embedding"].to_pylist(), np.float16)
    np.testing.assert_array_equal(embeddings, scorer.embeddings(texts).astype(np.float16))
    assert table["cluster"].to_pylist() == [0] * 6 + [1] * 2
    about = table.schema.metadata
    assert about[b"thriftroute.router"] == b"mf"
    assert about[b"thriftroute.bundle"].decode() == scorer.bundle.model_sha256
    assert left_of(out) == ["scores.parquet.centers.npy"]

    again = tmp_path / "again.parquet"
    centers = tmp_path / "scores.parquet.centers.npy"
    score_logs([log], again, centers=centers, router="mf")
    assert pq.read_table(again)["cluster"].equals(table["cluster"])


def test_many_parts_become_few_row_groups(tiny_bundle: Path, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    score_logs([log], out, router=str(tiny_bundle), chunk_rows=3)
    with pq.ParquetFile(out) as file:
        assert (file.metadata.num_rows, file.num_row_groups) == (100, 1)


def test_another_pair_of_the_bundle(log: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    pair = {"strong": "weak-1", "weak": "strong-1"}
    out = tmp_path / "scores.jsonl"
    score_logs([log], out, router=str(tiny_bundle), **pair)
    expected = Scorer.load(tiny_bundle, **pair).scores(prompts(100)).tolist()
    assert [row["score"] for row in lines(out)] == expected


def run_until_first_chunk(folder: Path, **options: Any) -> subprocess.Popen[str]:
    """A run in a process of its own that has written down one chunk and waits."""
    code = f"""
        import sys, time
        from thriftroute.data.batch.run import score_logs
        from thriftroute.data.batch.settings import ScoreSettings
        def progress(state):
            print(state.done, flush=True)
            time.sleep(120)
        if __name__ == "__main__":
            files = {{"inputs": ["log.jsonl"], "out": "scores.jsonl"}}
            score_logs(ScoreSettings(**files, **{options!r}), progress)
    """
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert int(process.stdout.readline()) > 0
    return process


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_where_it_stopped(
    workers: int, log: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    options = {"router": str(tiny_bundle), "workers": workers, "chunk_rows": 10}
    out = tmp_path / "scores.jsonl"
    process = run_until_first_chunk(tmp_path, **options)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()

    work = tmp_path / "scores.jsonl.work" / "parts"
    done = sorted(int(path.stem) for path in work.glob("*.json"))
    assert done
    first = done[0]
    # Proof that this chunk is not scored again: what stands there now comes out.
    part = work / f"{first:08d}.jsonl"
    part.write_text(part.read_text().replace('"r', '"R'))
    if len(done) > 1:  # torn by the end of the machine
        (work / f"{done.pop():08d}.json").write_text('{"chunk": 5, "rows"')
    (work / "00000003.jsonl.host-1.part").write_text("half")

    summary = score_logs([log], out, **options)
    assert (summary.rows, summary.resumed) == (100, 10 * len(done))
    expected = [f"{'R' if i // 10 == first else 'r'}{i}" for i in range(100)]
    assert [row["id"] for row in lines(out)] == expected
    scores = Scorer.load(tiny_bundle).scores(prompts(100)).tolist()
    assert [row["score"] for row in lines(out)] == scores
    assert left_of(out) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_the_run_and_keeps_what_is_done(
    workers: int, log: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    options = {"router": str(tiny_bundle), "workers": workers, "chunk_rows": 10}
    process = run_until_first_chunk(tmp_path, **options)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode not in (0, None)
    done = list((tmp_path / "scores.jsonl.work" / "parts").glob("*.json"))
    assert done
    summary = score_logs([log], tmp_path / "scores.jsonl", **options)
    assert (summary.rows, summary.resumed) == (100, 10 * len(done))


class Enough(Exception):  # noqa: N818  no error: how a test ends a run early
    pass


def begin(log: Path, out: Path, **options: Any) -> None:
    """A run that ends after its first chunk."""

    def stop(state: ScoreProgress) -> None:
        raise Enough

    with pytest.raises(Enough):
        score_logs([log], out, progress=stop, **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_graph_that_does_not_load_says_so(
    workers: int, log: Path, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    made = make_bundle()
    graph = tmp_path / "no-graph"
    graph.write_bytes(b"no graph")
    files = {"model.onnx": graph, "tokenizer.json": made.file("tokenizer.json"), "card.md": b"#"}
    fields = dataclasses.asdict(made.manifest)
    for name in ("files", "format", "written_by"):
        del fields[name]
    write_bundle(tmp_path / "bad", files=files, **fields)
    with pytest.raises((BundleError, ConfigError), match="does not load"):
        score_logs(
            [log], tmp_path / "s.jsonl", router=str(tmp_path / "bad"), workers=workers, chunk_rows=9
        )


def test_a_part_that_is_not_whole_is_done_again(
    log: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"router": str(tiny_bundle), "chunk_rows": 10}
    begin(log, tmp_path / "scores.jsonl", **options)
    parts = tmp_path / "scores.jsonl.work" / "parts"
    done = len(list(parts.glob("*.json")))
    next(parts.glob("*.jsonl")).write_text("{")
    summary = score_logs([log], tmp_path / "scores.jsonl", **options)
    assert (summary.rows, summary.resumed) == (100, 10 * (done - 1))


class TestARunThatWasBegun:
    @pytest.fixture
    def options(self, log: Path, tiny_bundle: Path, tmp_path: Path) -> dict[str, Any]:
        options = {"router": str(tiny_bundle), "chunk_rows": 10}
        begin(log, tmp_path / "scores.jsonl", **options)
        return options

    def test_is_not_finished_with_other_settings(
        self, options: dict[str, Any], log: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "scores.jsonl"
        for key, value in (("chunk_rows", 20), ("context", "last"), ("skip_bad", True)):
            with pytest.raises(ConfigError, match=f"another {key}: .*, now .*delete .*work"):
                score_logs([log], out, **{**options, key: value})
        with pytest.raises(ConfigError, match="another bundle"):
            score_logs([log], out, **{**options, "router": "mf"})
        with pytest.raises(ConfigError, match="another inputs"):
            score_logs([write(tmp_path / "b.jsonl", ["x"])], out, **options)

    def test_is_not_finished_on_a_log_that_has_changed(
        self, options: dict[str, Any], log: Path, tmp_path: Path
    ) -> None:
        log.write_bytes(log.read_bytes().replace(b"r99", b"r98"))
        with pytest.raises(ConfigError, match="has changed since"):
            score_logs([log], tmp_path / "scores.jsonl", **options)

    def test_is_not_read_where_it_is_broken(
        self, options: dict[str, Any], log: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "scores.jsonl.work" / "manifest.json").write_text("[]")
        with pytest.raises(ConfigError, match="not what a run writes"):
            score_logs([log], tmp_path / "scores.jsonl", **options)


def test_two_runs_do_not_share_a_folder(log: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"router": str(tiny_bundle), "chunk_rows": 50}
    refused: list[str] = []

    def another(state: ScoreProgress) -> None:
        with pytest.raises(ConfigError, match="another run works in") as caught:
            score_logs([log], tmp_path / "scores.jsonl", **options)
        refused.append(str(caught.value))

    score_logs([log], tmp_path / "scores.jsonl", progress=another, **options)
    assert len(refused) == 2
    assert len(lines(tmp_path / "scores.jsonl")) == 100


class TestBadRows:
    @pytest.fixture
    def bad(self, tmp_path: Path) -> Path:
        path = tmp_path / "bad.jsonl"
        rows = ['{"id": "a", "prompt": "hard"}', '{"id": "b"}', '{"id": "c", "prompt": "easy"}']
        path.write_text("\n".join([*rows, "no json", '{"id": "d", "prompt": "hello"}']))
        return path

    @pytest.mark.parametrize("workers", [1, 2])
    def test_stop_with_their_place_and_are_tried_again(
        self, workers: int, bad: Path, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "s.jsonl"
        options: dict[str, Any] = {"router": str(tiny_bundle), "chunk_rows": 1, "workers": workers}
        # One of them: of several it is not settled which one of two workers meets first.
        bad.write_text("\n".join(bad.read_text().splitlines()[:3]))
        with pytest.raises(DataError, match="missing; expected") as caught:
            score_logs([bad], out, **options)
        error = caught.value
        assert (error.path, error.line, error.field) == (str(bad), 2, "prompt")
        assert not out.exists()
        assert left_of(out) == ["s.jsonl.work"]

    def test_skipped_are_counted_and_told(
        self, bad: Path, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        out, rejects = tmp_path / "s.parquet", tmp_path / "rejects.jsonl"
        summary = score_logs(
            [bad], out, router=str(tiny_bundle), chunk_rows=2, skip_bad=True, rejects=rejects
        )
        assert pq.read_table(out)["id"].to_pylist() == ["a", "c", "d"]
        assert (summary.rows, summary.bad) == (3, 2)
        assert f"{bad}:2" in summary.problems[0]
        told = [(row["path"], row["line"], row["field"]) for row in lines(rejects)]
        assert told == [(str(bad), 2, "prompt"), (str(bad), 4, None)]

    def test_alone_are_an_error(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_text("{no json\n{nor this\n")
        with pytest.raises(DataError, match="all 2 are bad, the first"):
            score_logs([path], tmp_path / "s.jsonl", router=str(tiny_bundle), skip_bad=True)
        assert left_of(tmp_path / "s.jsonl") == []

    def test_blank_lines_alone_are_an_error(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "blank.jsonl"
        path.write_text("\n\n")
        with pytest.raises(DataError, match="is empty"):
            score_logs([path], tmp_path / "s.jsonl", router=str(tiny_bundle))


def test_a_log_of_another_tool_is_scored_as_it_is(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "raw.jsonl"
    asked = {"request": {"messages": [{"role": "user", "content": "prove it"}]}, "id": "a"}
    embedded = {"request": {"input": "x"}, "url": "/v1/embeddings", "id": "b"}
    log.write_text(f"{json.dumps(asked)}\n{json.dumps(embedded)}\n")
    out = tmp_path / "s.jsonl"
    summary = score_logs([log], out, router=str(tiny_bundle))
    assert lines(out) == [{"id": "a", "score": Scorer.load(tiny_bundle).score("prove it")}]
    assert (summary.rows, summary.left_out, summary.bad) == (1, 1, 0)
    log.write_text(f"{json.dumps(embedded)}\n")
    with pytest.raises(DataError, match="none of 1 entries is a request"):
        score_logs([log], out, router=str(tiny_bundle), overwrite=True)


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"workers": 0}, "workers: expected a whole number"),
            ({"chunk_rows": True}, "chunk_rows: expected"),
            ({"clusters": 0}, "clusters: expected"),
            ({"clusters": 2, "centers": "c.npy"}, "not both"),
            ({"context": "all"}, "context 'all'"),
            ({"rejects": "r.jsonl"}, "ask for that too"),
            ({"embeddings": True}, "Parquet only"),
            ({"router": "random"}, "reads no prompt"),
            ({"strong": "nobody"}, "strong model 'nobody' is not in"),
            ({"centers": "none.npy"}, "no readable"),
        ],
    )
    def test_that_do_not_fit(
        self, options: dict[str, Any], problem: str, log: Path, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "s.jsonl"
        with pytest.raises(ConfigError, match=problem):
            score_logs([log], out, **{"router": str(tiny_bundle), **options})
        assert left_of(out) == []

    def test_an_output_that_is_there(self, log: Path, tiny_bundle: Path, tmp_path: Path) -> None:
        out = tmp_path / "s.jsonl"
        out.write_text("mine")
        with pytest.raises(ConfigError, match="exists already"):
            score_logs([log], out, router=str(tiny_bundle))
        score_logs([log], out, router=str(tiny_bundle), overwrite=True)
        assert len(lines(out)) == 100

    def test_files_that_are_no_input_or_no_output(
        self, log: Path, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        router = str(tiny_bundle)
        out = tmp_path / "s.jsonl"
        with pytest.raises(ConfigError, match="at least one file"):
            score_logs([], out, router=router)
        with pytest.raises(ConfigError, match="given twice"):
            score_logs([log, log], out, router=router)
        with pytest.raises(ConfigError, match="is an input too"):
            score_logs([log], log, router=router, overwrite=True)
        with pytest.raises(ConfigError, match="is a folder"):
            score_logs([log], tmp_path, router=router)
        with pytest.raises(ConfigError, match="there is no folder"):
            score_logs([log], tmp_path / "none" / "s.jsonl", router=router)
        with pytest.raises(DataError, match="cannot be read"):
            score_logs([tmp_path / "none.jsonl"], out, router=router)
        assert left_of(out) == []

    def test_bundles_that_cannot_score(
        self, log: Path, make_bundle: Callable[..., Bundle], tmp_path: Path
    ) -> None:
        out = tmp_path / "s.jsonl"
        with pytest.raises(BundleError, match="no such folder"):
            score_logs([log], out, router=str(tmp_path / "none"))
        encoder = make_bundle("encoder", kind="encoder", models=[], strong="", weak="")
        with pytest.raises(ConfigError, match="is an encoder"):
            score_logs([log], out, router=str(encoder.path))
        broken = make_bundle("broken").path
        (broken / "model.onnx").write_bytes(b"x")
        with pytest.raises(BundleIntegrityError):
            score_logs([log], out, router=str(broken))

    def test_centres_of_another_bundle(self, log: Path, tiny_bundle: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "c.npy", np.eye(3, dtype=np.float32))
        for workers in (1, 2):
            with pytest.raises(ConfigError, match="embeddings have 4"):
                score_logs(
                    [log], tmp_path / f"s{workers}.jsonl", router=str(tiny_bundle),
                    centers=tmp_path / "c.npy", workers=workers,
                )  # fmt: skip

    def test_parquet_without_its_extra(
        self, log: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(MissingExtraError, match=r"thriftroute\[eval\]"):
            score_logs([log], tmp_path / "s.parquet", router=str(tiny_bundle))
        assert left_of(tmp_path / "s.parquet") == []
