"""int8 for fusion models and face encoders: a quarter of the bytes, and faster where that was measured.

Weights are symmetric int8 with one scale per output channel. Where a kind of operator gains (:data:`STATIC`)
its activations are uint8 too, with ranges from calibration: ``QuantizeLinear``/``DequantizeLinear`` pairs
around it, which runtimes fuse. All other weights, recurrences among them, become numbers again when the graph
is loaded: ``Cast`` and ``Mul`` of constants, which ONNX Runtime folds, so they run as fast as in fp32; with
``DequantizeLinear`` it would repeat that at every run, which costs a quarter or more of the time
(``python -m benchmarks.fusion_int8``).
Text encoders are :mod:`affectrt_export.quantize`'s. What is written is standard operators alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.errors import AffectError
from affectrt_export.graphs import serialize
from affectrt_export.parity import Case
from affectrt_export.quantize import quantize_weight

STATIC: Mapping[str, frozenset[str]] = {
    "vision": frozenset({"Conv", "MatMul"}),
    "fusion": frozenset({"Conv"}),
}
"""Graph → operators with int8 activations: where they measure faster. A fusion model's matrix products are
too small: on a few rows, reading and writing int8 costs more than the product saves. The face encoder's, of
576 places by 576, are not."""

LEAST_WEIGHTS = 1024
"""Matrices with fewer numbers aren't worth the operators."""

WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "MatMul": (1,),
    "Gemm": (1,),
    "Conv": (1,),
    "GRU": (1, 2),
    "LSTM": (1, 2),
}
"""Operator → its inputs that are weights."""

Ranges = Mapping[str, tuple[float, float]]
"""Value of a graph → its least and its largest number."""

_MAX_BIAS = 2.0**30
"""Largest code of a bias: within int32, and room for the sum."""


def layers(model: bytes, graph: str) -> list[str]:
    """Names of the nodes that int8 would change, in the graph's order."""
    rewriter = _Rewriter(onnx.load_from_string(model).graph, STATIC.get(graph, frozenset()))
    return [
        node.name for node in rewriter.graph.node if rewriter.is_static(node) or rewriter.weights_of(node)
    ]


def ranged_values(model: bytes, graph: str) -> list[str]:
    """Names of the values whose ranges int8 needs, in the order in which the graph uses them."""
    rewriter = _Rewriter(onnx.load_from_string(model).graph, STATIC.get(graph, frozenset()))
    return list(dict.fromkeys(name for node in rewriter.graph.node for name in rewriter.ranged(node)))


