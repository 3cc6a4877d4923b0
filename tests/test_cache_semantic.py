import threading
from pathlib import Path

import numpy as np
import pytest
import thriftroute
from thriftroute.router.scorer import Scorer
from thriftroute.serve.cache.semantic import Embedding, SemanticIndex, bundle_embedder
from thriftroute.serve.config.settings import SemanticSettings

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


def alike(_: str) -> Embedding:
    """An encoder to which all is one: what else must agree is seen best with it."""
    return np.ones(2, np.float32)


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
    lengths = {"short": 0.001, "long": 1000.0}
    index = SemanticIndex(lambda text: np.full(3, lengths[text], np.float32), 1 - 1e-6)
    index.add("b", "long", "key")
    assert index.find("b", "short") == "key"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what's the capital of france"),
        ("How do I install Docker on Ubuntu?", "How can I install docker on ubuntu"),
        ("Give me 3 recipes", "3 recipes, please"),
        ("It isn't there", "It isn’t there"),
        ("Is it not there", "Isn't it there"),
        ("f(a) + 1", "f(a)+1"),
    ],
)
def test_texts_that_may_mean_the_same(one: str, other: str) -> None:
    index = SemanticIndex(alike, 0.97)
    index.add("b", one, "key")
    assert index.find("b", other) == "key"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Convert miles to kilometres", "Convert kilometres to miles"),
        ("Who beat Spain in the final?", "Who did Spain beat in the final?"),
        ("Is it safe with alcohol?", "Is it not safe with alcohol?"),
        ("Why is the sky blue?", "Why isn't the sky blue?"),
        ("Ist das sicher?", "Ist das nicht sicher?"),
        ("Give me 3 recipes", "Give me 4 recipes"),
        ("add 17 to 71", "add 71 to 17"),
        ("is 1.5 enough", "is 15 enough"),
        ("what is a + b", "what is a - b"),
        ("a < b?", "a > b?"),
        ("tell me", "tell me 🙂"),
        ("?", "?"),
        (" ".join(["so"] * 33), " ".join(["so"] * 33)),
        ("x" * 251, "x" * 251),
    ],
)
def test_texts_that_an_encoder_might_take_for_one(one: str, other: str) -> None:
    index = SemanticIndex(alike, 0.97)
    index.add("b", one, "key")
    assert index.find("b", other) is None


def test_the_closest_that_agrees_is_found_and_not_the_closest() -> None:
    rows = {"to a from b": [1.0, 0.0], "to b from a": [1.0, 0.01], "b to a": [1.0, 0.1]}
    index = SemanticIndex(lambda text: np.array(rows[text], np.float32), 0.97)
    index.add("b", "to b from a", "closest")
    assert index.find("b", "to a from b") is None
    index.add("b", "b to a", "swapped too")
    index.add("b", "to a from b", "itself")
    assert index.find("b", "to a from b") == "itself"


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
    rows = {f"w{i}": rng.normal(size=8).astype(np.float32) for i in range(50)}
    index = SemanticIndex(rows.get, 0.999, max_entries=20)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed)
        try:
            for number in order.integers(50, size=300):
                text, bucket = f"w{number}", str(number % 3)
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
    assert index.find("b", "Prove  the theorem!") is None  # it does not know "!"
    assert index.find("b", "Prove  the theorem") == "hard"
    assert index.find("b", "hello easy") is None


def test_what_the_encoder_would_not_read_whole_is_not_compared(tiny_bundle: Path) -> None:
    embed = bundle_embedder(Scorer.load(tiny_bundle))  # 32 tokens, two of them special
    assert embed("hard " * 30) is not None
    assert embed("hard " * 31) is None
    assert embed("hard question") is None  # an unknown word
    assert embed("hard \U00020000") is None


NOT_THE_SAME = [
    ("Translate 'good morning' to French", "Translate 'good morning' to German"),
    (
        "Is it safe to take ibuprofen with alcohol?",
        "Is it not safe to take ibuprofen with alcohol?",
    ),
    ("How do I enable logging in nginx?", "How do I disable logging in nginx?"),
    ("What is the capital of Austria?", "What is the capital of Australia?"),
    ("Convert miles to kilometres", "Convert kilometres to miles"),
    ("Who beat Spain in the final?", "Who did Spain beat in the final?"),
    ("List the pros of remote work", "List the cons of remote work"),
    ("Should I buy Apple stock?", "Should I sell Apple stock?"),
    ("Sort the list in ascending order", "Sort the list in descending order"),
    ("What did Alice say to Bob?", "What did Bob say to Alice?"),
    ("What is the maximum of x^2 on [a, b]?", "What is the minimum of x^2 on [a, b]?"),
    ("total = 0; for x in xs: total += x", "total = 0; for x in xs: total -= x"),
    ("How do I install docker on ubuntu?", "How do I install docker on debian?"),
    ("What is 17 percent of 71?", "What is 71 percent of 17?"),
    ("你好吗", "再见"),
]
THE_SAME = [
    ("What is the capital of France?", "what is  the capital of france?"),
    ("How do I reverse a string in Python?", "How can I reverse a string in Python?"),
    ("Why is the sky blue?", "Why is the sky blue"),
    ("How to install docker on ubuntu", "How do I install Docker on Ubuntu?"),
]


@pytest.mark.parametrize("name", ["mf", "bert"])
def test_the_bundles_in_the_box_tell_questions_apart(name: str) -> None:
    embed = bundle_embedder(Scorer.load(Path(thriftroute.__file__).parent / "checkpoints" / name))
    similarity = SemanticSettings().similarity

    def taken_for_one(pair: tuple[str, str]) -> bool:
        index = SemanticIndex(embed, similarity)
        index.add("b", pair[0], "key")
        return index.find("b", pair[1]) is not None

    assert [pair for pair in NOT_THE_SAME if taken_for_one(pair)] == []
    assert [pair for pair in THE_SAME if taken_for_one(pair)] == THE_SAME
