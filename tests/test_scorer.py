"""Text to score: the same to the last bit however it is run, and clear errors where it cannot."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.errors import BundleFormatError, BundleIntegrityError, ConfigError
from thriftroute.router.bundle import Bundle, write_bundle
from thriftroute.router.routers import CHECKPOINTS
from thriftroute.router.scorer import Scorer
from thriftroute.router.text import Conversation
from thriftroute.router.threshold import sigmoid

BundleMaker = Callable[..., Bundle]

PROMPTS: list[Any] = [
    "prove the hard theorem",
    "hello easy",
    "",
    " \n\t",
    "what is 2 + 2",
    "a\x00b",
    "请证明",
    "🙂 \ud83d",
    "hard " * 5000,
    "x" * 1_000_000,
    [{"role": "system", "content": "easy"}, {"role": "user", "content": "prove"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    Conversation("", "hard", "hello"),
]


@pytest.fixture
def scorer(tiny_bundle: Path) -> Scorer:
    return Scorer.load(tiny_bundle)


def replace_file(bundle: Path, name: str, content: bytes) -> Path:
    """Put other content into a bundle, with the right hash: damage that only loading finds."""
    (bundle / name).write_bytes(content)
    raw = json.loads((bundle / "manifest.json").read_text())
    raw["files"][name] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (bundle / "manifest.json").write_text(json.dumps(raw))
    return bundle


def set_field(bundle: Path, **fields: Any) -> Path:
    raw = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**raw, **fields}))
    return bundle


class TestScores:
    def test_learned_order(self, scorer: Scorer) -> None:
        hard, plain, easy = scorer.scores(["prove the hard theorem", "what is 2", "hello easy"])
        assert hard > 0.7 > plain > 0.3 > easy

    @pytest.mark.parametrize("workers", [None, 1, 2, 3, 8])
    def test_same_bits_for_any_number_of_workers(self, scorer: Scorer, workers: int | None) -> None:
        singles = np.array([scorer.score(prompt) for prompt in PROMPTS])
        many = scorer.scores(PROMPTS, workers=workers)
        assert many.dtype == np.float64
        assert many.tobytes() == singles.tobytes()

    def test_score_does_not_depend_on_the_neighbours(self, scorer: Scorer) -> None:
        backwards = scorer.scores(PROMPTS[::-1])[::-1]
        assert backwards.tobytes() == scorer.scores(PROMPTS).tobytes()

    def test_second_scorer_agrees(self, scorer: Scorer, tiny_bundle: Path) -> None:
        other = Scorer.load(str(tiny_bundle), threads=2)
        np.testing.assert_allclose(other.scores(PROMPTS), scorer.scores(PROMPTS), atol=1e-6)

    def test_scores_are_finite_and_inside_the_open_interval(self, scorer: Scorer) -> None:
        scores = scorer.scores(PROMPTS)
        assert np.all((scores > 0) & (scores < 1))

    def test_more_prompts_than_a_block(self, scorer: Scorer) -> None:
        prompts = [PROMPTS[i % 5] for i in range(600)]
        many = scorer.scores(prompts, workers=2)
        assert many.tobytes() == np.resize(scorer.scores(PROMPTS[:5]), 600).tobytes()

    def test_no_prompts(self, scorer: Scorer) -> None:
        assert scorer.scores([]).shape == (0,)
        assert scorer.embeddings([]).shape == (0, 4)
        assert list(scorer.encode_all([])) == []

    def test_error_of_one_prompt_is_raised_with_workers_too(self, scorer: Scorer) -> None:
        for workers in (1, 2):
            with pytest.raises(ValueError, match="expected a mapping"):
                scorer.scores(["hello", ["bad"]], workers=workers)  # type: ignore[list-item]
        assert scorer.score("hello") > 0

    def test_margin_and_calibration_make_the_score(self, make_bundle: BundleMaker) -> None:
        scorer = Scorer.load(make_bundle("b", calibration={"method": "platt", "a": 2.0, "b": -0.5}))
        margin = scorer.margin("prove the theorem")
        assert scorer.score("prove the theorem") == float(sigmoid(2.0 * margin - 0.5))
        quality = next(iter(scorer.encode_all(["prove the theorem"]))).quality
        assert margin == float(quality[0] - quality[1])

    def test_thread_safety(self, scorer: Scorer) -> None:
        expected = [scorer.score(prompt) for prompt in PROMPTS]
        start = threading.Barrier(8)

        def work(shift: int) -> bool:
            start.wait()
            order = [(i + shift) % len(PROMPTS) for i in range(3 * len(PROMPTS))]
            return all(scorer.score(PROMPTS[i]) == expected[i] for i in order)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


class TestEmbeddings:
    def test_shape_and_agreement(self, scorer: Scorer) -> None:
        rows = scorer.embeddings(PROMPTS)
        assert rows.dtype == np.float32
        assert rows.shape == (len(PROMPTS), 4)
        encodings = list(scorer.encode_all(PROMPTS, workers=3))
        assert np.array([e.embedding for e in encodings]).tobytes() == rows.tobytes()
        assert all(e.quality.shape == (3,) for e in encodings)

    def test_encoder_embeds_but_does_not_score(self, make_bundle: BundleMaker) -> None:
        bundle = make_bundle("e", kind="encoder", models=[], strong="", weak="", calibration={})
        encoder = Scorer.load(bundle)
        assert encoder.embeddings(["hello", "hard"]).shape == (2, 4)
        assert next(iter(encoder.encode_all(["hello"]))).quality.shape == (0,)
        for call in (encoder.score, encoder.margin, lambda p: encoder.scores([p])):
            with pytest.raises(ConfigError, match="knows no models"):
                call("hello")


CHEAP = ["numbers", "characters", "question_mark"]


class TestRepresentations:
    """The embedding of this graph and, beside it, three cheap features."""

    @pytest.fixture
    def cheap(self, make_bundle: BundleMaker) -> Scorer:
        return Scorer.load(make_bundle("cheap", features=CHEAP))

    def test_features_go_in_by_name_and_in_order(self, cheap: Scorer) -> None:
        got = cheap.representations(["what is 2 + 2 ?", "hello"])
        assert got.dtype == np.float32
        assert got.shape == (2, 7)
        np.testing.assert_allclose(got[:, :4], cheap.embeddings(["what is 2 + 2 ?", "hello"]))
        expected = [[np.log1p(2), np.log1p(15), 1.0], [0.0, np.log1p(5), 0.0]]
        np.testing.assert_allclose(got[:, 4:], expected, atol=1e-6)

    def test_they_are_of_the_last_turn(self, cheap: Scorer) -> None:
        messages = [
            {"role": "user", "content": "1 2 3 ?"},
            {"role": "assistant", "content": "4 5 6"},
            {"role": "user", "content": " hello\n"},
        ]
        [got] = cheap.representations([messages])
        np.testing.assert_allclose(got[4:], [0.0, np.log1p(5), 0.0], atol=1e-6)

    def test_they_are_of_the_whole_turn_though_its_tokens_are_cut(self, cheap: Scorer) -> None:
        text = "hard 7 " * 50
        assert len(cheap.token_ids(text)) == 32
        [got] = cheap.representations([text])
        np.testing.assert_allclose(got[4:], [np.log1p(50), np.log1p(349), 0.0], atol=1e-6)

    def test_they_move_the_score(self, cheap: Scorer) -> None:
        """The graph gives them .1, .2 and .3: see `tiny_graph`."""
        plain, asked = (cheap.margin(text) for text in ("hello the", "hello ???"))
        [a, b] = cheap.embeddings(["hello the", "hello ???"])
        assert asked - plain == pytest.approx(float(b[0] - a[0]) + 0.3, abs=1e-6)

    def test_feeds_are_what_the_graph_takes(self, cheap: Scorer, scorer: Scorer) -> None:
        feeds = cheap.feeds("what is 2")
        assert {name: (value.dtype, value.shape) for name, value in feeds.items()} == {
            "input_ids": (np.int64, (1, 5)),
            "attention_mask": (np.int64, (1, 5)),
            "features": (np.float32, (1, 3)),
        }
        assert feeds["input_ids"].tolist() == [cheap.token_ids("what is 2")]
        assert set(scorer.feeds("what is 2")) == {"input_ids", "attention_mask"}

    @pytest.mark.parametrize("workers", [None, 1, 3])
    def test_same_bits_for_any_number_of_workers(self, cheap: Scorer, workers: int | None) -> None:
        alone = np.concatenate([cheap.representations([prompt]) for prompt in PROMPTS])
        many = cheap.representations(PROMPTS, workers=workers)
        assert many.tobytes() == alone.tobytes()
        singles = np.array([cheap.score(prompt) for prompt in PROMPTS])
        assert cheap.scores(PROMPTS, workers=workers).tobytes() == singles.tobytes()

    def test_no_prompts(self, cheap: Scorer) -> None:
        assert cheap.representations([]).shape == (0, 7)

    def test_a_bundle_without_one(self, scorer: Scorer, tiny_bundle: Path) -> None:
        with pytest.raises(ConfigError, match=r"gives no representation \(a bundle of format 1\?"):
            scorer.representations(["hello"])
        with pytest.raises(ConfigError, match=str(tiny_bundle)):
            scorer.representations([])


class TestTwoGraphs:
    """The embedding is a graph of its own, which a decision does without."""

    @pytest.fixture
    def split(self, make_bundle: BundleMaker) -> Path:
        return make_bundle("split", split=True, features=CHEAP).path

    @pytest.fixture
    def whole(self, make_bundle: BundleMaker) -> Scorer:
        return Scorer.load(make_bundle("whole", features=CHEAP))

    @pytest.mark.parametrize("workers", [1, 3])
    def test_they_say_what_one_graph_says(self, split: Path, whole: Scorer, workers: int) -> None:
        scorer = Scorer.load(split)
        for name in ("scores", "margins", "qualities", "representations", "embeddings"):
            ours, theirs = (getattr(one, name)(PROMPTS, workers=workers) for one in (scorer, whole))
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        for ours, theirs in zip(scorer.encode_all(PROMPTS), whole.encode_all(PROMPTS), strict=True):
            np.testing.assert_allclose(ours.quality, theirs.quality, atol=1e-5)
            np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=1e-5)
        assert scorer.feeds("hello").keys() == whole.feeds("hello").keys()

    def test_an_encoder_in_two(self, make_bundle: BundleMaker) -> None:
        names: dict[str, Any] = {"kind": "encoder", "models": [], "strong": "", "weak": ""}
        one, two = (
            Scorer.load(make_bundle(f"e{split}", split=split, calibration={}, **names))
            for split in (False, True)
        )
        np.testing.assert_allclose(one.embeddings(PROMPTS), two.embeddings(PROMPTS), atol=1e-5)

    def test_decisions_never_load_the_second(self, split: Path, whole: Scorer) -> None:
        scorer = Scorer.load(split)
        (split / "embedding.onnx").unlink()
        for name in ("scores", "margins", "qualities", "representations"):
            found = getattr(scorer, name)(PROMPTS)
            np.testing.assert_allclose(found, getattr(whole, name)(PROMPTS), atol=1e-5)
        assert scorer.score("hello") == pytest.approx(whole.score("hello"))
        assert scorer.familiarity("hello") is None
        with pytest.raises(BundleIntegrityError, match=r"embedding\.onnx is missing"):
            scorer.embeddings(["hello"])

    def test_a_bundle_that_was_replaced_under_a_loaded_one(self, split: Path) -> None:
        """Its states mean nothing to another bundle's second half."""
        scorer = Scorer.load(split)
        data = bytearray((split / "embedding.onnx").read_bytes())
        data[-1] ^= 1
        replace_file(split, "embedding.onnx", bytes(data))
        with pytest.raises(BundleIntegrityError, match=r"embedding\.onnx is not the file"):
            scorer.embeddings(["hello"])

    def test_threads_that_ask_at_once_load_it_once(
        self, split: Path, whole: Scorer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import onnxruntime as ort

        scorer, made, make = Scorer.load(split), [], ort.InferenceSession
        start = threading.Barrier(8)

        def counted(*args: Any, **options: Any) -> Any:
            made.append(make(*args, **options))
            return made[-1]

        def ask(prompt: Any) -> Any:
            start.wait()
            return scorer.embeddings([prompt], workers=1)[0]

        monkeypatch.setattr(ort, "InferenceSession", counted)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, PROMPTS[:8]))
        assert len(made) == 1
        np.testing.assert_allclose(found, whole.embeddings(PROMPTS[:8]), atol=1e-5)

    def test_missing(self, split: Path) -> None:
        (split / "embedding.onnx").unlink()
        with pytest.raises(BundleIntegrityError, match=r"embedding\.onnx is missing"):
            Scorer.load(split)

    def test_not_listed(self, split: Path) -> None:
        raw = json.loads((split / "manifest.json").read_text())
        del raw["files"]["embedding.onnx"]
        (split / "manifest.json").write_text(json.dumps(raw))
        with pytest.raises(BundleFormatError, match="'embedding' has width None"):
            Scorer.load(split)

    def test_changed(self, split: Path) -> None:
        data = bytearray((split / "embedding.onnx").read_bytes())
        data[len(data) // 2] ^= 0x10
        (split / "embedding.onnx").write_bytes(data)
        with pytest.raises(BundleIntegrityError, match=r"embedding\.onnx is not the file"):
            Scorer.load(split)

    def test_a_forbidden_operator_with_the_right_hash(self, split: Path) -> None:
        """Found when the bundle is loaded, not at the first embedding."""
        onnx = pytest.importorskip("onnx")
        model = onnx.load_from_string((split / "embedding.onnx").read_bytes())
        model.graph.node[0].op_type = "Loop"
        replace_file(split, "embedding.onnx", model.SerializeToString())
        with pytest.raises(
            BundleFormatError, match=r"embedding\.onnx does not load: it uses the operator 'Loop'"
        ):
            Scorer.load(split)

    def test_no_graph_with_the_right_hash(self, split: Path) -> None:
        replace_file(split, "embedding.onnx", b"not a graph")
        with pytest.raises(BundleFormatError, match=r"embedding\.onnx does not load"):
            Scorer.load(split)

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            ("input", "takes states of width 5, not 4"),
            ("output", r"'embedding' has width \w+, the manifest says 4"),
            ("name", r"has inputs \['attention_mask', 'other'\]; expected states, attention_mask"),
        ],
    )
    def test_a_second_half_of_another_encoder(self, split: Path, part: str, message: str) -> None:
        onnx = pytest.importorskip("onnx")
        model = onnx.load_from_string((split / "embedding.onnx").read_bytes())
        if part == "name":
            model.graph.input[0].name = model.graph.node[0].input[0] = "other"
        else:
            (value, *_) = getattr(model.graph, part)
            value.type.tensor_type.shape.dim[-1].dim_value = 5
        replace_file(split, "embedding.onnx", model.SerializeToString())
        scorer = Scorer.load(split)
        assert 0 < scorer.score("hello") < 1
        with pytest.raises(BundleFormatError, match=message):
            scorer.embeddings(["hello"])

    def test_it_is_part_of_the_identity(self, split: Path, tmp_path: Path) -> None:
        """Tuned above its first half, an encoder has the same model.onnx and other embeddings."""
        before = Bundle.open(split).model_sha256
        replace_file(split, "embedding.onnx", (split / "embedding.onnx").read_bytes() + b"\0")
        assert Bundle.open(split).model_sha256 != before


