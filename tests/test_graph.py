"""What a graph may hold: hostile ones are refused in their bytes, before anything loads them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.errors import BundleFormatError, ExportError
from thriftroute.router.bundle import Bundle
from thriftroute.router.graph import MAX_FIELDS, MAX_NODES, OPERATORS, check_graph, part_of
from thriftroute.router.routers import CHECKPOINTS
from thriftroute.router.scorer import Scorer
from thriftroute.tests.conftest import BundleMaker, tiny_graph

onnx: Any = pytest.importorskip("onnx")
T = onnx.TensorProto
DATA = Path(__file__).parent / "data"


def graph_with(change: Callable[[Any], Any]) -> bytes:
    model = onnx.load_from_string(tiny_graph(2))
    change(model)
    return bytes(model.SerializeToString())


def node(*args: Any, **attributes: Any) -> Callable[[Any], Any]:
    return lambda model: model.graph.node.append(onnx.helper.make_node(*args, **attributes))


def external(location: str) -> Callable[[Any], Any]:
    def change(model: Any) -> None:
        table = model.graph.initializer[0]
        table.ClearField("raw_data")
        table.data_location = T.EXTERNAL
        entry = table.external_data.add()
        entry.key, entry.value = "location", location

    return change


def body() -> Any:
    """A graph that a Loop repeats: it passes its condition on."""
    info = onnx.helper.make_tensor_value_info
    same = onnx.helper.make_node("Identity", ["go"], ["goes"])
    inputs = [info("i", T.INT64, []), info("go", T.BOOL, [])]
    return onnx.helper.make_graph([same], "body", inputs, [info("goes", T.BOOL, [])])


def tensor_of_nothing(model: Any) -> None:
    model.graph.initializer.append(T(name="big", data_type=T.FLOAT, dims=[2**40, 2**30]))


def negative(model: Any) -> None:
    model.graph.initializer.append(T(name="big", data_type=T.FLOAT, dims=[-1]))


def quantized_domain(model: Any) -> None:
    node("Attention", ["x"], ["y"], domain="com.microsoft")(model)


def constant_elsewhere(model: Any) -> None:
    value = T(name="c", data_type=T.FLOAT, dims=[1], data_location=T.EXTERNAL)
    node("Constant", [], ["c"], value=value)(model)


def many_nodes(model: Any) -> None:
    for _ in range(MAX_NODES):
        node("Identity", ["a"], ["b"])(model)


def many_fields(model: Any) -> None:
    model.metadata_props.extend([onnx.StringStringEntryProto()] * MAX_FIELDS)


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "external": (external("data.bin"), "keeps weights in another file"),
    "external above": (external("../secret.bin"), "keeps weights in another file"),
    "constant elsewhere": (constant_elsewhere, "keeps weights in another file"),
    "loop": (node("Loop", ["", "go"], ["y"], body=body()), "uses the operator 'Loop'"),
    "scan": (node("Scan", ["x"], ["y"], body=body()), "uses the operator 'Scan'"),
    "subgraph": (node("Add", ["x"], ["y"], then=body()), "the field attribute 6"),
    "subgraphs": (node("Add", ["x"], ["y"], many=[body()]), "the field attribute 11"),
    "other domain": (quantized_domain, "uses the operator 'Attention'"),
    "known name there": (node("Add", ["x"], ["y"], domain="evil"), "the domain 'evil'"),
    "functions": (lambda m: m.functions.add(), "the field model 25"),
    "training": (lambda m: m.training_info.add(), "the field model 20"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "the field graph 15"),
    "bomb": (tensor_of_nothing, "claims more elements than its data holds"),
    "negative": (negative, "claims more elements than its data holds"),
    "nodes": (many_nodes, "more than 20,000 nodes"),
    "fields": (many_fields, "more than 1,000,000 fields"),
}
LARGE = {"nodes", "fields"}


@pytest.mark.parametrize(("change", "problem"), HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_graph(change: Callable[[Any], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_graph(graph_with(change))


@pytest.mark.parametrize("location", ["data.bin", "../secret.bin", "/etc/passwd"])
def test_a_bundle_has_no_weights_elsewhere(make_bundle: BundleMaker, location: str) -> None:
    # Not even where the manifest lists the file.
    files = {"model.onnx": graph_with(external(location)), "data.bin": b"\0" * 4096}
    bundle = make_bundle(files=files)
    for load in (lambda: Scorer.load(bundle), bundle.graph):
        with pytest.raises(BundleFormatError, match="keeps weights in another file"):
            load()


@pytest.mark.parametrize(
    "path",
    [CHECKPOINTS / "mf", CHECKPOINTS / "bert", DATA / "bundle_v1", DATA / "bundle_v2"],
    ids=lambda path: path.name,
)
def test_bundles_of_every_format_pass(path: Path) -> None:
    graph = Bundle.open(path).graph()
    assert {n.op_type for n in onnx.load_from_string(graph).graph.node} <= OPERATORS


@pytest.mark.parametrize("name", ["fast", "mf"])
def test_a_part_says_what_the_whole_says(name: str) -> None:
    import onnxruntime as ort

    bundle = Bundle.open(CHECKPOINTS / name)
    whole, feeds = bundle.graph(), Scorer.load(bundle).feeds("Prove that 2 + 2 = 4.")
    for output in ("quality", "familiarity", "representation"):
        part = part_of(whole, [output])
        assert part is not None
        assert part_of(whole, [output], most=0.01) is None
        check_graph(part)
        onnx.checker.check_model(onnx.load_from_string(part))
        assert len(part) < len(whole)
        session = ort.InferenceSession(part, providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_outputs()] == [output]
        [found] = session.run(None, feeds)
        [expected] = ort.InferenceSession(whole, providers=["CPUExecutionProvider"]).run(
            [output], feeds
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)  # fused otherwise


def test_no_part_gives_what_the_whole_does_not() -> None:
    assert part_of(tiny_graph(2), ["familiarity"]) is None


def test_operators_are_onnx_s_own_and_hold_no_graph() -> None:
    schemas = {s.name: s for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    assert set(schemas) >= OPERATORS
    kinds = {onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS}
    for name in OPERATORS:
        assert not kinds & {a.type for a in schemas[name].attributes.values()}, name


def test_location_that_says_here_passes() -> None:
    """`onnx` writes it when it moves weights into the graph."""

    def change(model: Any) -> None:
        model.graph.initializer[0].data_location = T.DEFAULT

    check_graph(graph_with(change))
    empty = T(name="none", data_type=T.FLOAT, dims=[1000, 0])
    check_graph(graph_with(lambda m: m.graph.initializer.append(empty)))


@pytest.mark.parametrize(
    "data",
    [b"\x3a\x05\x0a", b"\x3a", b"\x3b", b"\xff" * 40, b"\x38\x01", b"\x3a\xff\xff\xff\xff\x7f"],
    ids=["cut field", "cut model", "group", "endless number", "number for a graph", "huge length"],
)
def test_no_graph(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"graph|field"):
        check_graph(data)


def test_what_passes_holds_nothing_that_is_refused() -> None:
    """Of bytes changed at random, onnx's own parser finds nothing of it in those that pass."""
    draw = random.Random(0)
    plain = tiny_graph(2)
    bad = [graph_with(change) for name, (change, _) in HOSTILE.items() if name not in LARGE]
    passed = 0
    for _ in range(6000):
        data = bytearray(plain if draw.random() < 0.7 else draw.choice(bad))
        for _ in range(draw.randrange(4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            check_graph(bytes(data))
        except ValueError:
            continue
        passed += 1
        try:
            model = onnx.load_from_string(bytes(data))
        except Exception:  # noqa: BLE001 - no parser takes it: neither does onnxruntime
            continue
        assert not model.functions and not model.training_info
        tensors = list(model.graph.initializer)
        for one in model.graph.node:
            assert one.op_type in {*OPERATORS, ""} and one.domain in ("", "ai.onnx")
            assert not any(a.HasField("g") or a.graphs or a.tensors for a in one.attribute)
            tensors += [a.t for a in one.attribute]
        assert not any(t.external_data or t.data_location for t in tensors)
    assert passed > 100


def test_an_export_that_no_bundle_can_have(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from thriftroute.training.export import export_module

    class Volume(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            ids = (input_ids * attention_mask).float()
            return torch.det(ids[:, None] * ids[:, :, None])

    path = tmp_path / "graph.onnx"
    with pytest.raises(ExportError, match="its graph uses the operator 'Det'"):
        export_module(Volume(), path, outputs=["embedding"])
    assert list(tmp_path.iterdir()) == []


def test_a_graph_is_never_read_as_another_format(make_bundle: BundleMaker) -> None:
    """Bytes that begin like onnxruntime's own format, which is not looked into, are ONNX to it as
    they are to us: the beginning is a field that both pass over."""
    plain = make_bundle("plain")
    both = b"\x0a\x06\x00\x00ORTM" + plain.graph()
    check_graph(both)
    other = make_bundle("other", files={"model.onnx": both})
    assert Scorer.load(other).score("hello") == Scorer.load(plain).score("hello")
