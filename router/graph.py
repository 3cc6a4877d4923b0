"""What a bundle's graph may hold, looked up in its bytes before anything loads it.

A graph is a program: it may loop for ever, and read its weights from any file of the machine. So
the ONNX protobuf is walked field by field (numbers: onnx.proto3), and only what is listed passes:
operators without subgraphs, and weights that lie in the graph itself. How long a graph of these
operators runs is not bounded.
"""

from collections.abc import Collection, Iterator

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
# The numbers of fields: of a model its graph; of a graph its nodes, weights, outputs, and what is
# said of values between; of a node its inputs and outputs. And where the names of weights and
# outputs stand in them.
_GRAPH, _NODE, _WEIGHTS, _OUTPUT, _ABOUT_VALUES = 7, 1, 5, 12, 13
_NODES_INPUT, _NODES_OUTPUT = 1, 2
_NAMES = {_WEIGHTS: 8, _OUTPUT: 1}


def check_graph(data: bytes) -> None:
    """Raises ValueError, which says what, where a serialized ONNX model may not be loaded."""
    todo, fields, nodes = [(memoryview(data), "model")], 0, 0
    while todo:
        message, what = todo.pop()
        known, inner = _MESSAGES[what]
        nodes += what == "node"
        if nodes > MAX_NODES:
            raise ValueError(f"has more than {MAX_NODES:,} nodes")
        elements = 1
        for number, value in _read(message):
            fields += 1
            if fields > MAX_FIELDS:
                raise ValueError(f"has more than {MAX_FIELDS:,} fields")
            if number not in known and (what, number) != ("tensor", 13):
                raise ValueError(f"has the field {what} {number}, which no bundle may have")
            if number in inner:
                todo.append((_bytes(value), inner[number]))
            elif what == "node":
                _check_node(number, value)
            elif what == "tensor":
                elements = min(elements * _tensor_size(number, value), 2**64)
        # The densest elements have two bits.
        if what == "tensor" and elements > 4 * len(message):
            raise ValueError("has a tensor that claims more elements than its data holds")


def part_of(data: bytes, outputs: Collection[str], most: float = 1.0) -> bytes | None:
    """Of a model that `check_graph` lets pass, what leads to these outputs of its graph alone; None
    where it has not got them, or where that is more than the share `most` of its bytes."""
    model = [*_read(memoryview(data))]
    fields = [field for n, value in model if n == _GRAPH for field in _read(_bytes(value))]
    asked = {name.encode() for name in outputs}
    if not asked <= {name for n, v in fields if n == _OUTPUT for name in _names(v, _NAMES[n])}:
        return None
    kept, wanted = set[int](), {*asked}
    for at in reversed(range(len(fields))):  # a node stands behind those whose outputs it takes
        number, value = fields[at]
        if number == _NODE and wanted & _names(value, _NODES_OUTPUT):
            wanted |= _names(value, _NODES_INPUT) - {b""}  # which stands for none
            kept.add(at)
    for at, (number, value) in enumerate(fields):
        if number in _NAMES:
            if _names(value, _NAMES[number]) <= (wanted if number == _WEIGHTS else asked):
                kept.add(at)
        elif number not in {_NODE, _ABOUT_VALUES}:
            kept.add(at)
    whole = [fields[at] for at in sorted(kept)]
    if sum(len(value) for _, value in whole if not isinstance(value, int)) > most * len(data):
        return None
    rest = [_written(number, value) for number, value in model if number != _GRAPH]
    return b"".join((*rest, _written(_GRAPH, b"".join(_written(*field) for field in whole))))


def _names(message: int | memoryview, field: int) -> set[bytes]:
    """The names in a field of a message."""
    return {bytes(_bytes(value)) for number, value in _read(_bytes(message)) if number == field}


def _written(number: int, value: int | bytes | memoryview) -> bytes:
    """A field, of a number or of bytes, as protobuf has it."""
    if isinstance(value, int):
        return _digits(number << 3) + _digits(value)
    return b"".join((_digits(number << 3 | 2), _digits(len(value)), value))


def _digits(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes((*found, value))


def _read(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message: an int, or the bytes of any other value."""
    at, end = 0, len(data)
    try:
        while at < end:
            tag, at = _varint(data, at)
            kind, size = tag & 7, 0
            if kind in (0, 2):
                size, at = _varint(data, at)
            if kind == 0:
                yield tag >> 3, size
                continue
            if kind not in (1, 2, 5):
                raise ValueError("is no ONNX graph")
            size = {1: 8, 5: 4}.get(kind, size)
            if at + size > end:
                raise IndexError
            yield tag >> 3, data[at : at + size]
            at += size
    except IndexError:
        raise ValueError("is cut, or no ONNX graph") from None


def _check_node(number: int, value: int | memoryview) -> None:
    if number == 4 and (name := _text(value)) not in OPERATORS:
        raise ValueError(f"uses the operator {name!r}, which no bundle may")
    if number == 7 and (domain := _text(value)) not in ("", "ai.onnx"):
        raise ValueError(f"uses an operator of the domain {domain!r}; only ONNX's own")


def _tensor_size(number: int, value: int | memoryview) -> int:
    """The factor that a field of a tensor puts on its number of elements."""
    if number == 13 or (number == 14 and value != 0):
        raise ValueError("keeps weights in another file")
    if number != 1:
        return 1
    if not isinstance(value, int):
        raise ValueError("has a tensor with packed dimensions")
    return value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where the next field begins."""
    value = 0
    for shift in range(0, 71, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("is no ONNX graph")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("is no ONNX graph")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)[:200]).decode("utf-8", "replace")
