"""The bundle on disk: what is written, what is refused, and that old formats still load."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.errors import BundleError, BundleFormatError, BundleIntegrityError
from thriftroute.router.bundle import (
    FORMAT,
    MANIFEST_MAX_BYTES,
    Bundle,
    FileEntry,
    file_sha256,
    read_manifest,
    update_manifest,
    write_bundle,
)
from thriftroute.router.scorer import Scorer
from thriftroute.router.threshold import ThresholdTable

BUNDLE_V1 = Path(__file__).parent / "data" / "bundle_v1"
BUNDLE_V2 = Path(__file__).parent / "data" / "bundle_v2"
BUNDLE_V3 = Path(__file__).parent / "data" / "bundle_v3"

FIELDS: dict[str, Any] = {
    "kind": "mf",
    "encoder": "none",
    "dim": 2,
    "models": ["s", "w"],
    "strong": "s",
    "weak": "w",
    "max_tokens": 32,
    "prefix_ids": [2],
    "suffix_ids": [3],
    "calibration": {"method": "platt", "a": 1.0, "b": 0.0},
}
FILES = {"model.onnx": b"graph", "tokenizer.json": b"{}", "card.md": b"# card\n"}


def write(path: Path, overwrite: bool = False, **changes: Any) -> Bundle:
    """A bundle whose files are no real graph: nothing here loads them."""
    return write_bundle(path, files=FILES, overwrite=overwrite, **{**FIELDS, **changes})


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Apply `change` to the manifest's JSON."""
    path = folder / "manifest.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "b").path


class TestFormat1:
    """The committed bundle of format 1. These numbers never change; a new format adds a folder."""

    def test_manifest(self) -> None:
        manifest = Bundle.open(BUNDLE_V1).manifest
        assert manifest.kind == "mf"
        assert manifest.models == ("strong-1", "weak-1", "other-1")
        assert (manifest.strong, manifest.weak) == ("strong-1", "weak-1")
        assert (manifest.dim, manifest.max_tokens) == (4, 32)
        assert (manifest.prefix_ids, manifest.suffix_ids) == ((2,), (3,))
        assert manifest.training == {"seed": 0, "note": "made by hand"}
        assert manifest.written_by == "thriftroute 0.1.0"
        table = ThresholdTable.from_dict(manifest.thresholds["tiny"])
        assert table.threshold_for(0.5) == (0.6, 0.5)

    def test_it_is_read_as_what_it_meant(self) -> None:
        raw = json.loads((BUNDLE_V1 / "manifest.json").read_text(encoding="utf-8"))
        assert raw["format"] == 1
        assert not {"features", "width"} & set(raw)
        manifest = Bundle.open(BUNDLE_V1).manifest
        assert (manifest.features, manifest.width, manifest.format) == ((), 0, FORMAT)

    def test_its_identity_is_the_one_that_caches_know(self) -> None:
        bundle = Bundle.open(BUNDLE_V1)
        graph, tokenizer = (file_sha256(BUNDLE_V1 / n) for n in ("model.onnx", "tokenizer.json"))
        known = hashlib.sha256(f"{graph}|{tokenizer}|32".encode()).hexdigest()
        assert bundle.model_sha256 == known

    def test_copied_and_changed_it_is_written_in_the_new_format(self, tmp_path: Path) -> None:
        shutil.copytree(BUNDLE_V1, tmp_path / "b")
        update_manifest(Bundle.open(tmp_path / "b"), training={"seed": 7})
        raw = json.loads((tmp_path / "b" / "manifest.json").read_text(encoding="utf-8"))
        assert (raw["format"], raw["features"], raw["width"]) == (FORMAT, [], 0)
        old, new = (
            Scorer.load(path).score("what is 2 + 2") for path in (BUNDLE_V1, tmp_path / "b")
        )
        assert old == new

    @pytest.mark.parametrize(
        ("prompt", "score"),
        [
            ("hello easy", 0.09999659268),
            ("what is 2 + 2", 0.39648757074),
            ("prove the hard theorem", 0.67482597033),
            ("unknown words here", 0.39304633905),
            ("", 0.38864212781),
        ],
    )
    def test_golden_scores(self, prompt: str, score: float) -> None:
        assert Scorer.load(BUNDLE_V1).score(prompt) == pytest.approx(score, abs=1e-6)

    def test_golden_score_of_a_conversation(self) -> None:
        messages = [
            {"role": "user", "content": "prove the hard theorem"},
            {"role": "assistant", "content": "easy"},
            {"role": "user", "content": "hello"},
        ]
        assert Scorer.load(BUNDLE_V1).score(messages) == pytest.approx(0.43291636705, abs=1e-6)

    def test_golden_embedding(self) -> None:
        got = Scorer.load(BUNDLE_V1).embeddings(["what is 2 + 2"])
        expected = [[-0.023416195, -0.0015126163, -0.01965441, -0.0079730991]]
        np.testing.assert_allclose(got, expected, atol=1e-6)


