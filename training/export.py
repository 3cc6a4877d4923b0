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
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ExportError, require_extra
from ..router.graph import check_graph
from .models.mf import Gate, Head

OPSET = 17
# What an export must keep. Scores are probabilities; APGR is that of the validation split.
TORCH_BOUND = 1e-4
# Sums of 1,500 products in float32, in numpy and in the graph.
HEAD_BOUND = 1e-3
INT8_SCORE_BOUND = 0.05
INT8_APGR_BOUND = 0.02

Floats = npt.NDArray[np.float64]
Feeds = dict[str, npt.NDArray[Any]]


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
        for name, distance, bound in (
            ("the head that was fitted", self.head, HEAD_BOUND),
            ("torch", self.torch_fp32, TORCH_BOUND),
        ):
            if distance is not None and not distance <= bound:
                raise ExportError(
                    f"the ONNX graph differs from {name} by {distance:.2g} (bound {bound}); "
                    "nothing was written. Where it is the head, cached vectors may be stale: empty "
                    "the cache (THRIFTROUTE_CACHE) and run the command again"
                )
        if self.int8_score_mean is not None and not self.int8_score_mean <= INT8_SCORE_BOUND:
            raise ExportError(
                f"int8 moves scores by {self.int8_score_mean:.3f} on average (bound "
                f"{INT8_SCORE_BOUND}) on {self.n} prompts; nothing was written"
            )
        # On few prompts a single swap of ranks moves APGR by about 1/n.
        bound = max(INT8_APGR_BOUND, 3 / self.n)
        if self.int8_apgr is not None and not abs(self.int8_apgr) <= bound:
            raise ExportError(
                f"int8 moves APGR by {self.int8_apgr:+.3f} (bound {bound:.3f}) on {self.n} "
                "prompts; nothing was written"
            )


def export_module(
    module: torch.nn.Module, path: Path, *, outputs: Sequence[str], features: int = 0
) -> None:
    """Write `module(input_ids, attention_mask)` as an fp32 ONNX graph with free axes.

    features: how many cheap features `module` takes as a third input, if any. Raises ExportError
    where the module cannot be exported.
    """
    require_extra("onnx", "train")
    ids = torch.arange(5, 5 + 2 * 9).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    inputs: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": mask}
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    if features:
        inputs["features"] = torch.rand(2, features)
        axes["features"] = {0: "batch"}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
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
                dynamic_axes={**axes, **{name: {0: "batch"} for name in outputs}},
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"this encoder does not export to ONNX: {error}") from error
    try:
        check_graph(partial.read_bytes())
    except ValueError as error:
        partial.unlink()
        raise ExportError(f"no bundle can have this encoder: its graph {error}") from error
    partial.replace(path)


def quantize(fp32: Path) -> bytes:
    """The int8 graph of an fp32 one: matrix products and embedding tables."""
    quantization = require_extra("onnxruntime.quantization", "train")
    onnx = require_extra("onnx", "train")
    # Its advice to run shape inference first does not apply to dynamic quantization.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "int8.onnx"
            quantization.quantize_dynamic(
                str(fp32),
                str(target),
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                extra_options={
                    "DisableShapeInference": True,
                    "DefaultTensorType": onnx.TensorProto.FLOAT,
                },
            )
            return target.read_bytes()
    finally:
        root.setLevel(level)


