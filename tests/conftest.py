"""Fixtures: tiny real tokenizers and ONNX graphs, small enough to build in each test run."""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from thriftroute.router.bundle import Bundle, write_bundle

# How long an example takes is the machine's doing.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# A first call of LiteLLM without a loop makes one that nobody closes: the next `asyncio.run` would
# drop it, and the test that happens to run then fail for it.
asyncio.set_event_loop(None)

# Files that take long, the longest first. Workers take whole files in this order.
LONG = [
    "test_own_logs_guide.py",
    "test_serve_fleet.py",
    "test_encoder.py",
    "test_train.py",
    "test_logs_resume.py",
    "test_cli.py",
    "test_label_resume.py",
    "test_serve_answers.py",
    "test_cli_audit.py",
    "test_network.py",
    "test_built_in.py",
    "test_providers_error_meaning.py",
    "test_upstream_answer.py",
    "test_serve_chat.py",
    "test_examples.py",
    "test_demo.py",
    "test_audit.py",
    "test_audit_page.py",
    "test_terminal.py",
    "test_second_look.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first: the sort keeps the order of all others."""
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


WORDS = [
    "what",
    "is",
    "the",
    "a",
    "prove",
    "theorem",
    "hard",
    "easy",
    "integral",
    "hello",
    "2",
    "+",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tiny_tokenizer_json() -> bytes:
    """A real WordPiece tokenizer with 16 entries and BERT's template."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str().encode()


def tiny_graph(n_models: int, dim: int = 4, features: int = 0) -> bytes:
    """ids -> mean of a fixed embedding table -> qualities. 'prove', 'theorem', 'hard' and
    'integral' raise the first model's quality, 'easy' and 'hello' lower it.

    features: where there are any, the representation is the embedding and they, and the first
    model's quality grows with each by a tenth of its place."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(0).normal(0, 0.05, (len(SPECIAL + WORDS), dim))
    for word, value in {
        "prove": 3,
        "theorem": 3,
        "hard": 4,
        "integral": 3,
        "easy": -4,
        "hello": -4,
    }.items():
        table[len(SPECIAL) + WORDS.index(word), 0] = value
    weights = np.zeros((dim + features, max(n_models, 1)))
    weights[0, 0] = 1.0
    weights[dim:, 0] = 0.1 * np.arange(1, features + 1)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis2"], ["mask3"]),
        helper.make_node("Mul", ["tokens", "mask3"], ["states"]),
        helper.make_node("ReduceMean", ["states", "axis1"], ["embedding"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["b", dim])]
    source = "embedding"
    if features:
        source, width = "representation", dim + features
        inputs.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["b", features]))
        nodes.append(helper.make_node("Concat", ["embedding", "features"], [source], axis=1))
        outputs.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, ["b", width]))
    if n_models:
        nodes.append(helper.make_node("MatMul", [source, "weights"], ["quality"]))
        outputs.append(helper.make_tensor_value_info("quality", TensorProto.FLOAT, ["b", n_models]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        outputs,
        [
            numpy_helper.from_array(table.astype(np.float32), "table"),
            numpy_helper.from_array(weights.astype(np.float32), "weights"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "axis1"),
            numpy_helper.from_array(np.array([2], dtype=np.int64), "axis2"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tiny_halves(n_models: int, dim: int = 4, features: int = 0) -> tuple[bytes, bytes]:
    """`tiny_graph` in two, of which the second gives the embedding."""
    onnx = pytest.importorskip("onnx")
    from onnx.utils import Extractor

    graph = onnx.load_from_string(tiny_graph(n_models, dim, features))
    states = onnx.helper.make_tensor_value_info("states", onnx.TensorProto.FLOAT, ["b", "t", dim])
    graph.graph.value_info.append(states)
    inputs, outputs = (
        [value.name for value in values] for values in (graph.graph.input, graph.graph.output)
    )
    first = Extractor(graph).extract_model(inputs, ["states", *outputs[1:]])
    second = Extractor(graph).extract_model(["states", "attention_mask"], ["embedding"])
    return bytes(first.SerializeToString()), bytes(second.SerializeToString())


BundleMaker = Callable[..., Bundle]


@pytest.fixture
def make_bundle(tmp_path: Path) -> BundleMaker:
    """Write a tiny real bundle; keyword arguments replace fields of its manifest, and its graph
    takes as many features as the manifest names. files: content in the place of a file's. split:
    the embedding has a graph of its own."""

    def make(
        name: str = "tiny",
        files: Mapping[str, bytes] | None = None,
        split: bool = False,
        **fields: Any,
    ) -> Bundle:
        models = fields.get("models", ["strong-1", "weak-1", "other-1"])
        n_features = len(fields.get("features", []))
        if n_features:
            fields = {"width": 4 + n_features, **fields}
        defaults = {
            "kind": "mf",
            "encoder": "tiny",
            "dim": 4,
            "models": models,
            "strong": "strong-1",
            "weak": "weak-1",
            "max_tokens": 32,
            "prefix_ids": [2],
            "suffix_ids": [3],
            "calibration": {"method": "platt", "a": 1.0, "b": 0.0},
        }
        graphs = {"model.onnx": tiny_graph(len(models), features=n_features)}
        if split:
            halves = tiny_halves(len(models), features=n_features)
            graphs = dict(zip(("model.onnx", "embedding.onnx"), halves, strict=True))
        files = {
            **graphs,
            "tokenizer.json": tiny_tokenizer_json(),
            "card.md": b"# tiny\n",
            **(files or {}),
        }
        return write_bundle(tmp_path / name, files=files, **{**defaults, **fields})

    return make


@pytest.fixture
def tiny_bundle(make_bundle: BundleMaker) -> Path:
    """Folder of a tiny mf bundle: 'hard' words score high, 'easy' and 'hello' low."""
    return make_bundle().path


@pytest.fixture
def data_dir() -> Path:
    """The folder of real results; skips, saying so, where THRIFTROUTE_DATA is unset."""
    folder = os.environ.get("THRIFTROUTE_DATA")
    if not folder:
        pytest.skip("THRIFTROUTE_DATA is unset: no real results to test on")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache a session, so that exports of an encoder are shared; never the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THRIFTROUTE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test speaks TLS to anybody; else each client of httpx reads all certificates, in 30 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


@pytest.fixture(scope="session")
def encoder_maker(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folder of a real sentence-transformers encoder of so many layers: random weights, 32-d,
    letters as tokens; loads, trains and exports in seconds."""
    for module in ("torch", "transformers", "sentence_transformers", "onnx"):
        pytest.importorskip(module)
    import json
    import string

    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    made: dict[int, Path] = {}

    def make(layers: int) -> Path:
        if layers in made:
            return made[layers]
        folder = tmp_path_factory.mktemp("encoder")
        (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
            architectures=["BertModel"],
        )
        weights = dict(BertModel(config).state_dict())
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        config.save_pretrained(folder)
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "pool", "type": "sentence_transformers.models.Pooling"},
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "pool").mkdir()
        pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
        (folder / "pool" / "config.json").write_text(json.dumps(pooling))
        made[layers] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_encoder(encoder_maker: Callable[[int], Path]) -> Path:
    """The encoder of `encoder_maker` with one layer."""
    return encoder_maker(1)


@pytest.fixture(scope="session")
def tiny_base(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an mf bundle to start from, on the tiny encoder: prompts with a larger share of
    digits are harder for 'base-weak'."""
    from thriftroute.router.features import FEATURES
    from thriftroute.training.encoder import encoder_bundle
    from thriftroute.training.export import graft_head
    from thriftroute.training.models.head import Head

    bundle, _ = encoder_bundle(str(tiny_encoder), max_tokens=48)
    manifest = bundle.manifest
    models = ["base-strong", "base-weak"]
    w1 = np.zeros((1, manifest.width), np.float32)
    w1[0, manifest.width - len(FEATURES) + FEATURES.index("digit_share")] = 2.0
    b1, u = np.array([-0.5], np.float32), np.array([[0.5], [-0.5]], np.float32)
    head = Head(models, w1, b1, u, np.zeros(1, np.bool_))
    files = {
        "model.onnx": graft_head(bundle.file("model.onnx").read_bytes(), head),
        "tokenizer.json": bundle.file("tokenizer.json"),
        "card.md": b"# base\n",
    }
    made = write_bundle(
        tmp_path_factory.mktemp("base") / "base",
        files=files,
        kind="mf",
        encoder="tiny",
        dim=manifest.dim,
        models=models,
        strong=models[0],
        weak=models[1],
        max_tokens=manifest.max_tokens,
        prefix_ids=list(manifest.prefix_ids),
        suffix_ids=list(manifest.suffix_ids),
        features=list(manifest.features),
        width=manifest.width,
        calibration={"method": "platt", "a": 1.0, "b": 0.0},
    )
    return made.path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads of tiny products only wait for each other, the more so on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["auto", "litellm"])
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """How the models of `helpers.callers` are called: without LiteLLM where it can be, or by it."""
    from thriftroute.tests.helpers.callers import TRANSPORT

    token = TRANSPORT.set(request.param)
    yield request.param
    TRANSPORT.reset(token)