class TestScoresAlone:
    """Of a graph whose scores need little of it, the rest is loaded where it is asked for."""

    @pytest.fixture
    def fast(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(CHECKPOINTS / "fast", tmp_path / "fast"))

    def test_they_need_no_more(self, fast: Path) -> None:
        scorer, score = Scorer.load(fast), Scorer.load(fast).score("hello")
        (fast / "model.onnx").write_bytes(b"")
        assert scorer.score("hello") == score
        assert scorer.margins(["hello", "prove it"]).shape == (2,)
        for ask in (scorer.familiarity, scorer.embeddings, scorer.representations):
            with pytest.raises(BundleIntegrityError, match=r"model\.onnx"):
                ask(["hello"])

    def test_the_rest_says_the_same(self, fast: Path) -> None:
        scorer = Scorer.load(fast)
        alone = scorer.qualities(PROMPTS)
        both = [encoding.quality for encoding in scorer.encode_all(PROMPTS)]
        np.testing.assert_allclose(alone, both, atol=1e-6)
        assert 0 <= (scorer.familiarity("hello") or -1) <= 1


class TestFamiliarity:
    def test_a_bundle_that_does_not_tell(self, scorer: Scorer) -> None:
        assert scorer.familiarity("hello") is None

    def test_it_is_the_graphs(self, tiny_bundle: Path) -> None:
        onnx = pytest.importorskip("onnx")
        model = onnx.load_from_string((tiny_bundle / "model.onnx").read_bytes())
        node = onnx.helper.make_node("ReduceMax", ["embedding", "axis1"], ["familiarity"])
        model.graph.node.append(node)
        model.graph.output.append(
            onnx.helper.make_tensor_value_info("familiarity", onnx.TensorProto.FLOAT, ["b", 1])
        )
        replace_file(tiny_bundle, "model.onnx", model.SerializeToString())
        scorer = Scorer.load(tiny_bundle)
        [embedding] = scorer.embeddings(["prove the hard theorem"])
        found = scorer.familiarity("prove the hard theorem")
        assert found == pytest.approx(float(embedding.max()))
        # One output more, and nothing else changes.
        [encoding] = scorer.encode_all(["prove the hard theorem"])
        assert encoding.quality.shape == (3,)


