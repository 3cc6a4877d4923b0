"""The bundle on disk: a folder that a trainer writes and the runtime reads.

    manifest.json   format number, kind, models, truncation, calibration, thresholds, file hashes
    model.onnx      one graph: input_ids, attention_mask (int64 [1, t]) and, where the manifest
                    names features, features (float32 [1, n_features]) -> quality (float32
                    [1, n_models]; absent in an encoder), embedding (float32 [1, dim]) and, where
                    width > 0, representation (float32 [1, width]), on which heads are fitted
    tokenizer.json  Hugging Face tokenizers format
    card.md         what it was trained on, how good it is, what it cannot do

Nothing is loaded before the manifest is valid, every file lies in the folder with the size and the
SHA-256 that it names, and graph and tokenizer hold only what is listed (`graph`, `tokenizing`);
nothing is ever unpickled.

To raise FORMAT: add the new field to `Manifest` with a default that keeps the old meaning, write
`_upgrade_N` from N to N + 1 into `_UPGRADES`, keep a bundle of format N under tests/data, and test
that it still loads. A bundle of a newer format is refused.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import BundleError, BundleFormatError, BundleIntegrityError
from .features import unknown_features
from .graph import check_graph
from .strict_json import is_finite, parse_json

FORMAT = 2
KINDS = ("mf", "bert", "encoder")
MANIFEST = "manifest.json"
MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
CARD = "card.md"
MANIFEST_MAX_BYTES = 4 * 1024 * 1024
MODEL_MAX_BYTES = 2**31  # the largest protobuf there is
FILE_MAX_BYTES = 100 * 1024 * 1024  # three times what the largest vocabulary takes
LONGEST = 8192  # tokens; attention over more takes gigabytes


def _upgrade_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Format 1 knew neither features nor a representation: the defaults say so."""
    return {**raw, "format": 2}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _upgrade_1}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself. All fields are JSON; unknown ones are an error.

    kind: "mf", "bert" or "encoder" (embeddings only, no models).
    models: names of the columns of `quality`, in order.
    strong, weak: the default pair, each one of `models` ('' in an encoder).
    max_tokens: length after truncation, special tokens included.
    prefix_ids, suffix_ids: the encoder's special tokens.
    features: names of the graph's cheap features, in order (see `router.features`); none of them
        means that the graph has no such input.
    width: length of the graph's representation; 0 where it gives none.
    calibration: how a difference of qualities becomes a probability
        (see `threshold.apply_calibration`).
    thresholds: calibration tables, by the name of what they were calibrated on
        (see `threshold.ThresholdTable`).
    training: a summary of the training run, for `inspect` and the card.
    """

    kind: str
    encoder: str
    dim: int
    models: tuple[str, ...]
    strong: str
    weak: str
    max_tokens: int
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    calibration: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    features: tuple[str, ...] = ()
    width: int = 0
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    written_by: str = ""
    format: int = FORMAT

    def to_json(self) -> str:
        """The manifest as it stands in manifest.json; ends in a newline."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Read and verify a bundle; nothing of it is loaded yet.

        Raises BundleFormatError (no bundle, bad manifest, newer format) or BundleIntegrityError
        (a file is missing or is not the one that was written).
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        for name, entry in manifest.files.items():
            _check_file(folder, name, entry)
        return cls(folder, manifest)

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.path / name

    def graph(self) -> bytes:
        """The graph, checked (see `graph`). Raises BundleFormatError where it may not be loaded."""
        data = self.file(MODEL).read_bytes()
        try:
            check_graph(data)
        except ValueError as error:
            raise BundleFormatError(f"{MODEL} does not load: it {error}", self.path) from error
        return data

    @property
    def model_sha256(self) -> str:
        """Identity of the model, for caches: hash of the graph, the tokenizer, the truncation and
        the features.

        Never the bundle's name: a new checkpoint under an old name must not find old scores.
        """
        m = self.manifest
        parts = [m.files[MODEL].sha256, m.files[TOKENIZER].sha256, str(m.max_tokens)]
        if m.features:
            parts.append(",".join(m.features))
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def __str__(self) -> str:
        return str(self.path)