class TestFormat2:
    """The committed bundle of format 2: cheap features in an order of its own."""

    def test_manifest(self) -> None:
        manifest = Bundle.open(BUNDLE_V2).manifest
        assert manifest.features == ("digit_share", "tokens", "latex", "numbers")
        assert (manifest.dim, manifest.width, manifest.format) == (4, 8, FORMAT)
        assert manifest.written_by == "thriftroute 0.1.0"

    def test_it_is_read_as_what_it_meant(self) -> None:
        raw = json.loads((BUNDLE_V2 / "manifest.json").read_text(encoding="utf-8"))
        assert raw["format"] == 2
        assert "embedding.onnx" not in Bundle.open(BUNDLE_V2).manifest.files

    def test_its_identity_is_the_one_that_caches_know(self) -> None:
        graph, tokenizer = (file_sha256(BUNDLE_V2 / n) for n in ("model.onnx", "tokenizer.json"))
        known = f"{graph}|{tokenizer}|32|digit_share,tokens,latex,numbers"
        expected = hashlib.sha256(known.encode()).hexdigest()
        assert Bundle.open(BUNDLE_V2).model_sha256 == expected

    @pytest.mark.parametrize(
        ("prompt", "score"),
        [
            ("hello easy", 0.14747929099),
            ("what is 2 + 2", 0.58220025699),
            ("prove the hard theorem", 0.78188321327),
            ("$x^2$ is 10, $y$ is 12.5", 0.73407678563),
            ("", 0.41082030473),
            ("hard " * 100, 0.96876955225),
        ],
    )
    def test_golden_scores(self, prompt: str, score: float) -> None:
        assert Scorer.load(BUNDLE_V2).score(prompt) == pytest.approx(score, abs=1e-6)

    def test_golden_score_of_a_conversation(self) -> None:
        """The features are those of the last turn, the tokens those of all turns."""
        messages = [
            {"role": "user", "content": "prove the hard theorem"},
            {"role": "assistant", "content": "easy 1 2 3"},
            {"role": "user", "content": "hello 2"},
        ]
        assert Scorer.load(BUNDLE_V2).score(messages) == pytest.approx(0.55422247044, abs=1e-6)

    def test_golden_representation(self) -> None:
        got = Scorer.load(BUNDLE_V2).representations(["what is 2 + 2"])
        embedding = [-0.023416195, -0.0015126163, -0.01965441, -0.0079730991]
        cheap = [2 / 13, np.log1p(5), 0.0, np.log1p(2)]
        np.testing.assert_allclose(got, [[*embedding, *cheap]], atol=1e-6)

    def test_golden_embedding(self) -> None:
        """It is model.onnx that gives it."""
        got = Scorer.load(BUNDLE_V2).embeddings(["what is 2 + 2"])
        expected = [[-0.023416195, -0.0015126163, -0.01965441, -0.0079730991]]
        np.testing.assert_allclose(got, expected, atol=1e-6)