class TestTokens:
    def test_truncation_is_the_manifests(self, scorer: Scorer) -> None:
        got = scorer.token_ids("hard " * 100)
        assert len(got) == 32
        assert (got[0], got[-1]) == (2, 3)

    def test_truncation_of_the_tokenizer_file_is_ignored(self, tiny_bundle: Path) -> None:
        raw = json.loads((tiny_bundle / "tokenizer.json").read_text())
        raw["truncation"] = {
            "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
        raw["padding"] = {
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
        }  # fmt: skip
        before = Scorer.load(tiny_bundle).token_ids("prove the hard theorem is easy")
        replace_file(tiny_bundle, "tokenizer.json", json.dumps(raw).encode())
        assert Scorer.load(tiny_bundle).token_ids("prove the hard theorem is easy") == before

    def test_count_is_of_the_whole_text(self, scorer: Scorer) -> None:
        assert scorer.count_tokens("hard " * 100) == 100
        messages = [
            {"role": "system", "content": "easy"},
            {"role": "user", "content": "hello"},
            {"role": "user", "content": "prove the theorem"},
        ]
        assert scorer.count_tokens(messages) == 5

    def test_context_decides_what_is_scored(self, tiny_bundle: Path) -> None:
        messages = [
            {"role": "system", "content": "hello easy"},
            {"role": "user", "content": "prove the hard theorem"},
            {"role": "user", "content": "a"},
        ]
        by_context = {
            context: Scorer.load(tiny_bundle, context=context).score(messages)
            for context in ("last", "conversation", "full")
        }
        alone = Scorer.load(tiny_bundle).score("a")
        assert by_context["last"] == alone
        assert by_context["conversation"] > by_context["full"] > alone


class TestPair:
    def test_default_is_the_manifests(self, scorer: Scorer) -> None:
        assert (scorer.strong, scorer.weak) == ("strong-1", "weak-1")

    def test_other_pair_of_the_bundle(self, tiny_bundle: Path) -> None:
        turned = Scorer.load(tiny_bundle, strong="weak-1", weak="strong-1")
        usual = Scorer.load(tiny_bundle)
        assert turned.margin("prove") == -usual.margin("prove")
        assert turned.score("prove") == pytest.approx(1 - usual.score("prove"))
        assert Scorer.load(tiny_bundle, strong="weak-1", weak="other-1").margin("prove") == 0.0

    def test_unknown_model_lists_the_known(self, tiny_bundle: Path) -> None:
        with pytest.raises(ConfigError, match=r"'gpt-9' is not in .*strong-1, weak-1, other-1"):
            Scorer.load(tiny_bundle, weak="gpt-9")

    def test_one_model_twice(self, tiny_bundle: Path) -> None:
        with pytest.raises(ConfigError, match="strong and weak are both 'weak-1'"):
            Scorer.load(tiny_bundle, strong="weak-1")


class TestLoad:
    @pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", None])
    def test_threads(self, tiny_bundle: Path, threads: Any) -> None:
        with pytest.raises(ConfigError, match="threads: expected a whole number >= 1"):
            Scorer.load(tiny_bundle, threads=threads)

    def test_context(self, tiny_bundle: Path) -> None:
        with pytest.raises(ConfigError, match="context 'all'"):
            Scorer.load(tiny_bundle, context="all")

    def test_altered_bundle_is_not_loaded(self, tiny_bundle: Path) -> None:
        data = bytearray((tiny_bundle / "model.onnx").read_bytes())
        data[len(data) // 2] ^= 0x10
        (tiny_bundle / "model.onnx").write_bytes(data)
        with pytest.raises(BundleIntegrityError, match=r"model\.onnx is not the file"):
            Scorer.load(tiny_bundle)

    def test_graph_with_the_right_hash_that_does_not_load(self, tiny_bundle: Path) -> None:
        data = (tiny_bundle / "model.onnx").read_bytes()
        for content in (b"", b"not a graph", data[: len(data) // 2]):
            replace_file(tiny_bundle, "model.onnx", content)
            with pytest.raises(BundleFormatError, match=r"model\.onnx does not load"):
                Scorer.load(tiny_bundle)

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": 1}'])
    def test_tokenizer_with_the_right_hash_that_does_not_load(
        self, tiny_bundle: Path, content: bytes
    ) -> None:
        replace_file(tiny_bundle, "tokenizer.json", content)
        with pytest.raises(BundleFormatError, match=r"tokenizer\.json does not load"):
            Scorer.load(tiny_bundle)

    def test_graph_of_another_width(self, make_bundle: BundleMaker) -> None:
        bundle = set_field(make_bundle("b").path, dim=5)
        with pytest.raises(BundleFormatError, match="'embedding' has width 4, the manifest says 5"):
            Scorer.load(bundle)

    def test_graph_of_other_models(self, make_bundle: BundleMaker) -> None:
        bundle = set_field(make_bundle("b").path, models=["strong-1", "weak-1"])
        with pytest.raises(BundleFormatError, match="'quality' has width 3, the manifest says 2"):
            Scorer.load(bundle)

    def test_graph_without_quality(self, make_bundle: BundleMaker) -> None:
        encoder = make_bundle("e", kind="encoder", models=[], strong="", weak="")
        models = ["a", "b"]
        bundle = set_field(encoder.path, kind="mf", models=models, strong="a", weak="b")
        with pytest.raises(BundleFormatError, match="'quality' has width None"):
            Scorer.load(bundle)

    def test_features_that_the_graph_does_not_take(self, tiny_bundle: Path) -> None:
        set_field(tiny_bundle, features=["tokens"])
        with pytest.raises(BundleFormatError, match=r"has inputs .*; expected .*, features"):
            Scorer.load(tiny_bundle)

    def test_features_that_the_manifest_does_not_name(self, make_bundle: BundleMaker) -> None:
        bundle = set_field(make_bundle("b", features=CHEAP).path, features=[])
        message = (
            r"has inputs \['attention_mask', 'features', 'input_ids'\]; expected input_ids, att"
        )
        with pytest.raises(BundleFormatError, match=message):
            Scorer.load(bundle)

    def test_another_number_of_features(self, make_bundle: BundleMaker) -> None:
        bundle = set_field(make_bundle("b", features=CHEAP).path, features=CHEAP[:2])
        with pytest.raises(BundleFormatError, match="takes 3 features, the manifest names 2"):
            Scorer.load(bundle)

    def test_features_of_another_type(self, make_bundle: BundleMaker) -> None:
        onnx = pytest.importorskip("onnx")
        bundle = make_bundle("b", features=CHEAP).path
        model = onnx.load_from_string((bundle / "model.onnx").read_bytes())
        model.graph.input[2].type.tensor_type.elem_type = onnx.TensorProto.INT64
        # Cast inside, so that the graph itself is sound.
        cast = onnx.helper.make_node("Cast", ["features"], ["whole"], to=onnx.TensorProto.FLOAT)
        nodes = [cast, *model.graph.node]
        for node in nodes[1:]:
            for i, used in enumerate(node.input):
                if used == "features":
                    node.input[i] = "whole"
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        replace_file(bundle, "model.onnx", model.SerializeToString())
        message = r"'features' is tensor\(int64\); expected tensor\(float\)"
        with pytest.raises(BundleFormatError, match=message):
            Scorer.load(bundle)

    @pytest.mark.parametrize(("width", "found"), [(6, 7), (8, 7)])
    def test_a_representation_of_another_width(
        self, make_bundle: BundleMaker, width: int, found: int
    ) -> None:
        bundle = set_field(make_bundle("b", features=CHEAP).path, width=width)
        message = f"'representation' has width {found}, the manifest says {width}"
        with pytest.raises(BundleFormatError, match=message):
            Scorer.load(bundle)

    def test_no_representation(self, tiny_bundle: Path) -> None:
        set_field(tiny_bundle, width=4)
        with pytest.raises(BundleFormatError, match="'representation' has width None"):
            Scorer.load(tiny_bundle)

    @pytest.mark.parametrize(
        ("name", "kind", "message"),
        [
            ("ids", "INT64", "has inputs"),
            ("input_ids", "INT32", r"'input_ids' is tensor\(int32\)"),
        ],
    )
    def test_graph_of_other_inputs(
        self, tiny_bundle: Path, name: str, kind: str, message: str
    ) -> None:
        onnx = pytest.importorskip("onnx")
        model = onnx.load_from_string((tiny_bundle / "model.onnx").read_bytes())
        model.graph.input[0].name = name
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DataType.Value(kind)
        for node in model.graph.node:
            for i, used in enumerate(node.input):
                if used == "input_ids":
                    node.input[i] = name
        replace_file(tiny_bundle, "model.onnx", model.SerializeToString())
        with pytest.raises(BundleFormatError, match=message):
            Scorer.load(tiny_bundle)

    @pytest.mark.parametrize(
        "calibration",
        [
            {},
            {"method": "magic"},
            {"method": "platt", "a": 1.0},
            {"method": "platt", "a": -1.0, "b": 0.0},
            {"method": "isotonic", "x": [0.0, 1.0], "y": [0.5]},
            {"method": "isotonic", "x": [0.0, 1.0], "y": [0.5, 0.4]},
        ],
    )
    def test_calibration_that_cannot_be_used(
        self, make_bundle: BundleMaker, calibration: dict[str, Any]
    ) -> None:
        with pytest.raises(BundleFormatError, match="calibration"):
            Scorer.load(make_bundle("b", calibration=calibration))

    def test_nan_in_calibration(self, tiny_bundle: Path) -> None:
        set_field(tiny_bundle, calibration={"method": "platt", "a": float("nan"), "b": 0.0})
        assert "NaN" in (tiny_bundle / "manifest.json").read_text()
        with pytest.raises(BundleFormatError, match="not finite"):
            Scorer.load(tiny_bundle)

    def test_moved_graph_keeps_no_way_out(self, tiny_bundle: Path, tmp_path: Path) -> None:
        """A graph whose weights lie in a file outside the bundle is refused."""
        onnx = pytest.importorskip("onnx")
        (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
        model = onnx.load_from_string((tiny_bundle / "model.onnx").read_bytes())
        table = model.graph.initializer[0]
        table.ClearField("raw_data")
        table.data_location = onnx.TensorProto.EXTERNAL
        entry = table.external_data.add()
        entry.key, entry.value = "location", "../secret.bin"
        replace_file(tiny_bundle, "model.onnx", model.SerializeToString())
        with pytest.raises(BundleFormatError, match="keeps weights in another file"):
            Scorer.load(tiny_bundle)

    def test_bundle_object_is_taken_as_verified(self, tiny_bundle: Path) -> None:
        bundle = Bundle.open(tiny_bundle)
        assert Scorer.load(bundle).bundle is bundle

    def test_constant_graph_gives_ties(self, make_bundle: BundleMaker, tmp_path: Path) -> None:
        """Models that the graph cannot tell apart all score the calibration's middle."""
        made = make_bundle("b")
        fields = json.loads((made.path / "manifest.json").read_text())
        for name in ("files", "format", "written_by"):
            fields.pop(name)
        fields |= {"strong": "weak-1", "weak": "other-1"}
        files = {n: made.path / n for n in ("model.onnx", "tokenizer.json", "card.md")}
        tied = Scorer.load(write_bundle(tmp_path / "tied", files=files, **fields))
        assert set(tied.scores(PROMPTS)) == {0.5}
