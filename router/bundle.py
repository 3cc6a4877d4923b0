"""The bundle on disk: a folder that a trainer writes and the runtime reads.

    manifest.json   format number, kind, models, truncation, calibration, thresholds, file hashes
    model.onnx      input_ids, attention_mask (int64 [1, t]) and, where the manifest names
                    features, features (float32 [1, n_features]) -> quality (float32 [1, n_models];
                    absent in an encoder), where width > 0 representation (float32 [1, width]), on
                    which heads are fitted, and embedding (float32 [1, dim]) or states
    embedding.onnx  may be absent: states (float32 [1, t, dim]), what model.onnx leaves of the
                    tokens, and attention_mask -> embedding. A decision does without this graph
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
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any, get_args, get_origin, get_type_hints

from .._version import __version__
from ..errors import BundleError, BundleFormatError, BundleIntegrityError
from ..files import whole_file
from .features import unknown_features
from .graph import check_graph
from .strict_json import is_finite, parse_json

FORMAT = 3
KINDS = ("mf", "bert", "fast", "encoder")
MANIFEST = "manifest.json"
MODEL = "model.onnx"
EMBEDDING = "embedding.onnx"
TOKENIZER = "tokenizer.json"
CARD = "card.md"
MANIFEST_MAX_BYTES = 4 * 1024 * 1024
MODEL_MAX_BYTES = 2**31  # the largest protobuf there is
FILE_MAX_BYTES = 100 * 1024 * 1024  # three times what the largest vocabulary takes
LONGEST = 8192  # tokens; attention over more takes gigabytes


def _upgrade_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Format 1 knew neither features nor a representation: the defaults say so."""
    return {**raw, "format": 2}


def _upgrade_2(raw: dict[str, Any]) -> dict[str, Any]:
    """Format 2 knew no embedding.onnx: without it the embedding is model.onnx's."""
    return {**raw, "format": 3}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _upgrade_1, 2: _upgrade_2}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself. All fields are JSON; unknown ones are an error.

    kind: "mf", "bert", "fast" or "encoder" (embeddings only, no models).
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

    def graph(self, name: str = MODEL) -> bytes:
        """A graph, checked (see `graph`). Raises BundleFormatError where it may not be loaded,
        BundleIntegrityError where it is no longer the file that was verified."""
        _check_file(self.path, name, self.manifest.files[name])
        data = self.file(name).read_bytes()
        try:
            check_graph(data)
        except ValueError as error:
            raise BundleFormatError(f"{name} does not load: it {error}", self.path) from error
        return data

    @property
    def model_sha256(self) -> str:
        """Identity of the model, for caches: hash of graphs, tokenizer, truncation and features.

        Never the bundle's name: a new checkpoint under an old name must not find old scores.
        """
        m = self.manifest
        parts = [m.files[MODEL].sha256, m.files[TOKENIZER].sha256, str(m.max_tokens)]
        if m.features:
            parts.append(",".join(m.features))
        if EMBEDDING in m.files:
            parts.append(m.files[EMBEDDING].sha256)
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def __str__(self) -> str:
        return str(self.path)


def read_manifest(folder: Path) -> Manifest:
    """Parse and validate `manifest.json` without touching the other files.

    Raises BundleFormatError.
    """
    path = folder / MANIFEST
    if not path.is_file():
        problem = f"has no {MANIFEST}: not a bundle" if folder.is_dir() else "no such folder"
        raise BundleFormatError(problem, folder)
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
    found: Any = raw.get("format")
    if not _is_a(found, int) or found < 1:
        raise BundleFormatError(f"{MANIFEST}: 'format' must be a whole number >= 1", folder)
    if found > FORMAT:
        problem = f"written in format {found}; this version reads up to {FORMAT}"
        raise BundleFormatError(f"{problem}: upgrade thriftroute", folder)
    for step in range(found, FORMAT):
        raw = _UPGRADES[step](raw)
    return _manifest(raw, folder)


