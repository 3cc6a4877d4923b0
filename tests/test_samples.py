"""The samples that ship with the package: reproducible, valid, and what their README says."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import thriftroute
from thriftroute.data.readers import read_prompts, read_rows
from thriftroute.data.schema import Comparison
from thriftroute.research import samples

SAMPLES = Path(thriftroute.__file__).parent / "data" / "samples"


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    rows = list(read_rows(SAMPLES / "comparisons.jsonl"))
    assert all(isinstance(row, Comparison) for row in rows)
    return [row for row in rows if isinstance(row, Comparison)]


def test_generator_gives_identical_bytes(tmp_path: Path) -> None:
    samples.make(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["comparisons.jsonl", "prompts.jsonl"]
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (SAMPLES / made.name).read_bytes(), made.name


def test_every_comparison_is_valid_and_says_what_it_is(comparisons: list[Comparison]) -> None:
    assert len(comparisons) == 400
    assert {(c.model_a, c.model_b) for c in comparisons} == {("strong-sim", "weak-sim")}
    assert {c.source for c in comparisons} == {"thriftroute-samples"}
    assert {c.score_a for c in comparisons} == {0.0, 0.5, 1.0}


def test_shares_are_those_of_the_readme(comparisons: list[Comparison]) -> None:
    counts = Counter(c.score_a for c in comparisons)
    stated = re.search(
        r"(\d+) comparisons of .*?(\d+) % strong wins, (\d+) % ties, (\d+) % weak wins",
        (SAMPLES / "README.md").read_text(encoding="utf-8"),
    )
    assert stated is not None
    measured = [round(100 * counts[score] / len(comparisons)) for score in (1.0, 0.5, 0.0)]
    assert [int(number) for number in stated.groups()] == [len(comparisons), *measured]
    for share, wanted in zip(measured, (35, 50, 15), strict=True):
        assert abs(share - wanted) <= 5


def test_prompts_are_distinct_over_both_files(comparisons: list[Comparison]) -> None:
    prompts = list(read_prompts(SAMPLES / "prompts.jsonl"))
    assert len(prompts) == 100
    every = [" ".join(p.lower().split()) for p in [*prompts, *(c.prompt for c in comparisons)]]
    assert len(set(every)) == 500


def test_prompts_are_varied(comparisons: list[Comparison]) -> None:
    categories = Counter(c.category for c in comparisons)
    assert len(categories) >= 15
    assert min(categories.values()) >= 10
    words = [len(c.prompt.split()) for c in comparisons if c.prompt.isascii()]
    assert min(words) < 20
    assert max(words) > 150
    assert sum(c.messages is not None for c in comparisons) >= 20
    assert any(c.messages and c.messages[0]["role"] == "system" for c in comparisons)
    assert any(re.search("[\u4e00-\u9fff]", c.prompt) for c in comparisons)
    assert not any(re.search(r"\{\w+(:\d+-\d+)?\}", c.prompt) for c in comparisons), "unfilled slot"


def test_hard_prompts_are_won_by_the_strong_model_more_often(
    comparisons: list[Comparison],
) -> None:
    def share(category: str) -> float:
        wins = [c.score_a == 1.0 for c in comparisons if c.category == category]
        return sum(wins) / len(wins)

    assert min(share("proof"), share("logic")) > 0.6
    assert max(share("greeting"), share("fact")) < 0.2


def test_unlabelled_prompts_carry_no_label() -> None:
    for line in (SAMPLES / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert set(row) in ({"prompt", "category"}, {"messages", "category"})
