"""What a bundle's graph may hold, looked up in its bytes before anything loads it.

A graph is a program: it may loop for ever, and read its weights from any file of the machine. So
the ONNX protobuf is walked field by field (numbers: onnx.proto3), and only what is listed passes:
operators without subgraphs, and weights that lie in the graph itself. How long a graph of these
operators runs is not bounded.
"""

from collections.abc import Iterator

MAX_NODES = 20_000
MAX_FIELDS = 1_000_000

# Of ONNX's own domain: what the exporters emit, and their kin that other encoders need.
_OPERATORS = """
    Abs Add And ArgMax ArgMin Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvInteger Cos
    CumSum DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
    Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual HardSigmoid
    HardSwish Identity IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    MatMul MatMulInteger Max Mean Min Mish Mod Mul Neg NonZero Not OneHot Or Pad Pow
    QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round ScatterElements
    ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum
    Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split())

# The fields that each message may have, and those of them that are messages. None leads back to a
# graph: no operator has subgraphs.
_MESSAGES: dict[str, tuple[frozenset[int], dict[int, str]]] = {
    "model": (frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14}), {7: "graph"}),
    "graph": (frozenset({1, 2, 5, 10, 11, 12, 13, 14, 16}), {1: "node", 5: "tensor"}),
    "node": (frozenset({1, 2, 3, 4, 5, 6, 7, 9}), {5: "attribute"}),
    "attribute": (frozenset({1, 2, 3, 4, 5, 7, 8, 9, 13, 20}), {5: "tensor"}),
    "tensor": (frozenset({1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16}), {}),
}


def check_graph(data: bytes) -> None:
    """Raises ValueError, which says what, where a serialized ONNX model may not be loaded."""
    try:
        _Walk().message(memoryview(data), "model")
    except IndexError:
        raise ValueError("is cut, or no ONNX graph") from None


class _Walk:
    """One pass over a model; counts what it has seen."""

    def __init__(self) -> None:
        self._fields = self._nodes = 0

    def message(self, data: memoryview, what: str) -> None:
        self._nodes += what == "node"
        if self._nodes > MAX_NODES:
            raise ValueError(f"has more than {MAX_NODES:,} nodes")
        elements = 1
        for number, value in self._read(data, what):
            if number in _MESSAGES[what][1]:
                self.message(_bytes(value), _MESSAGES[what][1][number])
            elif what == "node":
                _check_node(number, value)
            elif what == "tensor":
                elements = min(elements * _tensor_size(number, value), 2**64)
        # The densest elements have two bits.
        if what == "tensor" and elements > 4 * len(data):
            raise ValueError("has a tensor that claims more elements than its data holds")

    def _read(self, data: memoryview, what: str) -> Iterator[tuple[int, int | memoryview]]:
        """(field number, value) of a message: an int, or the bytes of any other value."""
        at, end = 0, len(data)
        while at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise ValueError(f"has more than {MAX_FIELDS:,} fields")
            tag, at = _varint(data, at)
            number, kind = tag >> 3, tag & 7
            if number not in _MESSAGES[what][0]:
                if what == "tensor" and number == 13:
                    raise ValueError("keeps weights in another file")
                raise ValueError(f"has the field {what} {number}, which no bundle may have")
            if kind == 0:
                value, at = _varint(data, at)
                yield number, value
                continue
            if kind == 2:
                size, at = _varint(data, at)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise ValueError("is no ONNX graph")
            if at + size > end:
                raise IndexError
            yield number, data[at : at + size]
            at += size


def _check_node(number: int, value: int | memoryview) -> None:
    if number == 4 and (name := _text(value)) not in OPERATORS:
        raise ValueError(f"uses the operator {name!r}, which no bundle may")
    if number == 7 and (domain := _text(value)) not in ("", "ai.onnx"):
        raise ValueError(f"uses an operator of the domain {domain!r}; only ONNX's own")


def _tensor_size(number: int, value: int | memoryview) -> int:
    """The factor that a field of a tensor puts on its number of elements."""
    if number == 14 and value != 0:
        raise ValueError("keeps weights in another file")
    if number != 1:
        return 1
    if not isinstance(value, int):
        raise ValueError("has a tensor with packed dimensions")
    return value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where the next field begins."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while byte > 127:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        shift += 7
        if shift > 70:
            raise ValueError("is no ONNX graph")
    return value, at + 1


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("is no ONNX graph")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)[:200]).decode("utf-8", "replace")
