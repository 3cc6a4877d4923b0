"""Benchmarks: the release's figures on the real files, and the same layout over a real server."""

import csv
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from thriftroute.errors import EvaluationError
from thriftroute.eval import benchmarks, fetch

needs_data = pytest.mark.skipif(
    not os.environ.get("THRIFTROUTE_DATA"),
    reason="THRIFTROUTE_DATA is unset: the RouteLLM files are not here",
)


@needs_data
@pytest.mark.parametrize(
    ("name", "n", "dropped", "strong", "weak", "scale"),
    [
        ("mmlu", 14_037, 5, 80.59, 68.09, 100),
        ("gsm8k", 1_307, 12, 85.77, 63.73, 100),
        ("mt-bench", 72, 8, 9.21, 8.28, 1),
    ],
)
def test_means_after_decontamination_are_those_of_the_paper(
    name: str, n: int, dropped: int, strong: float, weak: float, scale: int
) -> None:
    benchmark = benchmarks.load(name)
    assert (benchmark.n, dict(benchmark.dropped)) == (n, {"contaminated": dropped})
    assert round(scale * benchmark.strong.mean(), 2) == strong
    assert round(scale * benchmark.weak.mean(), 2) == weak
    assert benchmark.strong_model == "gpt-4-1106-preview"
    assert len(benchmark.inputs()) == n
    assert np.array_equal(benchmark.labels, benchmark.strong > benchmark.weak)


def write_release(root: Path) -> None:
    """A small tree with the layout of the release, below its commit."""
    evals = root / fetch.COMMIT / "routellm" / "evals"
    for domain in benchmarks.MMLU_DOMAINS:
        path = evals / "mmlu" / "responses" / f"mmlu_{domain}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(path, [(f'{domain}, "quoted"\nA. x\nAnswer:', True, False), ("same", True, True)])
    write_lines(evals / "mmlu" / "contaminated_prompts.jsonl", [{"eval_prompt": "nothing like it"}])
    (evals / "gsm8k").mkdir()
    rows = [("kept", True, False), ("bad", False, True), ("also", False, False)]
    write_csv(evals / "gsm8k" / "gsm8k_responses.csv", rows)
    write_lines(evals / "gsm8k" / "contaminated_prompts.jsonl", [{"eval_prompt": "bad"}])
    (evals / "mt_bench").mkdir()
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["first", "second"]},
        {"question_id": 82, "category": "writing", "turns": ["third", "contaminated"]},
    ]
    grades = [
        {"question_id": q, "model": model, "turn": turn, "score": score + turn}
        for q in (81, 82)
        for model, score in (("gpt-4-1106-preview", 7), ("mixtral-8x7b-instruct-v0.1", 5))
        for turn in (2, 1)
    ]
    write_lines(evals / "mt_bench" / "question.jsonl", questions)
    write_lines(evals / "mt_bench" / "judgements.jsonl", grades)
    write_lines(
        evals / "mt_bench" / "contaminated_prompts.jsonl", [{"eval_prompt": "contaminated"}]
    )


def write_csv(path: Path, rows: list[tuple[str, bool, bool]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "mixtral-8x7b-instruct-v0.1", "gpt-4-1106-preview"])
        writer.writerows((prompt, weak, strong) for prompt, strong, weak in rows)


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Server:
    """A file server on a loopback port that counts requests and can misbehave."""

    def __init__(self, root: Path) -> None:
        server = self
        self.requests: list[str] = []
        self.cut = False

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(root))

            def do_GET(self) -> None:
                server.requests.append(self.path)
                if not server.cut:
                    super().do_GET()
                    return
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"half")

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


Release = tuple[Server, fetch.Files]


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    write_release(tmp_path / "www")
    server = Server(tmp_path / "www")
    yield server, fetch.Files(local=None, cache=tmp_path / "cache", base_url=server.url)
    server.stop()


def test_the_release_is_fetched_once_and_read(release: Release) -> None:
    server, files = release
    gsm8k = benchmarks.load("gsm8k", files)
    assert gsm8k.prompts == ["kept", "also"]
    assert (gsm8k.strong.tolist(), gsm8k.weak.tolist()) == ([1, 0], [0, 0])
    assert gsm8k.dropped == {"contaminated": 1}
    asked = len(server.requests)
    assert all(fetch.COMMIT in path for path in server.requests)
    assert benchmarks.load("gsm8k", files).prompts == gsm8k.prompts
    assert len(server.requests) == asked == 2
    assert not list(files.cache.rglob("*.part"))


def test_mmlu_joins_all_domains_and_keeps_duplicates(release: Release) -> None:
    mmlu = benchmarks.load("mmlu", release[1])
    assert mmlu.n == 2 * 57 and mmlu.prompts.count("same") == 57
    assert (mmlu.strong.mean(), mmlu.weak.mean()) == (1.0, 0.5)


def test_mt_bench_is_one_row_a_question_routed_by_its_first_turn(release: Release) -> None:
    mt_bench = benchmarks.load("mt-bench", release[1])
    assert mt_bench.prompts == ["first"]  # 82 is contaminated by its second turn
    assert (mt_bench.strong.tolist(), mt_bench.weak.tolist()) == ([8.5], [6.5])