def write_bundle(
    path: str | Path, *, files: Mapping[str, bytes | Path], overwrite: bool = False, **fields: Any
) -> Bundle:
    """Write a bundle in one step: it is complete under `path`, or not there at all.

    `files` maps file names to their content or to a file to copy; `fields` are the manifest's
    others. An existing bundle is replaced only with `overwrite`. Raises BundleError where `path`
    holds something that is no bundle, BundleFormatError where the fields do not fit.
    """
    target = Path(path)
    replaceable = target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))
    if target.exists() and not (overwrite and replaceable):
        reason = "is not a bundle" if overwrite else "exists already"
        raise BundleError(f"{reason}; nothing was written", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    old = target.with_name(f".{target.name}.old")
    try:
        work.chmod(0o755)
        entries = {}
        for name, content in files.items():
            if not _is_plain_name(name):
                raise BundleFormatError(f"bad file name {name!r}", target)
            if isinstance(content, Path):
                shutil.copyfile(content, work / name)
            else:
                (work / name).write_bytes(content)
            size = (work / name).stat().st_size
            entries[name] = {"bytes": size, "sha256": file_sha256(work / name)}
        raw = {"format": FORMAT, "written_by": f"thriftroute {__version__}", **fields}
        manifest = _manifest(json.loads(json.dumps({**raw, "files": entries})), target)
        (work / MANIFEST).write_bytes(_as_json(manifest))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        work.rename(target)
        shutil.rmtree(old, ignore_errors=True)
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
    raw = asdict(replace(bundle.manifest, **changes))
    # Through plain dumps: `_as_json` refuses NaN without saying where it stands.
    checked = _manifest(json.loads(json.dumps(raw)), bundle.path)
    with whole_file(bundle.path / MANIFEST) as stream:
        stream.write(_as_json(checked))
    return Bundle(bundle.path, checked)


def replace_file(bundle: Bundle, name: str, content: bytes) -> Bundle:
    """The bundle with another content of one of its files; raises as `write_bundle` does."""
    kept = asdict(bundle.manifest)
    fields = {n: v for n, v in kept.items() if n not in ("files", "format", "written_by")}
    files: dict[str, bytes | Path] = {n: bundle.file(n) for n in bundle.manifest.files}
    # Of a link, what it leads to: else the link would be replaced.
    folder = bundle.path.resolve()
    return write_bundle(folder, files={**files, name: content}, overwrite=True, **fields)


def _as_json(manifest: Manifest) -> bytes:
    return (json.dumps(asdict(manifest), indent=1, allow_nan=False) + "\n").encode()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if not path.is_file():
        raise BundleIntegrityError(f"{name} is missing", folder)
    _check_place(path, folder)
    size = path.stat().st_size
    if size != entry.bytes:
        problem = f"has {size} bytes, the manifest says {entry.bytes}: truncated or replaced"
    elif file_sha256(path) != entry.sha256:
        problem = "is not the file that was written (its SHA-256 differs from the manifest's)"
    else:
        return
    raise BundleIntegrityError(f"{name} {problem}; copy or train the bundle again", folder)


def _check_place(path: Path, folder: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise BundleIntegrityError(f"{path.name} is a link out of it; copy it by cp -rL", folder)


def _manifest(raw: dict[str, Any], folder: Path) -> Manifest:
    """The manifest of a JSON object. Raises BundleFormatError."""
    try:
        _check_types(raw)
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in raw.items()}
        given["files"] = {name: _entry(name, value) for name, value in raw["files"].items()}
        manifest = Manifest(**given)
        _check_values(manifest)
    except RecursionError as error:
        raise BundleFormatError(f"{MANIFEST} is nested too deeply", folder) from error
    except ValueError as error:
        raise BundleFormatError(f"{MANIFEST}: {error}", folder) from None
    return manifest


def _check_types(raw: dict[str, Any]) -> None:
    hints = get_type_hints(Manifest)
    if unknown := sorted(set(raw) - set(hints)):
        raise ValueError(f"unknown field {unknown[0]!r}")
    for item in dataclasses.fields(Manifest):
        needed = item.default is item.default_factory is dataclasses.MISSING
        if needed and item.name not in raw:
            raise ValueError(f"field {item.name!r} is missing")
    for name, value in raw.items():
        hint = hints[name]
        kind = {tuple: list, Mapping: dict}.get(get_origin(hint), hint)
        if not _is_a(value, kind):
            raise ValueError(f"{name!r} must be {kind.__name__}, is {type(value).__name__}")
        items = get_args(hint)[0] if kind is list else object
        if kind is list and not all(_is_a(item, items) for item in value):
            raise ValueError(f"{name!r} must be a list of {items.__name__}")


def _is_a(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _entry(name: str, value: Any) -> FileEntry:
    if not _is_plain_name(name):
        raise ValueError(f"bad file name {name!r}")
    match value:
        case {"bytes": int(size), "sha256": str(digest)} if len(value) == 2 and len(digest) == 64:
            if size > (MODEL_MAX_BYTES if name in (MODEL, EMBEDDING) else FILE_MAX_BYTES):
                raise ValueError(f"files[{name!r}] is too large")
            return FileEntry(size, digest)
    raise ValueError(f"files[{name!r}] must hold 'bytes' and 'sha256'")


def _is_plain_name(name: str) -> bool:
    """A bundle may come from anywhere: a name must not lead out of its folder."""
    plain = PureWindowsPath(name).name == name and "\0" not in name
    return plain and name not in ("", ".", "..", MANIFEST)


def _check_values(m: Manifest) -> None:
    needed = (MODEL, TOKENIZER) if m.kind == "encoder" else (MODEL, TOKENIZER, CARD)
    ids = m.prefix_ids + m.suffix_ids
    # The suffix ends each of up to three parts: system text, history, last turn.
    least = len(m.prefix_ids) + 3 * len(m.suffix_ids) + 8
    pair_fits = m.strong in m.models and m.weak in m.models and m.strong != m.weak
    wrong = {
        f"kind {m.kind!r} is none of {', '.join(KINDS)}": m.kind not in KINDS,
        "'models' names a model twice": len(set(m.models)) != len(m.models),
        "'strong' and 'weak' must be two different names of 'models'": (
            m.kind != "encoder" and not pair_fits
        ),
        **{f"'files' does not list {name}": name not in m.files for name in needed},
        **{
            f"feature {name!r} is not known to this version; upgrade thriftroute": True
            for name in unknown_features(m.features)
        },
        "'features' names a feature twice": len(set(m.features)) != len(m.features),
        "'width' must be 0 or more": m.width < 0,
        f"'max_tokens' {m.max_tokens} leaves no room for text, or is above {LONGEST}": (
            not least <= m.max_tokens <= LONGEST
        ),
        "'prefix_ids' and 'suffix_ids' must be token ids": (
            not all(0 <= token < 2**31 for token in ids)
        ),
        **{
            f"{name!r} holds a number that is not finite": not is_finite(getattr(m, name))
            for name in ("calibration", "thresholds", "training")
        },
    }
    for problem, found in wrong.items():
        if found:
            raise ValueError(problem)