def read_manifest(folder: Path) -> Manifest:
    """Parse and validate `manifest.json` without touching the other files.

    Raises BundleFormatError.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleFormatError("no such folder", folder)
    if not path.is_file():
        raise BundleFormatError(f"has no {MANIFEST}: not a bundle", folder)
    _check_place(path, folder)
    if path.stat().st_size > MANIFEST_MAX_BYTES:
        raise BundleFormatError(f"{MANIFEST} is larger than {MANIFEST_MAX_BYTES} bytes", folder)
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
    # ValueError: not UTF-8, not JSON, or a number with thousands of digits.
    except (OSError, ValueError) as error:
        raise BundleFormatError(f"{MANIFEST} is not readable JSON: {error}", folder) from error
    if not isinstance(raw, dict):
        raise BundleFormatError(f"{MANIFEST}: expected an object", folder)
    found = raw.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise BundleFormatError(f"{MANIFEST}: 'format' must be a whole number >= 1", folder)
    if found > FORMAT:
        raise BundleFormatError(
            f"written in format {found}; this version reads up to {FORMAT}: upgrade thriftroute",
            folder,
        )
    for step in range(found, FORMAT):
        raw = _UPGRADES[step](raw)
    try:
        return _parse(raw, folder)
    except RecursionError as error:
        raise BundleFormatError(f"{MANIFEST} is nested too deeply", folder) from error


def write_bundle(
    path: str | Path,
    *,
    files: Mapping[str, bytes | Path],
    overwrite: bool = False,
    **fields: Any,
) -> Bundle:
    """Write a bundle in one step: it is complete under `path`, or not there at all.

    `files` maps file names to their content or to a file to copy; `fields` are the manifest's
    others. An existing bundle is replaced only with `overwrite`. Raises BundleError where `path`
    holds something that is no bundle, BundleFormatError where the fields do not fit.
    """
    target = Path(path)
    if target.exists() and not (overwrite and _replaceable(target)):
        reason = "is not a bundle" if overwrite else "exists already"
        raise BundleError(f"{reason}; nothing was written", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    old = target.with_name(f".{target.name}.old")
    try:
        work.chmod(0o755)
        entries = {}
        for name, content in files.items():
            _check_name(name, lambda problem: BundleFormatError(problem, target))
            destination = work / name
            if isinstance(content, Path):
                shutil.copyfile(content, destination)
            else:
                destination.write_bytes(content)
            entries[name] = {
                "bytes": destination.stat().st_size,
                "sha256": file_sha256(destination),
            }
        from .._version import __version__

        raw = {"format": FORMAT, "written_by": f"thriftroute {__version__}", **fields}
        manifest = _parse(json.loads(json.dumps({**raw, "files": entries})), target)
        (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            work.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    return Bundle.open(target)


def update_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Replace fields of a bundle's manifest (thresholds, calibration) atomically.

    Raises BundleFormatError where they do not fit; the manifest is then as it was.
    """
    manifest = dataclasses.replace(bundle.manifest, **changes)
    # Through plain dumps: `to_json` refuses NaN without saying where it stands.
    checked = _parse(json.loads(json.dumps(dataclasses.asdict(manifest))), bundle.path)
    handle, temporary = tempfile.mkstemp(dir=bundle.path, prefix=".manifest.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(checked.to_json())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(bundle.path / MANIFEST)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return Bundle(bundle.path, checked)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _replaceable(target: Path) -> bool:
    return target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if not path.is_file():
        raise BundleIntegrityError(f"{name} is missing", folder)
    _check_place(path, folder)
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleIntegrityError(
            f"{name} has {size} bytes, the manifest says {entry.bytes}: truncated or replaced; "
            "copy or train the bundle again",
            folder,
        )
    if file_sha256(path) != entry.sha256:
        raise BundleIntegrityError(
            f"{name} is not the file that was written (its SHA-256 differs from the manifest's); "
            "copy or train the bundle again",
            folder,
        )


def _check_place(path: Path, folder: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise BundleIntegrityError(f"{path.name} is a link out of it; copy it by cp -rL", folder)


def _parse(raw: dict[str, Any], folder: Path) -> Manifest:
    def fail(problem: str) -> BundleFormatError:
        return BundleFormatError(f"{MANIFEST}: {problem}", folder)

    known = {f.name: f for f in dataclasses.fields(Manifest)}
    unknown = sorted(set(raw) - set(known))
    if unknown:
        raise fail(f"unknown field {unknown[0]!r}")
    required = {n for n, f in known.items() if _has_no_default(f)}
    missing = sorted(required - set(raw))
    if missing:
        raise fail(f"field {missing[0]!r} is missing")

    def typed(name: str, kind: type) -> Any:
        value = raw[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise fail(f"{name!r} must be {kind.__name__}, is {type(value).__name__}")
        return value

    def items(name: str, kind: type) -> tuple[Any, ...]:
        values = typed(name, list)
        if any(not isinstance(v, kind) or isinstance(v, bool) for v in values):
            raise fail(f"{name!r} must be a list of {kind.__name__}")
        return tuple(values)

    kind = typed("kind", str)
    if kind not in KINDS:
        raise fail(f"kind {kind!r} is none of {', '.join(KINDS)}")
    models = items("models", str)
    strong, weak = typed("strong", str), typed("weak", str)
    if len(set(models)) != len(models):
        raise fail("'models' names a model twice")
    if kind != "encoder" and (strong not in models or weak not in models or strong == weak):
        raise fail("'strong' and 'weak' must be two different names of 'models'")
    files = typed("files", dict)
    for name in (MODEL, TOKENIZER, CARD):
        if name not in files and not (kind == "encoder" and name == CARD):
            raise fail(f"'files' does not list {name}")
    raw = {**raw, "thresholds": raw.get("thresholds", {}), "training": raw.get("training", {})}
    raw.setdefault("written_by", "")
    raw.setdefault("features", [])
    raw.setdefault("width", 0)
    features = items("features", str)
    strange = unknown_features(features)
    if strange:
        raise fail(f"feature {strange[0]!r} is not known to this version; upgrade thriftroute")
    if len(set(features)) != len(features):
        raise fail("'features' names a feature twice")
    if typed("width", int) < 0:
        raise fail("'width' must be 0 or more")
    max_tokens = typed("max_tokens", int)
    prefix, suffix = items("prefix_ids", int), items("suffix_ids", int)
    # The suffix ends each of up to three parts: system text, history, last turn.
    if not len(prefix) + 3 * len(suffix) + 8 <= max_tokens <= LONGEST:
        raise fail(f"'max_tokens' {max_tokens} leaves no room for text, or is above {LONGEST}")
    if any(not 0 <= token < 2**31 for token in prefix + suffix):
        raise fail("'prefix_ids' and 'suffix_ids' must be token ids")
    calibration = typed("calibration", dict)
    for name in ("calibration", "thresholds", "training"):
        if not is_finite(raw[name]):
            raise fail(f"{name!r} holds a number that is not finite")
    return Manifest(
        kind=kind,
        encoder=typed("encoder", str),
        dim=typed("dim", int),
        models=models,
        strong=strong,
        weak=weak,
        max_tokens=max_tokens,
        prefix_ids=prefix,
        suffix_ids=suffix,
        calibration=calibration,
        files={name: _entry(name, value, fail) for name, value in files.items()},
        features=features,
        width=typed("width", int),
        thresholds=typed("thresholds", dict),
        training=typed("training", dict),
        written_by=typed("written_by", str),
        format=raw["format"],
    )


def _entry(name: str, value: Any, fail: Callable[[str], BundleFormatError]) -> FileEntry:
    _check_name(name, fail)
    match value:
        case {"bytes": int(size), "sha256": str(digest)} if len(value) == 2 and len(digest) == 64:
            if size > (MODEL_MAX_BYTES if name == MODEL else FILE_MAX_BYTES):
                raise fail(f"files[{name!r}] is too large")
            return FileEntry(size, digest)
    raise fail(f"files[{name!r}] must hold 'bytes' and 'sha256'")


def _check_name(name: str, fail: Callable[[str], BundleFormatError]) -> None:
    # A bundle may come from anywhere: a name must not lead out of its folder.
    if PureWindowsPath(name).name != name or name in ("", ".", "..", MANIFEST) or "\0" in name:
        raise fail(f"bad file name {name!r}")


def _has_no_default(item: "dataclasses.Field[Any]") -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