def graft_head(encoder: bytes, head: Head) -> bytes:
    """Put mf's head on an encoder graph, which then gives `quality` (see `mf.Head`), and
    `familiarity` float32[1, 1] where the head has a gate.

    Its factors stand in the graph under names that begin with mf., in fp32, so that a bundle can be
    started from; a head that is there already is replaced.
    """
    onnx = require_extra("onnx", "train")
    make = onnx.helper.make_node
    model = onnx.load_from_string(without_head(encoder))
    graph = model.graph
    values: dict[str, npt.NDArray[Any]] = {
        "mf.w1": head.w1.T.astype(np.float32),
        "mf.b1": head.b1.astype(np.float32),
        "mf.u": head.u.T.astype(np.float32),
    }
    nodes = [
        make("MatMul", ["representation", "mf.w1"], ["mf.projected"]),
        make("Add", ["mf.projected", "mf.b1"], ["mf.hidden"]),
    ]
    outputs = {"quality": int(head.u.shape[0])}
    hidden = "mf.hidden"
    if head.gate is not None:
        gate = head.gate
        gated = head.gated.astype(np.float32)[None]
        values |= {
            "mf.gated": gated,
            "mf.open": (gated <= 0).astype(np.float32),
            "mf.points": gate.points.T,
            "mf.low": np.array(gate.low, np.float32),
            "mf.high": np.array(gate.high, np.float32),
            "mf.starts": np.array([gate.columns[0]], np.int64),
            "mf.ends": np.array([gate.columns[1]], np.int64),
            "mf.axes": np.array([1], np.int64),
            "mf.range": np.array(gate.high - gate.low, np.float32),
            "mf.zero": np.array(0, np.float32),
            "mf.one": np.array(1, np.float32),
        }
        nodes += [
            make("Slice", ["representation", "mf.starts", "mf.ends", "mf.axes"], ["mf.last"]),
            *_cosines(gate, values),
            make("ReduceMax", ["mf.cosines"], ["mf.nearest"], axes=[1], keepdims=1),
            make("Sub", ["mf.nearest", "mf.low"], ["mf.above"]),
            make("Div", ["mf.above", "mf.range"], ["mf.scaled"]),
            make("Clip", ["mf.scaled", "mf.zero", "mf.one"], ["familiarity"]),
            make("Mul", ["familiarity", "mf.gated"], ["mf.opened"]),
            make("Add", ["mf.opened", "mf.open"], ["mf.factors"]),
        ]
        if head.recall is not None:
            values["mf.recall"] = head.recall.astype(np.float32)[None]
            nodes += [
                *_recalled(gate, values),
                make("Mul", ["mf.recalled", "mf.recall"], ["mf.told"]),
                make("Add", ["mf.hidden", "mf.told"], ["mf.informed"]),
            ]
            hidden = "mf.informed"
        nodes.append(make("Mul", [hidden, "mf.factors"], ["mf.let"]))
        hidden = "mf.let"
        outputs["familiarity"] = 1
    nodes.append(make("MatMul", [hidden, "mf.u"], ["quality"]))
    for name, value in values.items():
        array = np.ascontiguousarray(value)
        graph.initializer.append(onnx.numpy_helper.from_array(array.reshape(value.shape), name))
    graph.node.extend(nodes)
    for name, width in outputs.items():
        graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        )
    return bytes(model.SerializeToString())


def without_head(graph: bytes) -> bytes:
    """The encoder of a graph, with nothing of mf's head."""
    onnx = require_extra("onnx", "train")
    model = onnx.load_from_string(graph)
    for items in (model.graph.node, model.graph.initializer, model.graph.output):
        kept = [item for item in items if not _of_head(item)]
        del items[:]
        items.extend(kept)
    return bytes(model.SerializeToString())


def read_head(graph: bytes, models: Sequence[str]) -> Head:
    """The head of a graph (see `graft_head`); `models` are the bundle's, in order.

    Raises ExportError where it has none.
    """
    onnx = require_extra("onnx", "train")
    model = onnx.load_from_string(graph)
    found = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.name.startswith("mf.")
    }
    if not {"mf.w1", "mf.b1", "mf.u"} <= set(found):
        raise ExportError("the graph has no mf head: only a bundle of kind mf, format 2, has one")
    gate, gated, recall = None, np.zeros(len(found["mf.b1"]), np.int8), None
    # Bundles of before the points were prompts call them centres.
    if "mf.centres" in found:
        found["mf.points"] = found["mf.centres"]
    if "mf.points" in found:
        gate = _read_gate(found)
        gated = found["mf.gated"][0].astype(np.int8)
        recall = found["mf.recall"][0].copy() if "mf.recall" in found else None
    w1, b1, u = (found[f"mf.{name}"].T.copy() for name in ("w1", "b1", "u"))
    return Head(list(models), w1, b1, u, gated, gate, recall)