class TestFormat3:
    """The committed bundle of format 3: the graph of format 2's in two."""

    def test_manifest(self) -> None:
        raw = json.loads((BUNDLE_V3 / "manifest.json").read_text(encoding="utf-8"))
        assert raw["format"] == 3
        assert sorted(Bundle.open(BUNDLE_V3).manifest.files) == [
            "card.md", "embedding.onnx", "model.onnx", "tokenizer.json",
        ]  # fmt: skip

    def test_it_says_what_format_2_says(self) -> None:
        two, three = Scorer.load(BUNDLE_V2), Scorer.load(BUNDLE_V3)
        for prompt in ("hello easy", "prove the hard theorem", "$x^2$ is 10, $y$ is 12.5", ""):
            assert three.score(prompt) == pytest.approx(two.score(prompt), abs=1e-6)
            for name in ("representations", "embeddings"):
                got, expected = (getattr(one, name)([prompt]) for one in (three, two))
                np.testing.assert_allclose(got, expected, atol=1e-6)


class TestWrite:
    def test_round_trip(self, tmp_path: Path) -> None:
        thresholds = {"x": {"name": "x", "n": 1, "rows": [[0.0, 1.0]]}}
        written = write(tmp_path / "b", thresholds=thresholds, training={"seed": 3})
        opened = Bundle.open(str(tmp_path / "b"))
        assert opened == written
        assert opened.manifest.thresholds == thresholds
        assert opened.manifest.training == {"seed": 3}
        assert opened.manifest.format == FORMAT
        assert opened.manifest.written_by.startswith("thriftroute ")
        assert opened.manifest.files["card.md"] == FileEntry(
            7, file_sha256(tmp_path / "b" / "card.md")
        )
        assert str(opened) == str(tmp_path / "b")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]

    def test_files_are_copied_from_paths(self, tmp_path: Path) -> None:
        source = tmp_path / "elsewhere.bin"
        source.write_bytes(b"a graph")
        bundle = write_bundle(tmp_path / "b", files={**FILES, "model.onnx": source}, **FIELDS)
        assert bundle.file("model.onnx").read_bytes() == b"a graph"

    def test_parents_are_made(self, tmp_path: Path) -> None:
        assert write(tmp_path / "x" / "y" / "b").manifest.dim == 2

    def test_encoder_needs_no_card_and_no_models(self, tmp_path: Path) -> None:
        bundle = write_bundle(
            tmp_path / "b",
            files={k: v for k, v in FILES.items() if k != "card.md"},
            **{**FIELDS, "kind": "encoder", "models": [], "strong": "", "weak": ""},
        )
        assert bundle.manifest.models == ()

    def test_existing_bundle_is_kept_unless_overwrite(self, folder: Path) -> None:
        with pytest.raises(BundleError, match="exists already; nothing was written"):
            write(folder, dim=9)
        assert Bundle.open(folder).manifest.dim == 2
        write(folder, overwrite=True, dim=9)
        assert Bundle.open(folder).manifest.dim == 9
        assert [p.name for p in folder.parent.iterdir()] == ["b"]

    def test_old_files_do_not_survive_an_overwrite(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("x")
        write(folder, overwrite=True)
        assert not (folder / "notes.txt").exists()

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_folder_that_is_no_bundle_is_never_touched(
        self, tmp_path: Path, overwrite: bool
    ) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.txt").write_text("years of work")
        with pytest.raises(BundleError, match="nothing was written"):
            write(tmp_path / "home", overwrite=overwrite)
        assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"

    def test_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "b").write_text("x")
        with pytest.raises(BundleError, match="is not a bundle; nothing was written"):
            write(tmp_path / "b", overwrite=True)

    def test_empty_folder_is_filled_with_overwrite(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        assert write(tmp_path / "b", overwrite=True).manifest.dim == 2

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_failed_write_leaves_nothing_new(self, tmp_path: Path, overwrite: bool) -> None:
        if overwrite:
            write(tmp_path / "b", dim=7)
        with pytest.raises(FileNotFoundError):
            write_bundle(
                tmp_path / "b",
                files={**FILES, "model.onnx": tmp_path / "no-such-file"},
                overwrite=True,
                **FIELDS,
            )
        left = [p.name for p in tmp_path.iterdir()]
        assert left == (["b"] if overwrite else [])
        if overwrite:
            assert Bundle.open(tmp_path / "b").manifest.dim == 7

    def test_bad_fields_leave_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(BundleFormatError, match="'strong' and 'weak'"):
            write(tmp_path / "b", strong="x")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "manifest.json", "a\\b", "C:x"])
    def test_file_name_that_leads_out_of_the_folder(self, tmp_path: Path, name: str) -> None:
        target = tmp_path / "deep" / "b"
        with pytest.raises(BundleFormatError, match="bad file name"):
            write_bundle(target, files={**FILES, name: b"x"}, **FIELDS)
        assert list(tmp_path.rglob("*")) == [tmp_path / "deep"]

    def test_interrupt_between_the_two_renames_brings_the_old_bundle_back(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename = Path.rename

        def fail_on_the_new_one(self: Path, target: Path) -> Path:
            if target == folder and not self.name.endswith(".old"):
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
        with pytest.raises(KeyboardInterrupt):
            write(folder, overwrite=True, dim=9)
        assert Bundle.open(folder).manifest.dim == 2
        assert [p.name for p in folder.parent.iterdir()] == ["b"]

    def test_writer_that_dies_half_way_leaves_no_bundle(self, tmp_path: Path) -> None:
        script = """
import os, sys
from thriftroute.router.bundle import write_bundle

class Files(dict):
    def items(self):
        yield "model.onnx", b"graph"
        os._exit(9)

write_bundle(sys.argv[1], files=Files())
"""
        child = [sys.executable, "-c", script, str(tmp_path / "b")]
        assert subprocess.run(child, check=False).returncode == 9
        assert not (tmp_path / "b").exists()
        assert write(tmp_path / "b").manifest.dim == 2


class TestFiles:
    @pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "card.md"])
    def test_missing(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(BundleIntegrityError, match=f"{name} is missing"):
            Bundle.open(folder)

    @pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "card.md"])
    def test_flipped_byte(self, folder: Path, name: str) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(BundleIntegrityError, match=f"{name} is not the file") as caught:
            Bundle.open(folder)
        assert caught.value.path == folder

    def test_truncated_graph(self, tiny_bundle: Path) -> None:
        data = (tiny_bundle / "model.onnx").read_bytes()
        (tiny_bundle / "model.onnx").write_bytes(data[: len(data) // 2])
        with pytest.raises(
            BundleIntegrityError, match=rf"{len(data) // 2} bytes, the manifest says {len(data)}"
        ):
            Scorer.load(tiny_bundle)

    def test_folder_in_place_of_a_file(self, folder: Path) -> None:
        (folder / "model.onnx").unlink()
        (folder / "model.onnx").mkdir()
        with pytest.raises(BundleIntegrityError, match="missing"):
            Bundle.open(folder)

    @pytest.mark.parametrize("name", ["model.onnx", "card.md", "manifest.json"])
    def test_link_out_of_the_folder(self, folder: Path, name: str) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to("../elsewhere")
        with pytest.raises(BundleIntegrityError, match=f"{name} is a link out of it"):
            Bundle.open(folder)

    def test_links_that_stay_inside(self, folder: Path) -> None:
        """As a volume of Kubernetes has them; and a bundle may itself be reached by a link."""
        (folder / "..data").mkdir()
        for name in ("model.onnx", "tokenizer.json", "card.md", "manifest.json"):
            (folder / name).rename(folder / "..data" / name)
            (folder / name).symlink_to(f"..data/{name}")
        (folder.parent / "link").symlink_to(folder)
        assert Bundle.open(folder.parent / "link").manifest == Bundle.open(folder).manifest

    @pytest.mark.parametrize("target", ["nowhere", "card.md", "/dev/zero"])
    def test_link_to_no_file(self, folder: Path, target: str) -> None:
        (folder / "card.md").unlink()
        (folder / "card.md").symlink_to(target)
        with pytest.raises(BundleIntegrityError, match=r"card\.md is missing"):
            Bundle.open(folder)

    def test_pipe_in_place_of_a_file(self, folder: Path) -> None:
        (folder / "card.md").unlink()
        os.mkfifo(folder / "card.md")
        with pytest.raises(BundleIntegrityError, match=r"card\.md is missing"):
            Bundle.open(folder)

    def test_further_files_are_ignored(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("x")
        assert "notes.txt" not in Bundle.open(folder).manifest.files

    def test_listed_extra_file_is_checked(self, tmp_path: Path) -> None:
        bundle = write_bundle(tmp_path / "b", files={**FILES, "extra.bin": b"1"}, **FIELDS)
        bundle.file("extra.bin").write_bytes(b"2")
        with pytest.raises(BundleIntegrityError, match=r"extra\.bin"):
            Bundle.open(tmp_path / "b")


class TestNotABundle:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(BundleFormatError, match="no such folder"):
            Bundle.open(tmp_path / "none")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("x")
        with pytest.raises(BundleFormatError, match="no such folder"):
            Bundle.open(tmp_path / "f")

    def test_without_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(BundleFormatError, match="not a bundle"):
            Bundle.open(tmp_path)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"format": ' + b"9" * 5000 + b"}",
        ],
        ids=["empty", "cut", "not UTF-8", "deep", "huge number"],
    )
    def test_unreadable_manifest(self, folder: Path, text: bytes) -> None:
        (folder / "manifest.json").write_bytes(text)
        with pytest.raises(BundleFormatError, match="not readable JSON"):
            Bundle.open(folder)

    @pytest.mark.parametrize("text", ["[]", "3", '"x"', "null"])
    def test_manifest_that_is_no_object(self, folder: Path, text: str) -> None:
        (folder / "manifest.json").write_text(text)
        with pytest.raises(BundleFormatError, match="expected an object"):
            Bundle.open(folder)

    def test_huge_manifest_is_not_read(self, folder: Path) -> None:
        with (folder / "manifest.json").open("ab") as stream:
            stream.truncate(MANIFEST_MAX_BYTES + 1)
        with pytest.raises(BundleFormatError, match="larger than"):
            read_manifest(folder)


class TestManifest:
    def test_future_format_says_upgrade(self, folder: Path) -> None:
        # Whatever else a future format changes must not hide this message.
        edit(folder, lambda raw: raw.update(format=FORMAT + 1, new_field=1, models={"m": 1}))
        with pytest.raises(BundleFormatError, match=f"format {FORMAT + 1}.*upgrade thriftroute"):
            Bundle.open(folder)

    @pytest.mark.parametrize("value", [None, "1", 1.0, True, 0, -1, [1]])
    def test_format_that_is_no_number(self, folder: Path, value: object) -> None:
        edit(folder, lambda raw: raw.update(format=value))
        with pytest.raises(BundleFormatError, match="'format' must be a whole number"):
            Bundle.open(folder)

    def test_name_that_stands_twice(self, folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text('{"weak": "s", ' + path.read_text().lstrip()[1:])
        with pytest.raises(BundleFormatError, match="a name stands twice"):
            Bundle.open(folder)

    @pytest.mark.parametrize(("name", "size"), [("model.onnx", 2**31 + 1), ("card.md", 200 << 20)])
    def test_file_that_is_too_large(self, folder: Path, name: str, size: int) -> None:
        """Told before any of it is read."""
        entry = {"bytes": size, "sha256": "0" * 64}
        edit(folder, lambda raw: raw["files"].update({name: entry}))
        with pytest.raises(BundleFormatError, match="is too large"):
            Bundle.open(folder)

    def test_missing_format(self, folder: Path) -> None:
        edit(folder, lambda raw: raw.pop("format"))
        with pytest.raises(BundleFormatError, match="'format'"):
            Bundle.open(folder)

    @pytest.mark.parametrize("name", [*FIELDS, "files"])
    def test_missing_field(self, folder: Path, name: str) -> None:
        edit(folder, lambda raw: raw.pop(name))
        with pytest.raises(BundleFormatError, match=f"field '{name}' is missing"):
            Bundle.open(folder)

    @pytest.mark.parametrize("name", ["thresholds", "training", "written_by", "features", "width"])
    def test_optional_field(self, folder: Path, name: str) -> None:
        edit(folder, lambda raw: raw.pop(name))
        assert not getattr(Bundle.open(folder).manifest, name)

    def test_unknown_field(self, folder: Path) -> None:
        edit(folder, lambda raw: raw.update(colour="red"))
        with pytest.raises(BundleFormatError, match="unknown field 'colour'"):
            Bundle.open(folder)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("kind", 1, "'kind' must be str, is int"),
            ("kind", "pickle", "'pickle' is none of mf, bert, fast, encoder"),
            ("encoder", None, "'encoder' must be str"),
            ("dim", "2", "'dim' must be int, is str"),
            ("dim", True, "'dim' must be int, is bool"),
            ("dim", 2.0, "'dim' must be int, is float"),
            ("models", "sw", "'models' must be list"),
            ("models", ["s", 1], "'models' must be a list of str"),
            ("models", ["s", "w", "s"], "names a model twice"),
            ("models", ["s"], "two different names of 'models'"),
            ("strong", "w", "two different names of 'models'"),
            ("weak", None, "'weak' must be str"),
            ("max_tokens", 11, "leaves no room"),
            ("max_tokens", "256", "'max_tokens' must be int"),
            ("prefix_ids", [1.5], "'prefix_ids' must be a list of int"),
            ("prefix_ids", [True], "'prefix_ids' must be a list of int"),
            ("suffix_ids", 3, "'suffix_ids' must be list"),
            ("suffix_ids", [3] * 9, "leaves no room"),
            ("max_tokens", 8193, "'max_tokens' 8193 .* is above 8192"),
            ("prefix_ids", [-1], "must be token ids"),
            ("suffix_ids", [10**30], "must be token ids"),
            ("calibration", [], "'calibration' must be dict"),
            ("calibration", {"a": float("nan")}, "'calibration' holds a number that is not finite"),
            ("calibration", {"x": [{"y": float("inf")}]}, "'calibration' holds a number"),
            ("calibration", {"a": 10**400}, "'calibration' holds a number that is not finite"),
            ("thresholds", {"x": [[10**400]]}, "'thresholds' holds a number that is not finite"),
            ("thresholds", {"x": [float("nan")]}, "'thresholds' holds a number that is not finite"),
            ("thresholds", None, "'thresholds' must be dict"),
            ("training", [], "'training' must be dict"),
            ("training", {"auc": float("nan")}, "'training' holds a number that is not finite"),
            ("written_by", 1, "'written_by' must be str"),
            ("features", "tokens", "'features' must be list"),
            ("features", ["tokens", 1], "'features' must be a list of str"),
            ("features", ["tokens", "latex", "tokens"], "'features' names a feature twice"),
            (
                "features",
                ["tokens", "mood"],
                "feature 'mood' is not known to this version; upgrade",
            ),
            ("width", -1, "'width' must be 0 or more"),
            ("width", 8.0, "'width' must be int, is float"),
            ("width", True, "'width' must be int, is bool"),
            ("width", None, "'width' must be int"),
            ("files", [], "'files' must be dict"),
            ("files", {}, r"'files' does not list model\.onnx"),
        ],
    )
    def test_ill_typed_field(self, folder: Path, name: str, value: object, message: str) -> None:
        edit(folder, lambda raw: raw.update({name: value}))
        with pytest.raises(BundleFormatError, match=message):
            Bundle.open(folder)

    @pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "card.md"])
    def test_unlisted_file(self, folder: Path, name: str) -> None:
        edit(folder, lambda raw: raw["files"].pop(name))
        with pytest.raises(BundleFormatError, match=f"does not list {name}"):
            Bundle.open(folder)

    @pytest.mark.parametrize(
        "name", ["../b2", "/etc/passwd", "sub/x", "..\\x", ".", "..", "", "manifest.json", "a\0b"]
    )
    def test_path_traversal(self, folder: Path, name: str) -> None:
        entry = {"bytes": 1, "sha256": "0" * 64}
        edit(folder, lambda raw: raw["files"].update({name: entry}))
        with pytest.raises(BundleFormatError, match="bad file name"):
            Bundle.open(folder)

    @pytest.mark.parametrize(
        "entry",
        [
            None,
            [],
            {},
            {"bytes": 5},
            {"bytes": "5", "sha256": "0" * 64},
            {"bytes": 5, "sha256": "0" * 63},
            {"bytes": 5, "sha256": "0" * 64, "url": "x"},
        ],
    )
    def test_bad_file_entry(self, folder: Path, entry: object) -> None:
        edit(folder, lambda raw: raw["files"].update({"model.onnx": entry}))
        with pytest.raises(BundleFormatError, match="must hold 'bytes' and 'sha256'"):
            Bundle.open(folder)