def test_a_download_that_breaks_off_leaves_nothing_behind(release: Release) -> None:
    server, files = release
    server.cut = True
    with pytest.raises(EvaluationError, match="broke off after 4 of 1000 bytes"):
        benchmarks.load("gsm8k", files)
    assert not [path for path in files.cache.rglob("*") if path.is_file()]
    server.cut = False
    assert benchmarks.load("gsm8k", files).n == 2


def test_too_large_missing_and_unreachable_files_say_what_to_do(
    release: Release, tmp_path: Path
) -> None:
    server, files = release
    small = fetch.Files(local=None, cache=files.cache, base_url=server.url, max_bytes=50)
    with pytest.raises(EvaluationError, match="larger than 50 bytes"):
        benchmarks.load("gsm8k", small)
    with pytest.raises(EvaluationError, match=r"404.*THRIFTROUTE_DATA"):
        files.remote("no/such/file.csv")
    offline = fetch.Files(local=None, cache=tmp_path / "c", base_url="http://127.0.0.1:1")
    with pytest.raises(EvaluationError, match=r"cannot fetch.*THRIFTROUTE_DATA"):
        benchmarks.load("mmlu", offline)
    with pytest.raises(EvaluationError, match="http"):
        fetch.Files(local=None, cache=tmp_path, base_url="file:///etc").remote("x")


def test_files_that_do_not_belong_together_are_refused(release: Release, tmp_path: Path) -> None:
    evals = tmp_path / "www" / fetch.COMMIT / "routellm" / "evals"
    (evals / "gsm8k" / "gsm8k_responses.csv").write_text("prompt,gpt-4-1106-preview\nhi,True\n")
    with pytest.raises(EvaluationError, match=r"no column.*Mixtral"):
        benchmarks.load("gsm8k", release[1])
    judgements = evals / "mt_bench" / "judgements.jsonl"
    judgements.write_text(judgements.read_text().splitlines()[0] + "\n")
    with pytest.raises(EvaluationError, match="expected 1 and 2"):
        benchmarks.load("mt-bench", release[1])


def test_a_cached_file_that_is_no_json_is_named(release: Release) -> None:
    files = release[1]
    path = files.remote("gsm8k/contaminated_prompts.jsonl")
    path.write_text("<html>")
    with pytest.raises(EvaluationError, match=r"contaminated_prompts.*delete it"):
        benchmarks.load("gsm8k", files)


def test_the_environment_decides_where_files_come_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("THRIFTROUTE_DATA", str(tmp_path))
    monkeypatch.setenv("THRIFTROUTE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EvaluationError, match=r"routellm_gsm8k.parquet does not exist"):
        benchmarks.load("gsm8k")
    monkeypatch.delenv("THRIFTROUTE_DATA")
    monkeypatch.setenv("THRIFTROUTE_BENCHMARK_URL", "http://127.0.0.1:1")
    files = fetch.Files.from_environment()
    assert (files.local, files.base_url) == (None, "http://127.0.0.1:1")
    assert files.cache == tmp_path / "cache"
    monkeypatch.delenv("THRIFTROUTE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch.Files.from_environment().cache == tmp_path / "xdg" / "thriftroute"


def test_unknown_benchmarks_list_the_known_ones() -> None:
    with pytest.raises(EvaluationError, match="gsm8k, mmlu, mt-bench"):
        benchmarks.load("hellaswag")


def test_a_benchmark_checks_its_columns() -> None:
    ones = np.ones(2)
    with pytest.raises(EvaluationError, match="no prompt"):
        benchmarks.Benchmark("x", [], np.empty(0), np.empty(0), "s", "w")
    with pytest.raises(EvaluationError, match="weak has 1"):
        benchmarks.Benchmark("x", ["a", "b"], ones, ones[:1], "s", "w")


def test_a_users_scores_become_a_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "logs.jsonl"
    rows = [
        {"prompt": "a", "model": "big", "score": 1.0, "cost_usd": 0.02},
        {"prompt": "a", "model": "small", "score": 0.25, "cost_usd": 0.001},
        {"prompt": "b", "model": "big", "score": 0.5, "cost_usd": 0.03},
        {"prompt": "b", "model": "small", "score": 0.5, "cost_usd": 0.002},
        {"prompt": "c", "model": "other", "score": 1.0},
    ]
    write_lines(path, rows)
    benchmark = benchmarks.from_file(path, "big", "small")
    assert (benchmark.name, benchmark.prompts) == ("logs", ["a", "b"])
    assert (benchmark.strong.tolist(), benchmark.weak.tolist()) == ([1.0, 0.5], [0.25, 0.5])
    assert benchmark.labels.tolist() == [1, 0]  # a tie counts for the weak model
    assert benchmark.strong_cost.tolist() == [0.02, 0.03]
    assert benchmark.dropped == {"row of another model": 1}


def test_a_users_comparisons_become_a_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    rows = [
        {"prompt": "a", "model_a": "big", "model_b": "small", "score_a": 1.0},
        {"prompt": "a", "model_a": "small", "model_b": "big", "score_a": 0.5},
        {"prompt": "b", "model_a": "small", "model_b": "big", "score_a": 1.0},
    ]
    write_lines(path, rows)
    benchmark = benchmarks.from_file(path, "big", "small", name="votes")
    assert benchmark.strong.tolist() == [0.75, 0.0]
    assert benchmark.weak.tolist() == [0.25, 1.0]
    assert benchmark.labels.tolist() == [0.5, 0.0]
    assert benchmark.strong_cost is None
