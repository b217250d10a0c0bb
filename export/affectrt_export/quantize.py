"""int8 for Transformer text encoders: a quarter of the bytes, about three times the speed on one core.

Weights are symmetric int8 with one scale per output channel, lookup tables one per row. Activations are
quantized while running, with one scale per row, that is per token. ``DynamicQuantizeLinear``, which the usual
quantizers write, has one scale for a whole text, and a single outlying token then costs all others their
resolution: ``python -m benchmarks.text_int8`` compares the two. What is written is standard operators alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from affectrt.errors import AffectError
from affectrt_export.graphs import serialize

_LEVELS = 127
_MIDDLE = 128
"""Zero point of activations, which are uint8: every runtime's int8 matmul takes unsigned by signed."""
_TINY = 1e-9
"""Least scale: a row of zeros stays zeros."""
_SMALL_TABLE_ROWS = 16
"""A table of a few rows (token types) isn't worth the operators."""


def quantize_weight(
    weight: npt.NDArray[np.float32], axis: int | tuple[int, ...]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric int8 with one scale per slice: ``weight`` ≈ codes · scales.

    ``axis``: those that share a scale; they stay in the scales with size 1.
    """
    scales = np.abs(weight).max(axis=axis, keepdims=True) / np.float32(_LEVELS)
    scales[scales == 0] = 1.0
    return np.rint(weight / scales).astype(np.int8), scales


def layers(model: bytes) -> list[str]:
    """Names of the nodes that :func:`quantize` would change, in the graph's order."""
    graph = onnx.load_from_string(model).graph
    rewriter = _Rewriter(graph)
    return [node.name for node in graph.node if rewriter.gains(node)]


def quantize(model: bytes, kept: Collection[str] = ()) -> bytes:
    """Quantize every product with a constant matrix and every lookup in a large table of an ONNX graph.

    The nodes named in ``kept`` stay as they are. Raises ``export.quantize`` when there is nothing to do.
    """
    proto = onnx.load_from_string(model)
    rewriter = _Rewriter(proto.graph)
    if not any(rewriter.gains(node) for node in proto.graph.node):
        raise AffectError(
            "export.quantize", "int8: the graph has no constant matrix and no table to quantize"
        )
    for node in list(proto.graph.node):
        rewriter.take(node, node.name in kept)
    rewriter.finish()
    onnx.checker.check_model(proto, full_check=True)
    return serialize(proto)


class _Rewriter:
    """Goes through a graph's nodes in order and collects what replaces them."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.quantized_rows: set[str] = set()

    def gains(self, node: Any) -> bool:
        """Whether a node is a product with a constant matrix or a lookup in a large table."""
        if node.op_type == "MatMul":
            return self._is_matrix(node.input[1])
        return node.op_type == "Gather" and self._is_table(node)

    def take(self, node: Any, keep: bool) -> None:
        """Replace the node when it is one of those that gain, else keep it."""
        if keep or not self.gains(node):
            self.nodes.append(node)
        elif node.op_type == "MatMul":
            self._matmul(node.input[0], node.input[1], node.output[0])
        else:
            self._lookup(node.input[0], node.input[1], node.output[0])

    def finish(self) -> None:
        """Put the new nodes and constants in place of the old ones."""
        read = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        new = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        for field, values in ((self.graph.node, self.nodes), (self.graph.initializer, [*kept, *new])):
            del field[:]
            field.extend(values)

    def _is_matrix(self, name: str) -> bool:
        weight = self.weights.get(name)
        return weight is not None and weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2

    def _is_table(self, node: Any) -> bool:
        along_rows = all(a.i == 0 for a in node.attribute if a.name == "axis")
        return (
            self._is_matrix(node.input[0])
            and along_rows
            and self.weights[node.input[0]].dims[0] > _SMALL_TABLE_ROWS
        )

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.constants[name] = value
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def _quantized(self, name: str, axis: int) -> tuple[str, str]:
        codes, scales = quantize_weight(numpy_helper.to_array(self.weights[name]), axis)
        return self._constant(f"{name}.int8", codes), self._constant(f"{name}.scale", scales)

    def _lookup(self, table: str, indices: str, output: str) -> None:
        codes, scales = self._quantized(table, axis=1)
        row = self._node("Gather", [codes, indices], f"{output}.int8")
        row = self._node("Cast", [row], f"{output}.codes", to=TensorProto.FLOAT)
        scale = self._node("Gather", [scales, indices], f"{output}.scale")
        self._node("Mul", [row, scale], output)

    def _rows(self, x: str) -> tuple[str, str]:
        """Codes and scales of activations (…, T, D), a scale a row; once for all products that read them."""
        codes, scale = f"{x}.uint8", f"{x}.scale"
        if x not in self.quantized_rows:
            self.quantized_rows.add(x)
            least = self._constant("rows.least", np.array(_TINY, np.float32))
            step = self._constant("rows.step", np.array(1 / _LEVELS, np.float32))
            middle = self._constant("rows.middle", np.array(_MIDDLE, np.float32))
            size = self._node("Abs", [x], f"{x}.abs")
            # At opset 17 the axes of ReduceMax are an attribute.
            size = self._node("ReduceMax", [size], f"{x}.max", axes=[-1], keepdims=1)
            size = self._node("Mul", [size, step], f"{x}.step")
            self._node("Max", [size, least], scale)
            code = self._node("Div", [x, scale], f"{x}.scaled")
            code = self._node("Round", [code], f"{x}.round")
            code = self._node("Add", [code, middle], f"{x}.codes")
            self._node("Cast", [code], codes, to=TensorProto.UINT8)
        return codes, scale

    def _matmul(self, x: str, weight: str, output: str) -> None:
        columns, column_scale = self._quantized(weight, axis=0)
        rows, row_scale = self._rows(x)
        middle = self._constant("rows.zero_point", np.array(_MIDDLE, np.uint8))
        product = self._node("MatMulInteger", [rows, columns, middle], f"{output}.int32")
        product = self._node("Cast", [product], f"{output}.sum", to=TensorProto.FLOAT)
        # One factor after the other: ONNX Runtime takes a product of both for DynamicQuantizeLinear's single
        # scale, fuses it with the matmul and then uses the first row's scale for all rows.
        product = self._node("Mul", [product, row_scale], f"{output}.rows")
        self._node("Mul", [product, column_scale], output)
