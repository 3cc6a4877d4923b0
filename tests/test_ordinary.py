"""The corpus of ordinary prompts, its test set, and what the checked-in bundles make of the latter.

Bars are for pairs of a hard and an easy prompt (`difficulty.pairs_in_order`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from thriftroute.data.schema import PromptScore
from thriftroute.data.sources import CORPUS
from thriftroute.data.split import prompt_key
from thriftroute.data.tables import PairTable, pair_table
from thriftroute.research.difficulty import pairs_in_order
from thriftroute.router.controller import Controller
from thriftroute.router.routers import CHECKPOINTS
from thriftroute.router.scorer import Scorer

TEST_SET = Path(__file__).parent / "data" / "ordinary_test.jsonl"
# Shares of pairs in order, of all and of those with a short hard and a long easy prompt.
BARS = {"mf": (0.94, 0.83), "fast": (0.90, 0.72), "bert": (0.94, 0.88)}
RATINGS = ("weak_ok", "strong_ok", "weak_ok_blind", "strong_ok_blind")
TEXTS = ("prompt", "kind", "area")
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus() -> list[Row]:
    return read(CORPUS)


def test_prompts_that_pages_call_hard_go_to_strong_and_greetings_to_weak() -> None:
    root = Path(__file__).parent.parent
    pages = [root / "README.md", *(root / "docs").glob("*.md"), root / "serve/api/page.html"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    hard = {*re.findall(r'"(Prove (?:that|Fermat)[^"\n]+?\.)\\?"', text)}
    easy = {*re.findall(r'"(What is [^"\n]+?\?|[Hh]ello!?)\\?"', text)}
    assert len(hard) >= 2 and len(easy) >= 3
    shown = re.findall(r'<textarea[^>]* placeholder="([^"]+)"', pages[-1].read_text("utf-8"))
    assert shown and set(shown) <= hard  # what "Try a prompt" tries by itself
    with Controller(["mf", "fast"], "strong", "weak") as client:
        for router in client.routers:
            wrong = [p for p in hard if client.route(p, router, strong_share=0.3) != "strong"]
            wrong += [p for p in easy if client.route(p, router, strong_share=0.3) != "weak"]
            assert not wrong, router


@pytest.fixture(scope="module")
def test_set() -> list[Row]:
    return read(TEST_SET)


def judged(rows: list[Row]) -> PairTable:
    """The means of both ratings, as shares."""

    def scores() -> Iterator[PromptScore]:
        for row in rows:
            for model, key in (("strong", "strong_ok"), ("weak", "weak_ok")):
                yield PromptScore(row["prompt"], model, (row[key] + row[f"{key}_blind"]) / 200)

    return pair_table(scores(), "strong", "weak")


@pytest.mark.parametrize("name", list(BARS))
def test_hard_prompts_score_higher_than_easy_ones(name: str, test_set: list[Row]) -> None:
    manifest = CHECKPOINTS / name / "manifest.json"
    told = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    if "ordinary" not in told.get("thresholds", {}):
        pytest.skip(f"checkpoints/{name} is not yet trained on ordinary prompts")
    table = judged(test_set)
    found = pairs_in_order(Scorer.load(manifest.parent).margins(table.inputs()), table)
    in_order, adverse = BARS[name]
    assert found["in order"] >= in_order, found
    assert found["adverse"] >= adverse, found


def test_the_test_set_is_balanced(test_set: list[Row]) -> None:
    """Enough of each kind, short and hard ones and long and easy ones among them."""
    assert len(test_set) == len({prompt_key(row["prompt"]) for row in test_set}) == 480
    table = judged(test_set)
    length = [len(prompt) for prompt in table.prompts]
    pairs = list(zip(length, table.weak, table.strong - table.weak, strict=True))
    hard = [n for n, weak, gain in pairs if weak < 0.4 - 1e-9 and gain >= 0.3 - 1e-9]
    easy = [n for n, weak, _ in pairs if weak >= 0.9 - 1e-9]
    assert min(len(hard), len(easy)) >= 50
    assert min(sum(n < 80 for n in hard), sum(n > 300 for n in easy)) >= 10


def test_what_the_ratings_say_of_it_is_in_order(test_set: list[Row]) -> None:
    table = judged(test_set)
    assert pairs_in_order(1 - table.weak, table) == {"in order": 1.0, "adverse": 1.0}
    assert pairs_in_order(table.weak, table) == {"in order": 0.0, "adverse": 0.0}


def test_no_prompt_of_it_is_in_the_corpus(corpus: list[Row], test_set: list[Row]) -> None:
    known = {prompt_key(row["prompt"]) for row in corpus}
    assert not [row["prompt"] for row in test_set if prompt_key(row["prompt"]) in known]


@pytest.mark.parametrize("path", [CORPUS, TEST_SET], ids=["corpus", "test set"])
def test_fields_and_ranges(path: Path) -> None:
    for number, row in enumerate(read(path), 1):
        assert set(row) - {"lang"} == {*TEXTS, *RATINGS}, number
        for key in TEXTS:
            assert isinstance(row[key], str) and row[key].strip(), (number, key)
        assert isinstance(row.get("lang", "en"), str) and row.get("lang", "en"), number
        for key in RATINGS:
            # No bool, which is a number too.
            assert type(row[key]) in (int, float) and 0 <= row[key] <= 100, (number, key)


def test_the_corpus_is_large_enough(corpus: list[Row]) -> None:
    assert len({prompt_key(row["prompt"]) for row in corpus}) >= 6000


def test_a_tenth_of_the_corpus_is_not_english(corpus: list[Row]) -> None:
    languages = Counter(row.get("lang", "en") for row in corpus)
    assert (len(corpus) - languages["en"]) / len(corpus) >= 0.1, languages
    assert len(languages) >= 10
