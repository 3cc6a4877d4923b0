"""Export: torch, fp32 and int8 agree, what disagrees is refused, and mf's head is plain algebra."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.router.errors import ExportError

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("sentence_transformers")

from thriftroute.training.encoder import LoadedEncoder, load_encoder  # noqa: E402
from thriftroute.training.export import (  # noqa: E402
    INT8_APGR_BOUND,
    INT8_SCORE_BOUND,
    TORCH_BOUND,
    Parity,
    export_module,
    graft_head,
    quantize,
    run_graph,
)

LENGTHS = (1, 2, 9, 40, 160)
GOOD = Parity(n=200, torch_fp32=1e-6, int8_score_mean=0.001, int8_score_max=0.2, int8_apgr=0.001)


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> LoadedEncoder:
    return load_encoder(str(tiny_encoder))


@pytest.fixture(scope="module")
def fp32(encoder: LoadedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "deep" / "fp32.onnx"
    export_module(encoder.module, path, outputs=["embedding"])
    assert [p.name for p in path.parent.iterdir()] == ["fp32.onnx"]
    return path


def rows() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[2, *rng.integers(5, 70, n).tolist(), 3] for n in LENGTHS]


def by_torch(encoder: LoadedEncoder) -> Any:
    with torch.no_grad():
        return np.concatenate(
            [
                encoder.module(ids, torch.ones_like(ids)).numpy()
                for ids in (torch.tensor([row]) for row in rows())
            ]
        )


def test_fp32_is_torch_at_every_length(encoder: LoadedEncoder, fp32: Path) -> None:
    assert np.abs(run_graph(fp32, rows(), ["embedding"])[0] - by_torch(encoder)).max() < 1e-5


def test_padding_does_not_change_the_fp32_graph(fp32: Path) -> None:
    """The mask is an input of the graph, and free axes are free."""
    import onnxruntime as ort

    session = ort.InferenceSession(fp32, providers=["CPUExecutionProvider"])
    ids = np.zeros((3, 50), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows()[:3]):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    padded = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0]
    assert np.abs(padded - run_graph(fp32, rows()[:3], ["embedding"])[0]).max() < 1e-5


def test_int8_is_smaller_and_close(encoder: LoadedEncoder, fp32: Path) -> None:
    graph = quantize(fp32)
    assert len(graph) < fp32.stat().st_size
    kinds = {node.op_type for node in onnx.load_from_string(graph).graph.node}
    assert kinds & {"MatMulInteger", "DynamicQuantizeMatMul"}
    got, expected = run_graph(graph, rows(), ["embedding"])[0], by_torch(encoder)
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((got * expected).sum(1) / norms).min() > 0.99
    assert np.abs(got - expected).max() > 0
    assert quantize(fp32) == graph


def test_int8_weights_keep_seven_bits(fp32: Path) -> None:
    """Full-range products overflow 16 bits where there is no VNNI."""
    model = onnx.load_from_string(quantize(fp32))
    int8 = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]
    assert int8
    assert max(int(np.abs(w.astype(int)).max()) for w in int8) <= 64


def test_a_module_that_does_not_export(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, ids: Any, mask: Any) -> Any:
            return torch.linalg.lu(ids.float() @ mask.float().T)[1]

    with pytest.raises(ExportError, match="does not export to ONNX"):
        export_module(Odd(), tmp_path / "odd.onnx", outputs=["embedding"])
    assert list(tmp_path.iterdir()) == []


def test_grafted_head_is_plain_algebra(encoder: LoadedEncoder, fp32: Path) -> None:
    rng = np.random.default_rng(1)
    w1, b1, u = rng.normal(size=(5, 32)), rng.normal(size=5), rng.normal(size=(3, 5))
    graph = graft_head(fp32.read_bytes(), w1, b1, u)
    onnx.checker.check_model(onnx.load_from_string(graph))
    quality, embedding = run_graph(graph, rows(), ["quality", "embedding"])
    assert quality.shape == (len(LENGTHS), 3)
    assert np.abs(embedding - by_torch(encoder)).max() < 1e-5
    assert np.abs(quality - ((embedding @ w1.T + b1) @ u.T)).max() < 1e-4


def test_the_head_can_be_read_from_the_graph(fp32: Path) -> None:
    """A model is added to a bundle by its vector alone: names and shapes are a promise."""
    rng = np.random.default_rng(1)
    w1, b1, u = (rng.normal(size=s).astype(np.float32) for s in ((5, 32), 5, (3, 5)))
    model = onnx.load_from_string(graft_head(fp32.read_bytes(), w1, b1, u))
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert (found["mf.w1"] == w1.T).all()
    assert (found["mf.b1"] == b1).all()
    assert (found["mf.u"] == u.T).all()
    assert {found[name].dtype for name in ("mf.w1", "mf.b1", "mf.u")} == {np.dtype(np.float32)}


class TestParity:
    def test_within_bounds(self) -> None:
        GOOD.check()
        dataclasses.replace(GOOD, int8_apgr=None).check()
        at = Parity(200, TORCH_BOUND, INT8_SCORE_BOUND, 1.0, -INT8_APGR_BOUND)
        at.check()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"torch_fp32": 2e-4}, r"differs from torch by 0\.0002 \(bound 0\.0001\)"),
            ({"torch_fp32": math.nan}, "differs from torch by nan"),
            ({"int8_score_mean": 0.051}, r"int8 moves scores by 0\.051 on average \(bound 0\.05"),
            ({"int8_score_mean": math.nan}, "int8 moves scores by nan"),
            ({"int8_apgr": 0.0201}, r"int8 moves APGR by \+0\.020 \(bound 0\.020\) on 200"),
            ({"int8_apgr": -0.03}, r"int8 moves APGR by -0\.030"),
            ({"int8_apgr": math.nan}, "int8 moves APGR by"),
        ],
    )
    def test_each_bound(self, change: dict[str, float], message: str) -> None:
        with pytest.raises(ExportError, match=message) as caught:
            dataclasses.replace(GOOD, **change).check()
        assert "nothing was written" in str(caught.value)

    def test_few_prompts_have_a_wider_apgr_bound(self) -> None:
        small = dataclasses.replace(GOOD, n=30, int8_apgr=0.09)
        small.check()
        with pytest.raises(ExportError, match=r"bound 0\.100"):
            dataclasses.replace(small, int8_apgr=0.11).check()
