"""From torch to one ONNX graph: export, int8, and the check that nothing was lost on the way.

int8 is dynamic quantization (weights per channel, activations at run time). Weights keep 7 of
their 8 bits: on processors without VNNI the 16-bit sums of full-range products saturate, and the
same bundle would score differently there.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ExportError, require_extra
from ..router.bundle import Bundle
from ..router.graph import check_graph
from .models.head import Base, Gate, Head, Memory

if TYPE_CHECKING:
    import torch

OPSET = 17
# Of the graph of `research.static_encoder`: its table, and what a head on it takes.
_TABLE = ("table", "scale")
_SEEN = ("input_ids", "features", "mask", "count", "middle")
# What an export must keep. Scores are probabilities; APGR is that of the validation split.
TORCH_BOUND = 1e-4
# Sums of 1,500 products in float32, in numpy and in the graph.
HEAD_BOUND = 1e-3
SPLIT_BOUND = 1e-5
INT8_SCORE_BOUND = 0.05
INT8_APGR_BOUND = 0.02

Floats = npt.NDArray[np.float64]
Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Check:
    """What a graph must say: `quality` float32[n, n_models] for n inputs (see `Scorer.feeds`).

    graph: "fp32" (against torch), or "int8" (the head as it was fitted, on the representations that
    the int8 graph gives).
    """

    feeds: Sequence[Feeds]
    quality: npt.NDArray[Any]
    graph: Literal["fp32", "int8"]


@dataclass(frozen=True)
class Exported:
    """A trained model as graphs: int8 (`model`), and fp32 (`whole`) where it is at hand.

    fields: of the manifest, beyond those of every bundle. embedding: the int8 graph of the
    encoder's second half, where that is one of its own.
    """

    model: bytes
    whole: bytes | Path | None
    models: Sequence[str]
    pair: Sequence[str]
    tokenizer: bytes
    fields: dict[str, Any]
    checks: Sequence[Check]
    embedding: Path | None = None


@dataclass(frozen=True)
class Parity:
    """How far the exported graphs are from what was trained.

    head: largest absolute difference of any quality between the head as fitted and the int8 graph,
        on the same representations.
    torch_fp32: the same between torch and the fp32 graph, on sequences of several lengths; None
        where the encoder came with a bundle, which was checked when that was made.
    int8_score_mean, int8_score_max: absolute difference of scores, int8 against fp32, on n prompts.
    int8_apgr: APGR there with int8 minus APGR with fp32; None where there is no quality gap.
    """

    n: int
    head: float = 0.0
    torch_fp32: float | None = None
    int8_score_mean: float | None = None
    int8_score_max: float | None = None
    int8_apgr: float | None = None

    def check(self) -> None:
        """Raise ExportError where a bound is broken."""
        moved = self.int8_score_mean
        graph, int8 = "the ONNX graph differs from", "int8 moves"
        # On few prompts a single swap of ranks moves APGR by about 1/n.
        apgr_bound = max(INT8_APGR_BOUND, 3 / self.n)
        for told, value, bound in (
            (f"{graph} the head that was fitted by {{:.2g}} (bound {{}})", self.head, HEAD_BOUND),
            (f"{graph} torch by {{:.2g}} (bound {{}})", self.torch_fp32, TORCH_BOUND),
            (f"{int8} scores by {{:.3f}} on average (bound {{}})", moved, INT8_SCORE_BOUND),
            (f"{int8} APGR by {{:+.3f}} (bound {{:.3f}})", self.int8_apgr, apgr_bound),
        ):
            if value is not None and not abs(value) <= bound:
                raise ExportError(
                    f"{told.format(value, bound)} on {self.n} prompts; nothing was written. "
                    "Where it is the head, cached vectors may be stale: empty the cache "
                    "(THRIFTROUTE_CACHE) and run the command again"
                )


def export_module(
    module: "torch.nn.Module", path: Path, *, outputs: Sequence[str], features: int = 0
) -> None:
    """Write `module(input_ids, attention_mask)` as an fp32 ONNX graph with free axes.

    features: how many cheap features `module` takes as a third input, if any. Raises ExportError
    where the module cannot be exported.
    """
    import torch

    ids = torch.arange(5, 5 + 2 * 9).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    inputs: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": mask}
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    if features:
        inputs["features"] = torch.rand(2, features)
        axes["features"] = {0: "batch"}
    free = {"states": {0: "batch", 1: "tokens"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    problem = "this encoder does not export to ONNX:"
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # The tracing exporter: its graph is the faster one on a CPU, and it needs no package
            # beyond onnx.
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                str(partial),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={**axes, **{name: free.get(name, {0: "batch"}) for name in outputs}},
                opset_version=OPSET,
                dynamo=False,
            )
        problem = "no bundle can have this encoder: its graph"
        check_graph(partial.read_bytes())
    except Exception as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"{problem} {error}") from error
    partial.replace(path)


def quantize(fp32: Path) -> bytes:
    """The int8 graph of an fp32 one: matrix products and embedding tables."""
    quantization = require_extra("onnxruntime.quantization", "train")
    onnx = require_extra("onnx", "fit")
    # Its advice to run shape inference first does not apply to dynamic quantization.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "int8.onnx"
            float32 = onnx.TensorProto.FLOAT
            quantization.quantize_dynamic(
                str(fp32),
                str(target),
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                extra_options={"DisableShapeInference": True, "DefaultTensorType": float32},
            )
            return target.read_bytes()
    finally:
        root.setLevel(level)


def split_graph(graph: bytes, feeds: Sequence[Feeds]) -> tuple[bytes, bytes] | None:
    """An encoder's graph in two: all inputs -> `representation` and `states`; `states` and
    `attention_mask` -> `embedding`, the same on `feeds`. None where no layer comes after the
    states, or one that needs more than these two."""
    onnx = require_extra("onnx", "fit")
    extractor = require_extra("onnx.utils", "fit").Extractor
    model = onnx.load_from_string(graph)
    inputs = [value.name for value in model.graph.input]
    first = extractor(model).extract_model(inputs, ["representation", "states"])
    inferred = onnx.shape_inference.infer_shapes(model).graph
    width = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][2:]
        for value in (*inferred.value_info, *inferred.output)
    }
    # Masks are made to the shape of what lies in the first half: the second has it by other names.
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] == "input_ids":
            node.input[0] = "attention_mask"
        elif node.op_type == "Shape" and width.get(node.input[0]) == width["states"]:
            node.input[0] = "states"
    second = extractor(model).extract_model(["states", "attention_mask"], ["embedding"])
    known = {"", "states", "attention_mask", *(item.name for item in second.graph.initializer)}
    known |= {name for node in second.graph.node for name in node.output}
    used = {name for node in second.graph.node for name in node.input}
    if not used <= known or not any("MatMul" in node.op_type for node in second.graph.node):
        return None
    halves = (bytes(first.SerializeToString()), bytes(second.SerializeToString()))
    one, two = (_session(half) for half in halves)
    rows = []
    for feed in feeds:
        between = {"states": one.run(["states"], feed)[0], "attention_mask": feed["attention_mask"]}
        rows += two.run(["embedding"], between)
    [expected] = run_graph(graph, feeds, ["embedding"])
    return halves if np.abs(np.concatenate(rows) - expected).max() <= SPLIT_BOUND else None


def graft_head(encoder: bytes, head: Head) -> bytes:
    """Put mf's head on an encoder graph, which then gives `quality` (see `head.Head`), and
    `familiarity` float32[1, 1] where the head has a memory.

    Its factors stand in the graph under names that begin with mf., in fp32, so that a bundle can be
    started from; a head that is there already is replaced. On `fast`'s encoder, which is a table of
    tokens' vectors, it is a narrow table of its own besides: scores need nothing of the other one.
    """
    onnx = require_extra("onnx", "fit")
    model = onnx.load_from_string(without_head(encoder))
    values: dict[str, Any] = {"w1": head.w1.T, "b1": head.b1, "u": head.u.T}
    outputs, hidden = {"quality": int(head.u.shape[0])}, "hidden"
    if head.gate is not None:
        gated = head.gated.astype(np.float32)[None]
        values |= {"gated": gated, "open": 1 - gated}
        values |= {"gate": head.gate.weights[:, None], "bias": np.array(head.gate.bias)}
    nodes = _by_token(model.graph, values) or _by_representation(values)
    if head.gate is not None:
        nodes += [
            _node("Sigmoid", "logit", "share"),
            _node("Mul", "share gated", "opened"),
            _node("Add", "opened open", "factors"),
            _node("Mul", "hidden factors", "let"),
        ]
        hidden = "let"
    if head.memory is not None:
        nodes += _look_up(head.memory, values)
        outputs["familiarity"] = 1
    nodes.append(_node("MatMul", f"{hidden} u", "quality"))
    for name, value in values.items():
        whole = value.dtype in (np.int8, np.int64)
        # Not ascontiguousarray alone, which makes a number a list of one.
        array = np.ascontiguousarray(value if whole else value.astype(np.float32))
        array = array.reshape(value.shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"mf.{name}"))
    model.graph.node.extend(nodes)
    for name, width in outputs.items():
        kind = onnx.TensorProto.FLOAT
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, ["batch", width]))
    return bytes(model.SerializeToString())


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    """A node of the head; names are those of the head's own values but for the graph's outputs."""
    outer = ("representation", "quality", "familiarity", *_SEEN)
    names = [name if name in outer else f"mf.{name}" for name in (*inputs.split(), *output.split())]
    cut = len(inputs.split())
    make = require_extra("onnx", "fit").helper.make_node
    return make(kind, names[:cut], names[cut:], **attributes)


def _by_representation(values: Mapping[str, Any]) -> list[Any]:
    """Nodes from the representation to `hidden` and, of a head with a gate, its `logit`."""
    nodes = [
        _node("MatMul", "representation w1", "projected"),
        _node("Add", "projected b1", "hidden"),
    ]
    if "gate" in values:
        nodes += [
            _node("MatMul", "representation gate", "kind"),
            _node("Add", "kind bias", "logit"),
        ]
    return nodes


def _by_token(graph: Any, values: dict[str, Any]) -> list[Any]:
    """The same on an encoder that is `static_graph`'s, from tokens and features; none on another.

    The mean of vectors, times weights, is the mean of what each vector is times weights: three
    numbers a token in place of 256.
    """
    known = {item.name: item for item in graph.initializer}
    made = {name for node in graph.node for name in node.output}
    if not {*_TABLE, *_SEEN} <= {*known, *made, *(item.name for item in graph.input)}:
        return []
    to_array = require_extra("onnx", "fit").numpy_helper.to_array
    table, scale = (to_array(known[name]) for name in _TABLE)
    weights = np.hstack([values[name] for name in ("w1", "gate") if name in values])
    start = np.hstack([values[name] for name in ("b1", "bias") if name in values])
    width = table.shape[1]
    values |= {"rows": (table * scale.astype(float)) @ weights[:width], "beside": weights[width:]}
    values |= {"start": start, "sizes": np.array([len(values["b1"]), 1])}
    gated = "gate" in values
    nodes = [
        _node("Gather", "rows input_ids", "seen", axis=0),
        _node("Unsqueeze", "mask middle", "row"),
        _node("MatMul", "row seen", "total"),
        _node("Squeeze", "total middle", "sum"),
        _node("Div", "sum count", "mean"),
        _node("MatMul", "features beside", "more"),
        _node("Add", "more start", "moved"),
        _node("Add", "mean moved", "projected" if gated else "hidden"),
    ]
    return [*nodes, _node("Split", "projected sizes", "hidden logit", axis=1)] if gated else nodes


def _look_up(memory: Memory, values: dict[str, Any]) -> list[Any]:
    """Nodes from the representation to `familiarity`, by way of the cosines with each point."""
    whole = {"starts": memory.columns[0], "ends": memory.columns[1], "axes": 1}
    numbers = {"scale": memory.scale, "low": memory.low, "high": memory.high, "zero": 0, "one": 1}
    numbers |= {"range": memory.high - memory.low, "least": 1e-9}
    values |= {name: np.array([value], np.int64) for name, value in whole.items()}
    values |= {name: np.array(value, np.float32) for name, value in numbers.items()}
    values |= {"points": memory.points.T, "projection": memory.projection}
    float32 = require_extra("onnx", "fit").TensorProto.FLOAT
    return [
        _node("Slice", "representation starts ends axes", "last"),
        _node("MatMul", "last projection", "short"),
        _node("ReduceL2", "short", "length", axes=[1], keepdims=1),
        _node("Max", "length least", "divisor"),
        _node("Div", "short divisor", "asked"),
        # Not DequantizeLinear: with it onnxruntime multiplies in 8 bits, which is .004 off.
        _node("Cast", "points", "whole", to=float32),
        _node("MatMul", "asked whole", "products"),
        _node("Mul", "products scale", "cosines"),
        _node("ReduceMax", "cosines", "nearest", axes=[1], keepdims=1),
        _node("Sub", "nearest low", "above"),
        _node("Div", "above range", "scaled"),
        _node("Clip", "scaled zero one", "familiarity"),
    ]


def without_head(graph: bytes) -> bytes:
    """The encoder of a graph, with nothing of mf's head."""
    model = require_extra("onnx", "fit").load_from_string(graph)
    for items in (model.graph.node, model.graph.initializer, model.graph.output):
        for item in list(items):
            names = list(getattr(item, "output", [])) or [item.name]
            if any(n.startswith("mf.") or n in ("quality", "familiarity") for n in names):
                items.remove(item)
    return bytes(model.SerializeToString())