class TestIdentity:
    def test_name_and_card_do_not_count(self, tmp_path: Path) -> None:
        one = write(tmp_path / "one")
        two = write_bundle(tmp_path / "two", files={**FILES, "card.md": b"other"}, **FIELDS)
        assert one.model_sha256 == two.model_sha256

    @pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
    def test_graph_and_tokenizer_count(self, tmp_path: Path, name: str) -> None:
        one = write(tmp_path / "b")
        two = write_bundle(
            tmp_path / "b", files={**FILES, name: b"other"}, overwrite=True, **FIELDS
        )
        assert one.model_sha256 != two.model_sha256

    def test_truncation_counts(self, tmp_path: Path) -> None:
        one = write(tmp_path / "one")
        assert one.model_sha256 != write(tmp_path / "two", max_tokens=33).model_sha256

    def test_features_and_their_order_count(self, tmp_path: Path) -> None:
        features = ([], ["tokens"], ["tokens", "latex"], ["latex", "tokens"])
        made = [write(tmp_path / str(i), features=names) for i, names in enumerate(features)]
        assert len({bundle.model_sha256 for bundle in made}) == 4


class TestUpdate:
    def test_replaces_one_field_and_keeps_the_rest(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        table = asdict(ThresholdTable.from_scores("mine", [0.1, 0.5, 0.9]))
        changed = update_manifest(bundle, thresholds={"mine": table})
        assert changed == Bundle.open(folder)
        assert changed.manifest.thresholds == {"mine": json.loads(json.dumps(table))}
        assert changed.manifest.files == bundle.manifest.files
        assert changed.model_sha256 == bundle.model_sha256
        assert sorted(p.name for p in folder.iterdir()) == [
            "card.md",
            "manifest.json",
            "model.onnx",
            "tokenizer.json",
        ]

    @pytest.mark.parametrize(
        "changes",
        [
            {"calibration": {"method": "platt", "a": float("nan"), "b": 0.0}},
            {"thresholds": {"x": float("inf")}},
            {"strong": "nobody"},
            {"max_tokens": 1},
            {"features": ("mood",)},
            {"width": -3},
        ],
    )
    def test_bad_change_leaves_the_manifest_as_it_was(
        self, folder: Path, changes: dict[str, Any]
    ) -> None:
        before = (folder / "manifest.json").read_bytes()
        with pytest.raises(BundleFormatError):
            update_manifest(Bundle.open(folder), **changes)
        assert (folder / "manifest.json").read_bytes() == before
        assert len(list(folder.iterdir())) == 4

    def test_failed_write_leaves_the_manifest_as_it_was(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = Bundle.open(folder)

        def disk_full(self: Path, target: Path) -> Path:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "replace", disk_full)
        with pytest.raises(OSError, match="No space left"):
            update_manifest(bundle, training={"seed": 1})
        assert Bundle.open(folder) == bundle
        assert len(list(folder.iterdir())) == 4

    def test_unknown_field(self, folder: Path) -> None:
        with pytest.raises(TypeError, match="colour"):
            update_manifest(Bundle.open(folder), colour="red")

    def test_moved_bundle_still_opens(self, folder: Path, tmp_path: Path) -> None:
        shutil.move(folder, tmp_path / "elsewhere")
        assert Bundle.open(tmp_path / "elsewhere").manifest.dim == 2
