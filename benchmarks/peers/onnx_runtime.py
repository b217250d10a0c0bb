"""ONNX Runtime on the CPU, with inputs and outputs bound once: no allocation is on its clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]


class Session:
    """A graph bound to its inputs. Its threads spin, as they do by default: that favours this peer."""

    def __init__(
        self,
        model: bytes,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Mapping[str, Sequence[int]],
        threads: int,
    ) -> None:
        """``outputs``: the shape of each; all are float32."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._fed = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            for name, array in inputs.items()
        }
        self._got = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32)
            for name, shape in outputs.items()
        }
        for name, value in self._fed.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._got.items():
            self._binding.bind_ortvalue_output(name, value)

    def __call__(self) -> None:
        """Run once."""
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[Array]:
        """What the last run left, in the order the outputs were given."""
        return [value.numpy() for value in self._got.values()]


def tied(weights: Array, gates: int) -> Array:
    """Blocks of our ``gated_rnn`` along axis 0 → those of a GRU that resets before: [−W_z, W_r, W_h].

    Its update h = (1 − z̃) ∘ g + z̃ ∘ h becomes ours once z̃ = 1 − z, that is once the weights of z have changed
    sign; with one gate that gate is r as well.
    """
    hidden = len(weights) // (gates + 1)
    return np.concatenate([-weights[:hidden], weights[(gates - 1) * hidden :]])


def tied_gru(w_x: Array, w_h: Array, bias: Array, gates: int) -> bytes:
    """Recurrences as standard ``GRU`` nodes, one a stream.

    x0, … (T, B, I) → y0, … (T, 1, B, H) and h0, … (1, B, H).
    """
    streams, _, inputs = w_x.shape
    hidden = w_h.shape[2]
    nodes, initializers = [], []
    for s in range(streams):
        b = np.concatenate([tied(bias[s], gates), np.zeros(3 * hidden, np.float32)])
        weights = {f"w{s}": tied(w_x[s], gates), f"r{s}": tied(w_h[s], gates), f"b{s}": b}
        initializers += [numpy_helper.from_array(array[None], name) for name, array in weights.items()]
        names = [f"x{s}", *weights]
        nodes.append(
            helper.make_node("GRU", names, [f"y{s}", f"h{s}"], hidden_size=hidden, linear_before_reset=0)
        )
    return _model(
        nodes,
        {f"x{s}": ("T", "B", inputs) for s in range(streams)},
        {f"y{s}": ("T", 1, "B", hidden) for s in range(streams)}
        | {f"h{s}": (1, "B", hidden) for s in range(streams)},
        initializers,
    )


def multi_head_attention(pairs: int, heads: int, dim: int) -> bytes:
    """``com.microsoft.MultiHeadAttention`` for every pair: q0, k0, v0, … (B, T, N·D) → y0, … (B, Tq, N·D)."""
    width = heads * dim
    nodes = [
        helper.make_node(
            "MultiHeadAttention",
            [f"q{p}", f"k{p}", f"v{p}"],
            [f"y{p}"],
            domain="com.microsoft",
            num_heads=heads,
        )
        for p in range(pairs)
    ]
    return _model(
        nodes,
        {
            f"{name}{p}": ("B", f"{'queries' if name == 'q' else 'keys'}", width)
            for p in range(pairs)
            for name in "qkv"
        },
        {f"y{p}": ("B", "queries", width) for p in range(pairs)},
        [],
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, Sequence[str | int]],
    outputs: Mapping[str, Sequence[str | int]],
    initializers: list[onnx.TensorProto],
) -> bytes:
    def values(shapes: Mapping[str, Sequence[str | int]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
        ]

    graph = helper.make_graph(nodes, "peer", values(inputs), values(outputs), initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())