def read_head(graph: bytes, models: Sequence[str]) -> Head:
    """The head of a graph (see `graft_head`); `models` are the bundle's, in order.

    Raises ExportError where it has none.
    """
    onnx = require_extra("onnx", "fit")
    found = {
        item.name.removeprefix("mf."): onnx.numpy_helper.to_array(item).copy()
        for item in onnx.load_from_string(graph).graph.initializer
        if item.name.startswith("mf.")
    }
    if not {"w1", "b1", "u"} <= set(found):
        message = "the graph has no mf head: only a bundle of kind mf, format 2 or later, has one"
        raise ExportError(message)
    if "values" in found or ("points" in found and "gate" not in found):
        raise ExportError(
            "the bundle's head is of an older kind, which still routes but cannot be started from: "
            "train it again from its data, or start from a newer bundle"
        )
    gate, gated, memory = None, np.zeros(len(found["b1"]), np.int8), None
    if "gate" in found:
        gate = Gate(found["gate"][:, 0], float(found["bias"]))
        gated = found["gated"][0].astype(np.int8)
    if "points" in found:
        memory = Memory(
            points=found["points"].T,
            low=float(found["low"]),
            high=float(found["high"]),
            columns=(int(found["starts"][0]), int(found["ends"][0])),
            scale=float(found["scale"]),
            projection=found["projection"],
        )
    return Head(list(models), found["w1"].T, found["b1"], found["u"].T, gated, gate, memory)


def read_base(bundle: Bundle) -> Base:
    """A bundle's head and its own pair. Raises ExportError where it has no mf head."""
    head = read_head(bundle.graph(), bundle.manifest.models)
    return Base(head, bundle.manifest.strong, bundle.manifest.weak)


def run_graph(graph: bytes | Path, feeds: Sequence[Feeds], outputs: Sequence[str]) -> list[Any]:
    """Outputs of a graph for n prompts, one run a prompt: a list of float32[n, width].

    feeds: the graph's inputs for each prompt, by name (see `Scorer.feeds`).
    """
    session = _session(graph)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        rows = list(pool.map(lambda feed: session.run(list(outputs), feed), feeds))
    return [np.concatenate([row[i] for row in rows]) for i in range(len(outputs))]


def _session(graph: bytes | Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # One thread a run and a run on each core: threads that share a run wait for each other.
    options.intra_op_num_threads = 1
    source = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
