"""The encoder of `fast`: a vector for each token, whose mean says what the transformer would say.

Each token goes through the transformer alone; a linear map takes what comes out to the principal
axes of the transformer's own representations of whole texts, and what that leaves is learned by
token from these texts (ridge regression on bags of tokens). No label is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import require_extra
from ..router.bundle import Bundle, write_bundle
from ..router.features import FEATURES
from ..router.scorer import Scorer
from ..router.text import Promptlike, special_tokens
from ..training.embed import embed
from ..training.encoder import LoadedEncoder
from ..training.export import OPSET
from ..training.progress import Progress

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StaticSettings:
    """dim: length of a token's vector. max_tokens: of a prompt that are read. map_strength: ridge
    penalty of the map, in units of the inputs' mean variance; strength: of the tokens' own part,
    chosen by cross-validation on ordinary prompts. steps: of conjugate gradients."""

    dim: int = 256
    max_tokens: int = 512
    map_strength: float = 1e-3
    strength: float = 0.003
    steps: int = 25


def static_bundle(
    encoder: LoadedEncoder,
    teacher: Scorer,
    inputs: Sequence[Promptlike],
    out: Path,
    say: Progress,
    settings: StaticSettings | None = None,
) -> Bundle:
    """Write the static encoder, of kind "encoder", that imitates `teacher` on `inputs`."""
    settings = settings or StaticSettings()
    with say.bar("embedding prompts") as update:
        x = embed(teacher, inputs, progress=update, representation=True)
    say.note("distilling a vector for each token")
    target = _axes(x[:, : -len(FEATURES)], settings.dim)
    alone = _token_states(encoder)
    bags = bags_of(encoder.token_ids(inputs, settings.max_tokens), len(alone))
    table = mapped(bags, alone, target, settings.map_strength)
    table += residual(bags, target - bags @ table, settings)
    prefix, suffix = special_tokens(encoder.tokenizer)
    files: dict[str, bytes | Path] = {
        "model.onnx": static_graph(table),
        "tokenizer.json": encoder.tokenizer.to_str().encode(),
    }
    fields: dict[str, Any] = {"encoder": f"static vectors of {encoder.name}", "dim": table.shape[1]}
    fields |= {"width": table.shape[1] + len(FEATURES), "max_tokens": settings.max_tokens}
    fields |= {"prefix_ids": prefix, "suffix_ids": suffix, "features": list(FEATURES)}
    fields |= {"kind": "encoder", "models": [], "strong": "", "weak": "", "calibration": {}}
    return write_bundle(out, files=files, overwrite=True, **fields)


def _axes(x: Floats32, dim: int) -> Floats32:
    """Centred rows on their first principal axes, float32[n, dim]."""
    centred = x - x.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :dim]
    return np.asarray(centred @ axes, dtype=np.float32)


def _token_states(encoder: LoadedEncoder, block: int = 1024) -> Floats32:
    """States of each token of the vocabulary that stands alone, in all layers side by side."""
    prefix, suffix = special_tokens(encoder.tokenizer)
    size, found = encoder.tokenizer.get_vocab_size(), []
    with torch.no_grad():
        for start in range(0, size, block):
            tokens = range(start, min(size, start + block))
            ids = torch.tensor([[*prefix, token, *suffix] for token in tokens])
            output = encoder.module.transformer(
                input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
            )
            states = [state[:, len(prefix)] for state in output.hidden_states]
            found.append(torch.cat(states, dim=-1).numpy())
    return np.concatenate(found).astype(np.float32)


def bags_of(ids: Sequence[Sequence[int]], size: int) -> Any:
    """Sparse float32[n, size]: shares of each token among those of a text."""
    sparse = require_extra("scipy.sparse", "train")
    counts = np.array([len(row) for row in ids])
    rows = np.repeat(np.arange(len(ids)), counts)
    shares = np.repeat(1 / counts, counts).astype(np.float32)
    return sparse.csr_matrix((shares, (rows, np.concatenate(ids))), shape=(len(ids), size))


def mapped(bags: Any, alone: Floats32, target: Floats32, strength: float) -> Floats32:
    """A vector for each token by the best linear map of its states, float32[size, dim]."""
    means = bags @ alone
    center = means.mean(0)
    means = means - center
    gram = means.T @ means
    gram[np.diag_indices_from(gram)] += strength * np.trace(gram) / len(gram)
    return np.asarray((alone - center) @ np.linalg.solve(gram, means.T @ target), dtype=np.float32)


def residual(bags: Any, target: Floats32, settings: StaticSettings) -> Floats32:
    """What each token adds: (B'B + strength) D = B' target by conjugate gradients (Hestenes and
    Stiefel 1952), all columns at once."""
    found = np.zeros((bags.shape[1], target.shape[1]), np.float32)
    left = bags.T @ target
    step, size = left.copy(), np.square(left).sum(0)
    for _ in range(settings.steps):
        moved = bags.T @ (bags @ step) + np.float32(settings.strength) * step
        factor = size / np.maximum((step * moved).sum(0), 1e-12)
        found += factor * step
        left -= factor * moved
        before, size = size, np.square(left).sum(0)
        step = left + size / np.maximum(before, 1e-12) * step
    return found


def static_graph(table: Floats32) -> bytes:
    """input_ids, attention_mask, features -> embedding, representation; the table in int8, each
    column with its own scale."""
    onnx = require_extra("onnx", "train")
    helper, kinds = onnx.helper, onnx.TensorProto
    scale = np.maximum(np.abs(table).max(0), 1e-9) / 127
    dim, least = table.shape[1], np.array(1e-9, np.float32)
    values = {
        "table": np.round(table / scale).astype(np.int8),
        "scale": scale.astype(np.float32),
        "least": least,
        "last": np.array([2], np.int64),
        "middle": np.array([1], np.int64),
    }
    nodes = [
        ("Gather", "table input_ids", "rows", {"axis": 0}),
        ("Cast", "rows", "states", {"to": kinds.FLOAT}),
        ("Cast", "attention_mask", "mask", {"to": kinds.FLOAT}),
        ("Unsqueeze", "mask last", "column", {}),
        ("Mul", "states column", "kept", {}),
        ("ReduceSum", "kept middle", "sum", {"keepdims": 0}),
        ("ReduceSum", "mask middle", "count", {"keepdims": 1}),
        ("Div", "sum count", "mean", {}),
        ("Mul", "mean scale", "pooled", {}),
        ("Concat", "pooled features", "representation", {"axis": 1}),
        ("ReduceL2", "pooled", "length", {"axes": [1], "keepdims": 1}),
        ("Max", "length least", "divisor", {}),
        ("Div", "pooled divisor", "embedding", {}),
    ]
    whole = {name: helper.make_tensor_value_info(name, kinds.INT64, ["batch", "tokens"])
             for name in ("input_ids", "attention_mask")}  # fmt: skip

    def real(name: str, width: int) -> Any:
        return helper.make_tensor_value_info(name, kinds.FLOAT, ["batch", width])

    graph = helper.make_graph(
        [helper.make_node(kind, a.split(), [b], **more) for kind, a, b, more in nodes],
        "static",
        [*whole.values(), real("features", len(FEATURES))],
        [real("embedding", dim), real("representation", dim + len(FEATURES))],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
