import threading
from pathlib import Path

import numpy as np
import pytest
from thriftroute.router.scorer import Scorer
from thriftroute.serve.cache.semantic import Embedding, SemanticIndex, bundle_embedder

TABLE = {
    "cat": [1.0, 0.0],
    "kitten": [0.99, 0.1],
    "cats": [0.999, 0.01],
    "dog": [0.0, 3.0],
    "nothing": [0.0, 0.0],
    "broken": [float("nan"), 1.0],
}


def embed(text: str) -> Embedding | None:
    row = TABLE.get(text)
    return None if row is None else np.array(row, dtype=np.float32)


def test_the_closest_in_the_bucket_is_found_where_it_is_close_enough() -> None:
    index = SemanticIndex(embed, 0.99)
    index.add("b", "kitten", "key of kitten")
    index.add("b", "dog", "key of dog")
    assert index.find("b", "cat") == "key of kitten"
    index.add("b", "cats", "key of cats")
    assert index.find("b", "cat") == "key of cats"
    assert index.find("another", "cat") is None
    assert index.find(None, "cat") is None
    strict = SemanticIndex(embed, 0.999)
    strict.add("b", "kitten", "key")
    assert strict.find("b", "cat") is None
    assert strict.find("b", "kitten") == "key"


def test_the_length_of_an_embedding_does_not_count() -> None:
    index = SemanticIndex(lambda text: np.full(3, float(text), np.float32), 1 - 1e-6)
    index.add("b", "100", "key")
    assert index.find("b", "0.001") == "key"


@pytest.mark.parametrize("text", ["nothing", "broken", "unknown"])
def test_a_text_without_an_embedding_is_neither_found_nor_kept(text: str) -> None:
    index = SemanticIndex(embed, 0.0)
    index.add("b", text, "key")
    assert len(index) == 0
    index.add("b", "cat", "key")
    assert index.find("b", text) is None


def test_no_bucket_keeps_nothing() -> None:
    index = SemanticIndex(embed, 0.9)
    index.add(None, "cat", "key")
    assert len(index) == 0
    index.discard(None, "key")


def test_an_empty_bucket_is_not_worth_an_embedding() -> None:
    seen: list[str] = []

    def watched(text: str) -> Embedding | None:
        seen.append(text)
        return embed(text)

    index = SemanticIndex(watched, 0.9)
    assert index.find("b", "cat") is None
    assert seen == []


def test_what_was_not_found_for_the_longest_is_dropped() -> None:
    index = SemanticIndex(embed, 0.99, max_entries=2)
    index.add("b", "cat", "1")
    index.add("c", "dog", "2")
    assert index.find("b", "cat") == "1"
    index.add("d", "dog", "3")
    assert [index.find(b, t) for b, t in (("b", "cat"), ("c", "dog"), ("d", "dog"))] == [
        "1",
        None,
        "3",
    ]
    assert len(index) == 2


def test_a_key_can_be_forgotten_and_replaced() -> None:
    index = SemanticIndex(embed, 0.99)
    index.add("b", "cat", "key")
    index.add("b", "dog", "key")
    assert len(index) == 1
    assert index.find("b", "cat") is None
    index.discard("b", "key")
    index.discard("b", "key")
    assert index.find("b", "dog") is None
    assert len(index) == 0


def test_threads_share_it() -> None:
    rng = np.random.default_rng(0)
    rows = {str(i): rng.normal(size=8).astype(np.float32) for i in range(50)}
    index = SemanticIndex(rows.get, 0.999, max_entries=20)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed)
        try:
            for number in order.integers(50, size=300):
                text, bucket = str(number), str(number % 3)
                index.add(bucket, text, text)
                assert index.find(bucket, text) in {text, None}
                if number % 7 == 0:
                    index.discard(bucket, text)
                assert len(index) <= 20
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_bundles_encoder_embeds(tiny_bundle: Path) -> None:
    index = SemanticIndex(bundle_embedder(Scorer.load(tiny_bundle)), 0.99)
    index.add("b", "prove the theorem", "hard")
    assert index.find("b", "Prove  the theorem") == "hard"
    assert index.find("b", "hello easy") is None


def test_what_the_encoder_would_not_read_whole_is_not_compared(tiny_bundle: Path) -> None:
    embed = bundle_embedder(Scorer.load(tiny_bundle))  # 32 tokens, two of them special
    assert embed("hard " * 30) is not None
    assert embed("hard " * 31) is None
    assert embed("a" * 5000) is None
