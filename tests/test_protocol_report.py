"""The protocols' tables and JSON: what they say, and that they fit the terminal."""

import io
import json
from functools import cache

import numpy as np
import pytest
from rich.console import Console
from thriftroute.eval.benchmarks import Benchmark
from thriftroute.eval.own_logs import own_logs
from thriftroute.research.model_pairs import ModelMatrix, choose_pairs
from thriftroute.research.new_model import new_model_curve
from thriftroute.research.other_pairs import other_pairs
from thriftroute.research.protocol_report import ProtocolReport, print_protocol, to_json

ODD = "[b]odd[/b]"


def matrix() -> ModelMatrix:
    rng = np.random.default_rng(0)
    scores = (rng.random((120, 4)) < [0.9, 0.7, 0.5, 0.2]) * 1.0
    names = ("a-model-with-quite-a-long-name@host-1", "b", "c", ODD)
    return ModelMatrix([f"{'x' * (i % 9)}{i}" for i in range(120)], names, scores)


@cache
def reports() -> tuple[ProtocolReport, ...]:
    rng = np.random.default_rng(0)
    n = 90
    benchmark = Benchmark(
        "bench", [f"p {i}" for i in range(n)], np.ones(n), rng.integers(0, 2, n) * 1.0, "big", ODD
    )
    methods = {"general": lambda logs: logs.rest % 7, ODD: lambda logs: logs.rest % 5}
    return (
        own_logs(benchmark, methods, (20, 40), draws=3, bootstraps=20),
        other_pairs(
            choose_pairs(matrix(), 3),
            lambda inputs, strong, weak: np.arange(len(inputs)) % 3,
            data="file.parquet",
            bootstraps=20,
        ),
        new_model_curve(
            matrix(),
            [("b", "c"), (ODD, "b")],
            lambda logs: lambda index: index % 4,
            sizes=(10,),
            draws=2,
            data="file.parquet",
        ),
    )


def printed(report: ProtocolReport, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_protocol(report, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_the_terminal_and_show_names_as_they_are(which: int, width: int) -> None:
    text = printed(reports()[which], width)
    assert max(map(len, text.splitlines())) <= width
    assert ODD in text
    assert "…" not in text
    assert "seed 0" in text.lower().replace("\n", " ")


@pytest.mark.parametrize("which", range(3))
def test_json_is_strict_and_is_the_report(which: int) -> None:
    report = reports()[which]
    assert json.loads(to_json(report), parse_constant=pytest.fail) == json.loads(
        json.dumps(report.to_dict())
    )


def test_own_logs_has_a_table_a_size_with_the_best_first() -> None:
    report = reports()[0]
    text = printed(report, 140)
    assert "own logs of 20 from bench (n = 90): 3 draws, tested on the other 70" in text
    assert "own logs of 40 from bench" in text
    assert "- general" in text and "- prompt-length" in text
    assert "- prompt-length" not in printed(report, 80)
    rows = [row for row in report.rows if row.size == 20]  # type: ignore[union-attr]
    best = max(rows, key=lambda row: row.mean)
    table = text[text.index("worse") :].splitlines()
    assert table[2].startswith(f" {best.method}")
    assert f"{best.mean:.3f} [{best.prompts_ci[0]:.3f}, {best.prompts_ci[1]:.3f}]" in table[2]


def test_pairs_are_counted_and_tested() -> None:
    report = reports()[1]
    text = printed(report, 100)
    assert "file.parquet: 3 pairs of" in text
    sign = report.sign["random"]  # type: ignore[union-attr]
    assert f"{sign.wins}/3" in text and "optimistic" in text


def test_a_new_model_is_shown_by_size_and_pair() -> None:
    text = printed(reports()[2], 100)
    assert "file.parquet: a new model, 2 pairs, 2 draws" in text
    assert "b > c" in text and f"{ODD} < b" in text
    assert "+0.000 [+0.000, +0.000]" in text