def measure_ranges(model: bytes, graph: str, cases: Iterable[Case]) -> dict[str, tuple[float, float]]:
    """Least and largest number of every value whose range int8 needs. Raises ``export.calibration``."""
    proto, names = onnx.load_from_string(model), ranged_values(model, graph)
    given = {value.name for value in proto.graph.input}
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    found: dict[str, tuple[float, float]] = {}
    runner = OnnxGraph(serialize(proto), threads=1, name=graph) if names else None
    for case in cases if runner is not None else ():
        assert runner is not None
        values = dict(zip(runner.outputs, runner(**case.inputs), strict=True))
        for name in names:
            value = case.inputs[name] if name in given else values[name]
            low, high = float(value.min()), float(value.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise AffectError(
                    "export.calibration",
                    f"calibration: {graph} yields NaN or infinity at '{name}' on {case.what}; "
                    f"int8 has no range for that; check the data and the weights",
                )
            before = found.get(name, (low, high))
            found[name] = (min(low, before[0]), max(high, before[1]))
    return found


def to_int8(model: bytes, graph: str, ranges: Ranges, kept: Collection[str] = ()) -> bytes:
    """Rewrite a graph but for the nodes in ``kept``, which stay fp32.

    ``ranges``: those of :func:`measure_ranges`. Raises ``export.calibration`` when one is missing.
    """
    proto = onnx.load_from_string(model)
    rewriter = _Rewriter(proto.graph, STATIC.get(graph, frozenset()), ranges)
    for node in list(proto.graph.node):
        rewriter.take(node, node.name in kept)
    rewriter.finish()
    onnx.checker.check_model(proto, full_check=True)
    return serialize(proto)


class _Rewriter:
    """Goes through a graph's nodes in order and collects what replaces them."""

    def __init__(self, graph: Any, static: Collection[str], ranges: Ranges | None = None) -> None:
        self.graph = graph
        self.static = static
        self.ranges = ranges or {}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.results = {value.name for value in graph.output}
        self.nodes: list[Any] = []
        self.new: dict[str, npt.NDArray[Any]] = {}
        self.rounded: dict[str, str] = {}
        """Value → its name after a trip through uint8."""
        self.awaited: set[str] = set()
        """Results of static nodes that are rounded behind a ReLU."""

    def weights_of(self, node: Any) -> list[int]:
        """Inputs of a node that are large constant matrices."""
        return [
            index
            for index in WEIGHTS.get(node.op_type, ())
            if (tensor := self.constants.get(node.input[index])) is not None
            and tensor.data_type == TensorProto.FLOAT
            and len(tensor.dims) >= 2
            and np.prod(tensor.dims) >= LEAST_WEIGHTS
        ]

    def is_static(self, node: Any) -> bool:
        """Whether a node gets int8 activations: a convolution by large weights, a product without any."""
        if node.op_type not in self.static or node.output[0] in self.results:
            return False
        if node.op_type == "Conv":
            return bool(self.weights_of(node))
        return not any(name in self.constants for name in node.input)

    def ranged(self, node: Any) -> list[str]:
        """Values whose ranges a static node needs."""
        if not self.is_static(node):
            return []
        activations = [name for name in node.input if name and name not in self.constants]
        return [*activations, self._last(node)]

    def _last(self, node: Any) -> str:
        """A node's result, or that of the only ReLU that reads it: runtimes fuse the two."""
        readers = self.readers.get(node.output[0], [])
        relu = len(readers) == 1 and readers[0].op_type == "Relu"
        return str(readers[0].output[0] if relu else node.output[0])

    def take(self, node: Any, keep: bool) -> None:
        """Keep the node or replace it."""
        if not keep and self.is_static(node):
            self._static(node)
        elif not keep and (weights := self.weights_of(node)):
            for index in weights:
                node.input[index] = self._folded(node, node.input[index])
            self.nodes.append(node)
        else:
            self.nodes.append(node)
        if node.op_type == "Relu" and node.output[0] in self.awaited:
            self._round_result(node, node.output[0])

    def finish(self) -> None:
        """Put the new nodes and constants in place of the old ones."""
        read = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        new = [numpy_helper.from_array(value, name) for name, value in self.new.items()]
        for field, values in ((self.graph.node, self.nodes), (self.graph.initializer, [*kept, *new])):
            del field[:]
            field.extend(values)

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"int8_{output}", **attributes))
        return output

    def _static(self, node: Any) -> None:
        bias = len(node.input) > 2 and bool(node.input[2])
        names = [self._rounded(name) if name and name not in self.constants else name for name in node.input]
        if node.op_type == "Conv":
            step = self._scale(node.input[0])[0]
            names[1:] = self._weights(node, step, bias)
        for index, name in enumerate(names):
            node.input[index] = name
        self.nodes.append(node)
        if (last := self._last(node)) == node.output[0]:
            self._round_result(node, last)
        else:
            self.awaited.add(last)

    def _weights(self, node: Any, step: np.float32, biased: bool) -> list[str]:
        """Weights and bias of a convolution as int8 and int32, an output channel a scale."""
        name = node.input[1]
        weight = numpy_helper.to_array(self.constants[name])
        flat = weight.reshape(len(weight), -1)
        scales = quantize_weight(flat, 1)[1][:, 0]
        bias = numpy_helper.to_array(self.constants[node.input[2]]) if biased else np.zeros(len(weight))
        # Next to weights of almost nothing a bias would overflow its int32.
        scales = np.maximum(scales, np.abs(bias) / (step * _MAX_BIAS)).astype(np.float32)
        codes = np.clip(np.rint(flat / scales[:, None]), -127, 127).astype(np.int8).reshape(weight.shape)
        key = f"{node.output[0]}.weight"
        found = [self._dequantized(key, codes, scales)]
        if biased:
            steps = (scales * step).astype(np.float32)
            found.append(
                self._dequantized(f"{node.output[0]}.bias", np.rint(bias / steps).astype(np.int32), steps)
            )
        return found

    def _dequantized(self, key: str, codes: npt.NDArray[Any], scales: npt.NDArray[np.float32]) -> str:
        self.new[f"{key}.codes"], self.new[f"{key}.scale"] = codes, scales
        self.new[f"{key}.zero"] = np.zeros(len(scales), codes.dtype)
        return self._add(
            "DequantizeLinear", [f"{key}.codes", f"{key}.scale", f"{key}.zero"], f"{key}.float", axis=0
        )

    def _folded(self, node: Any, name: str) -> str:
        """A weight as int8 that the runtime makes float32 once, when it loads the graph."""
        if f"{name}.int8" not in self.new:
            weight = numpy_helper.to_array(self.constants[name])
            codes, scales = quantize_weight(weight, _shared_axes(node, weight.ndim))
            self.new[f"{name}.int8"], self.new[f"{name}.scale"] = codes, scales
            self._add("Cast", [f"{name}.int8"], f"{name}.codes", to=TensorProto.FLOAT)
            self._add("Mul", [f"{name}.codes", f"{name}.scale"], f"{name}.float")
        return f"{name}.float"

    def _scale(self, name: str) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of a value; zero is exact, as padding is."""
        if name not in self.ranges:
            raise AffectError("export.calibration", f"int8: no range is known of '{name}'; calibrate again")
        low, high = self.ranges[name]
        low, high = min(low, 0.0), max(high, 0.0)
        step = np.float32(max(high - low, 1e-6) / 255)
        return step, np.uint8(np.clip(np.rint(-low / step), 0, 255))

    def _round(self, name: str, target: str) -> None:
        self.new[f"{name}.step"], self.new[f"{name}.zero"] = map(np.asarray, self._scale(name))
        grid = [f"{name}.step", f"{name}.zero"]
        self._add("QuantizeLinear", [name if target != name else f"{name}.exact", *grid], f"{name}.uint8")
        self._add("DequantizeLinear", [f"{name}.uint8", *grid], target)
        self.rounded[name] = target

    def _rounded(self, name: str) -> str:
        if name not in self.rounded:
            self._round(name, f"{name}.rounded")
        return self.rounded[name]

    def _round_result(self, node: Any, name: str) -> None:
        """All who read a static node's result read it rounded: only so runtimes fuse the node."""
        node.output[0] = f"{name}.exact"
        self._round(name, name)


def _shared_axes(node: Any, rank: int) -> int | tuple[int, ...]:
    """The axes of a weight that share a scale: all but that of the output channels."""
    if node.op_type == "Conv":
        return tuple(range(1, rank))
    if node.op_type == "Gemm":
        return 1 if any(a.name == "transB" and a.i for a in node.attribute) else 0
    return 2 if node.op_type in ("GRU", "LSTM") else rank - 2
