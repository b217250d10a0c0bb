"""fp16: products, convolutions and tables in half precision, everything else as it was.

A graph's inputs and outputs stay float32, and so do normalisation, softmax, sums, recurrences and
element-wise functions: raw features reach beyond 65504, where fp16 ends, and sums lose what is small. Casts
are explicit, so that every runtime computes the same, strongly typed TensorRT networks too. What only moves
numbers between two products stays in half precision, which spares the casts.

``onnxruntime.transformers.float16`` casts at the inputs already, before anything is normalised: with raw
voice features that is infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from affectrt.errors import AffectError
from affectrt_export.graphs import serialize

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
"""Operators that gain: they hold nearly all of the arithmetic and of the weights."""

MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Relu"})
"""Operators of one tensor (their first input) that change no number, or only its sign."""


def to_half(model: bytes) -> bytes:
    """Rewrite a graph. Raises ``export.half`` when it has no product or a weight beyond fp16's range."""
    proto = onnx.load_from_string(model)
    rewriter = _Rewriter(proto.graph)
    for node in proto.graph.node:
        rewriter.take(node)
    rewriter.finish()
    onnx.checker.check_model(proto, full_check=True)
    return serialize(proto)


class _Rewriter:
    """Goes through a graph's nodes in order. A value may exist in half precision, in full, or in both."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[np.float16]] = {}
        self.halves: set[str] = set()
        """Values that there are in half precision."""
        self.pending: set[str] = set()
        """Of those, the ones that there aren't in full."""
        self.changed = False

    def take(self, node: Any) -> None:
        """Keep the node, in half precision where that gains."""
        if node.op_type in PRODUCTS:
            self.changed = True
            self._halved(node, list(node.input))
        elif self._moves(node):
            self._halved(node, [node.input[0]])
        else:
            for name in node.input:
                self._full(name)
            self.nodes.append(node)

    def _moves(self, node: Any) -> bool:
        """Whether a node passes on what is in half precision, or rows of a table of weights.

        The embeddings of a text encoder are such a table, and half of its bytes.
        """
        if node.op_type == "Gather" and node.input[0] in self.weights:
            table = self.weights[node.input[0]]
            return bool(table.data_type == TensorProto.FLOAT and len(table.dims) == 2)
        return node.op_type in MOVES and node.input[0] in self.halves

    def finish(self) -> None:
        """Put the new nodes and constants in place of the old ones."""
        if not self.changed:
            raise AffectError("export.half", "fp16: the graph has no product or convolution to convert")
        for output in self.graph.output:
            self._full(output.name)
        read = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        new = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        for field, values in ((self.graph.node, self.nodes), (self.graph.initializer, [*kept, *new])):
            del field[:]
            field.extend(values)

    def _halved(self, node: Any, numbers: list[str]) -> None:
        """The node with these of its inputs, and its output, in half precision."""
        twins = {name: self._half(name) for name in numbers if name}
        (output,) = node.output
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(twins.get(name, name) for name in node.input)
        copy.output.append(f"{output}.fp16")
        self.nodes.append(copy)
        self.halves.add(output)
        self.pending.add(output)

    def _half(self, name: str) -> str:
        twin = f"{name}.fp16"
        if name in self.weights:
            if twin not in self.constants:
                self.constants[twin] = _rounded(name, numpy_helper.to_array(self.weights[name]))
        elif name not in self.halves:
            self.halves.add(name)
            self._cast(name, twin, TensorProto.FLOAT16)
        return twin

    def _full(self, name: str) -> None:
        if name in self.pending:
            self.pending.remove(name)
            self._cast(f"{name}.fp16", name, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind))


def _rounded(name: str, weight: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    if np.abs(weight).max(initial=0.0) > np.finfo(np.float16).max:
        raise AffectError(
            "export.half",
            f"fp16: weight '{name}' holds {np.abs(weight).max():.3g}, beyond its range; export as fp32",
        )
    return weight.astype(np.float16)