def _cosines(gate: Gate, values: dict[str, npt.NDArray[Any]]) -> list[Any]:
    """Nodes from mf.last, a prompt's last layer, to mf.cosines with each point (see `Gate`)."""
    onnx = require_extra("onnx", "train")
    make = onnx.helper.make_node
    nodes, asked = [], "mf.last"
    if gate.projection is not None:
        values |= {
            "mf.projection": gate.projection.astype(np.float32),
            "mf.least": np.array(1e-9, np.float32),
        }
        nodes += [
            make("MatMul", ["mf.last", "mf.projection"], ["mf.short"]),
            make("ReduceL2", ["mf.short"], ["mf.length"], axes=[1], keepdims=1),
            make("Max", ["mf.length", "mf.least"], ["mf.divisor"]),
            make("Div", ["mf.short", "mf.divisor"], ["mf.asked"]),
        ]
        asked = "mf.asked"
    if gate.points.dtype != np.int8:
        return [*nodes, make("MatMul", [asked, "mf.points"], ["mf.cosines"])]
    values["mf.scale"] = np.array(gate.scale, np.float32)
    # Not DequantizeLinear: with it onnxruntime multiplies in 8 bits, which is .004 off.
    return [
        *nodes,
        make("Cast", ["mf.points"], ["mf.whole"], to=onnx.TensorProto.FLOAT),
        make("MatMul", [asked, "mf.whole"], ["mf.products"]),
        make("Mul", ["mf.products", "mf.scale"], ["mf.cosines"]),
    ]


def _recalled(gate: Gate, values: dict[str, npt.NDArray[Any]]) -> list[Any]:
    """Nodes from mf.cosines to mf.recalled float32[1, 1], what `Gate.recalled` gives."""
    make = require_extra("onnx", "train").helper.make_node
    known = np.zeros(len(gate.points)) if gate.values is None else gate.values
    values |= {
        "mf.values": known.astype(np.float32),
        "mf.neighbours": np.array([gate.neighbours], np.int64),
        "mf.temperature": np.array(gate.temperature, np.float32),
    }
    return [
        make("TopK", ["mf.cosines", "mf.neighbours"], ["mf.near", "mf.which"], axis=1),
        make("Div", ["mf.near", "mf.temperature"], ["mf.logits"]),
        make("Softmax", ["mf.logits"], ["mf.shares"], axis=1),
        make("Gather", ["mf.values", "mf.which"], ["mf.theirs"]),
        make("Mul", ["mf.shares", "mf.theirs"], ["mf.parts"]),
        make("ReduceSum", ["mf.parts", "mf.axes"], ["mf.recalled"], keepdims=1),
    ]


def _read_gate(found: Mapping[str, npt.NDArray[Any]]) -> Gate:
    optional: dict[str, Any] = {}
    if "mf.scale" in found:
        optional["scale"] = float(found["mf.scale"])
    if "mf.projection" in found:
        optional["projection"] = found["mf.projection"].copy()
    if "mf.values" in found:
        optional["values"] = found["mf.values"].copy()
        optional["neighbours"] = int(found["mf.neighbours"][0])
        optional["temperature"] = float(found["mf.temperature"])
    return Gate(
        found["mf.points"].T.copy(),
        float(found["mf.low"]),
        float(found["mf.high"]),
        (int(found["mf.starts"][0]), int(found["mf.ends"][0])),
        **optional,
    )


def _of_head(item: Any) -> bool:
    """Whether a node, an initializer or an output belongs to mf's head."""
    names = [*getattr(item, "output", [])] or [item.name]
    return any(name.startswith("mf.") or name in ("quality", "familiarity") for name in names)


def run_graph(graph: bytes | Path, feeds: Sequence[Feeds], outputs: Sequence[str]) -> list[Any]:
    """Outputs of a graph for n prompts, one run a prompt: a list of float32[n, width].

    feeds: the graph's inputs for each prompt, by name (see `Scorer.feeds`).
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # One thread a run and a run on each core: threads that share a run wait for each other.
    options.intra_op_num_threads = 1
    source = graph if isinstance(graph, bytes) else str(graph)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        rows = list(pool.map(lambda feed: session.run(list(outputs), feed), feeds))
    return [np.concatenate([row[i] for row in rows]) for i in range(len(outputs))]
