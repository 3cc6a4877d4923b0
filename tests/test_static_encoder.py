"""The encoder of `fast`: a mean of token vectors, by hand, and how the vectors are found."""

from pathlib import Path

import numpy as np
import pytest
from thriftroute.router.features import FEATURES
from thriftroute.router.scorer import Scorer

pytest.importorskip("scipy")
torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("sentence_transformers")

from thriftroute.research.static_encoder import (  # noqa: E402
    StaticSettings,
    bags_of,
    mapped,
    residual,
    static_bundle,
    static_graph,
)
from thriftroute.training.encoder import encoder_bundle, load_encoder  # noqa: E402
from thriftroute.training.progress import Progress  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = StaticSettings(dim=8, max_tokens=32, steps=60)


def test_a_graph_by_hand(tmp_path: Path) -> None:
    """Of four tokens: a mean over those that the mask keeps, of int8 vectors with a scale for each
    column."""
    import onnxruntime as ort

    table = np.array([[0, 0, 0], [1.27, -4, 0.5], [0.63, 2, 0.5], [-0.2, 0.03, 0.25]], np.float32)
    graph = static_graph(table)
    whole = onnx.load_from_string(graph)
    onnx.checker.check_model(whole)
    kept = {item.name: onnx.numpy_helper.to_array(item) for item in whole.graph.initializer}
    assert kept["table"].dtype == np.int8
    np.testing.assert_allclose(kept["scale"], [0.01, 4 / 127, 0.5 / 127], rtol=1e-6)
    assert kept["table"].tolist() == [[0, 0, 0], [127, -127, 127], [63, 64, 127], [-20, 1, 64]]
    rounded = kept["table"] * kept["scale"]
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    cheap = np.arange(2 * len(FEATURES), dtype=np.float32).reshape(2, -1)
    # Of the second prompt the last two tokens are padding.
    ids, mask = np.array([[1, 2, 2, 3], [3, 2, 1, 1]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    feeds = {"input_ids": ids, "attention_mask": mask, "features": cheap}
    embedding, representation = session.run(["embedding", "representation"], feeds)
    means = np.stack([rounded[[1, 2, 2, 3]].mean(0), rounded[[3, 2]].mean(0)])
    np.testing.assert_allclose(representation[:, :3], means, atol=1e-6)
    np.testing.assert_array_equal(representation[:, 3:], cheap)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(embedding, means / lengths, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, atol=1e-6)
    # A text of nothing but tokens without a vector has no direction, and is no error.
    blank = {**feeds, "input_ids": np.zeros((2, 4), np.int64)}
    assert (session.run(["embedding"], blank)[0] == 0).all()


def test_what_tokens_add_is_the_ridge_on_bags() -> None:
    """Conjugate gradients against a direct solution, all columns at once."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 12, rng.integers(1, 9)).tolist() for _ in range(50)]
    bags = bags_of(ids, 12)
    dense = np.array([[row.count(token) / len(row) for token in range(12)] for row in ids])
    np.testing.assert_allclose(bags.toarray(), dense, rtol=1e-6)
    target = rng.normal(size=(50, 3)).astype(np.float32)
    for strength in (0.003, 1.0):
        found = residual(bags, target, StaticSettings(strength=strength, steps=60))
        expected = np.linalg.solve(dense.T @ dense + strength * np.eye(12), dense.T @ target)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert found.dtype == np.float32


def test_the_map_is_a_ridge_on_centred_means() -> None:
    rng = np.random.default_rng(1)
    bags = bags_of([rng.integers(0, 12, 5).tolist() for _ in range(80)], 12)
    alone = (3 + rng.normal(size=(12, 4))).astype(np.float32)
    truth = rng.normal(size=(4, 2)).astype(np.float32)
    means = bags @ alone
    target = (means - means.mean(0)) @ truth
    table = mapped(bags, alone, target, 1e-9)
    # What is linear is found, and the mean over a text of the tokens' vectors says it.
    np.testing.assert_allclose(bags @ table, target, atol=1e-3)
    # A stronger penalty says less.
    assert np.abs(mapped(bags, alone, target, 10.0)).max() < np.abs(table).max()


@pytest.fixture(scope="module")
def made(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghij0123456789 "), 24)) for _ in range(150)]
    teacher, _ = encoder_bundle(str(tiny_encoder), max_tokens=48)
    out = tmp_path_factory.mktemp("static") / "static"
    loaded = load_encoder(str(tiny_encoder))
    static_bundle(loaded, Scorer.load(teacher), texts, out, Progress(), SETTINGS)
    return out, texts


def test_the_bundle_is_an_encoder(made: tuple[Path, list[str]], tiny_encoder: Path) -> None:
    scorer = Scorer.load(made[0])
    manifest = scorer.bundle.manifest
    assert (manifest.kind, manifest.models) == ("encoder", ())
    assert (manifest.dim, manifest.width) == (8, 8 + len(FEATURES))
    assert (manifest.max_tokens, manifest.features) == (32, FEATURES)
    assert manifest.encoder == f"static vectors of {tiny_encoder}"
    nodes = {node.op_type for node in onnx.load(made[0] / "model.onnx").graph.node}
    assert not nodes & {"MatMul", "MatMulInteger", "Softmax"}
    lengths = np.linalg.norm(scorer.embeddings(made[1]), axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-5)


def test_it_says_what_the_teacher_says(made: tuple[Path, list[str]], tiny_encoder: Path) -> None:
    teacher, _ = encoder_bundle(str(tiny_encoder), max_tokens=48)
    x = Scorer.load(teacher).representations(made[1])[:, : -len(FEATURES)].astype(np.float64)
    centred = x - x.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:8]
    wanted, got = centred @ axes.T, Scorer.load(made[0]).representations(made[1])[:, :8]
    # Axes have no sign of their own.
    told = [abs(np.corrcoef(wanted[:, i], got[:, i])[0, 1]) for i in range(2)]
    assert min(told) > 0.8, told


def test_the_same_texts_give_the_same_vectors(
    made: tuple[Path, list[str]], tiny_encoder: Path, tmp_path: Path
) -> None:
    teacher, _ = encoder_bundle(str(tiny_encoder), max_tokens=48)
    loaded = load_encoder(str(tiny_encoder))
    scorer = Scorer.load(teacher)
    again = static_bundle(loaded, scorer, made[1], tmp_path / "again", Progress(), SETTINGS)
    assert again.model_sha256 == Scorer.load(made[0]).bundle.model_sha256
