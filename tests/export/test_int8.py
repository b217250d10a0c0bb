"""int8 graphs: close to fp32 on what they were calibrated for, smaller, standard, the same bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from affectrt.backends import FloatArray
from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.errors import AffectError
from affectrt_export import int8
from affectrt_export.parity import Case

CHANNELS, SIZE = 16, 12


def _random(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _graph(nodes: list[Any], weights: dict[str, FloatArray], *inputs: int | str, output: int = 4) -> bytes:
    """``x`` of shape ``inputs`` → ``y`` with ``output`` axes."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(inputs))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * output)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def faces() -> bytes:
    """Two convolutions with a ReLU in between, a product of activations, a small convolution as output."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["c2", "c2"], ["m"], name="product"),
        helper.make_node("Conv", ["m", "w3"], ["y"], name="last"),
    ]
    weights: dict[str, Any] = {
        "w1": _random(CHANNELS, 8, 3, 3),
        # Channels of very different size: each needs a scale of its own; one next to nothing, with a bias.
        "b1": _random(CHANNELS, seed=1),
        "w2": _random(CHANNELS, CHANNELS, 3, 3, seed=2)
        * np.geomspace(0.01, 3, CHANNELS)[:, None, None, None],
        "w3": _random(2, CHANNELS, 1, 1, seed=3),
    }
    weights["w1"][3] = 1e-30
    weights["w2"] = weights["w2"].astype(np.float32)
    return _graph(nodes, weights, "n", 8, SIZE, SIZE)


def _cases(count: int = 4) -> list[Case]:
    return [Case(f"case {k}", {"x": _random(2, 8, SIZE, SIZE, seed=10 + k)}) for k in range(count)]


def test_static_convolutions_and_products_are_close_and_small(faces: bytes) -> None:
    ranges = int8.measure_ranges(faces, "vision", _cases())
    assert list(ranges) == int8.ranged_values(faces, "vision") == ["x", "r1", "c2", "m"]
    assert ranges["r1"][0] == 0.0 < ranges["r1"][1]
    made = int8.to_int8(faces, "vision", ranges)
    assert made == int8.to_int8(faces, "vision", ranges)
    assert len(made) < 0.5 * len(faces)
    proto = onnx.load_from_string(made)
    assert {node.domain for node in proto.graph.node} == {""}
    assert Counter(node.op_type for node in proto.graph.node)["QuantizeLinear"] == 4
    (want,), (got,) = (OnnxGraph(graph, threads=1)(**_cases(6)[5].inputs) for graph in (faces, made))
    assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_runtimes_fuse_what_is_static(faces: bytes, tmp_path: Any) -> None:
    import onnxruntime as ort

    made = int8.to_int8(faces, "vision", int8.measure_ranges(faces, "vision", _cases()))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] == 2 and kinds["QLinearMatMul"] == 1
    assert kinds["Relu"] == 0


def test_what_is_kept_stays_as_it_was(faces: bytes) -> None:
    ranges = int8.measure_ranges(faces, "vision", _cases())
    names = int8.layers(faces, "vision")
    assert names == ["first", "second", "product"]
    untouched = int8.to_int8(faces, "vision", ranges, names)
    (want,), (got,) = (OnnxGraph(graph, threads=1)(**_cases()[0].inputs) for graph in (faces, untouched))
    assert np.array_equal(got, want)
    one = onnx.load_from_string(int8.to_int8(faces, "vision", ranges, ["first"]))
    weights = {tensor.name: tensor.data_type for tensor in one.graph.initializer}
    assert weights["w1"] == TensorProto.FLOAT and "w2" not in weights


def test_products_and_recurrences_are_weights_of_int8_alone() -> None:
    hidden, width = 24, 32
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="matmul"),
        helper.make_node("GRU", ["m", "wx", "wh"], ["h", ""], name="gru", hidden_size=hidden),
        helper.make_node("Squeeze", ["h", "axis"], ["s"], name="squeeze"),
        helper.make_node("Gemm", ["s0", "g"], ["y"], name="gemm", transB=1),
    ]
    nodes.insert(3, helper.make_node("Gather", ["s", "first"], ["s0"], name="step"))
    weights: dict[str, Any] = {
        "w": _random(width, width) * np.geomspace(0.01, 3, width).astype(np.float32),
        "wx": _random(1, 3 * hidden, width, seed=1) * np.float32(0.2),
        "wh": _random(1, 3 * hidden, hidden, seed=2) * np.float32(0.2),
        "axis": np.array([1]),
        "first": np.array(0),
        "g": _random(64, hidden, seed=3),
    }
    model = _graph(nodes, weights, "t", "b", width, output=2)
    assert int8.ranged_values(model, "fusion") == []
    assert int8.measure_ranges(model, "fusion", []) == {}
    assert int8.layers(model, "fusion") == ["matmul", "gru", "gemm"]
    made = int8.to_int8(model, "fusion", {})
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(made).graph.initializer}
    assert {name: value.dtype for name, value in stored.items() if name in weights} == {
        "axis": np.int64,
        "first": np.int64,
    }
    shapes = {name: stored[f"{name}.scale"].shape for name in ("w", "wx", "wh", "g")}
    assert shapes == {"w": (1, width), "wx": (1, 72, 1), "wh": (1, 72, 1), "g": (64, 1)}
    # Exactly the fp32 graph of the rounded weights: nothing but the weights has changed.
    rounded = {
        n: stored[f"{n}.int8"] * stored[f"{n}.scale"] if n in shapes else v for n, v in weights.items()
    }
    x = _random(5, 3, width, seed=4)
    (want,) = OnnxGraph(_graph(nodes, rounded, "t", "b", width, output=2), threads=1)(x=x)
    (got,) = OnnxGraph(made, threads=1)(x=x)
    assert np.abs(got - want).max() < 1e-6
    (exact,) = OnnxGraph(model, threads=1)(x=x)
    assert 0 < np.abs(got - exact).max() < 0.05 * np.abs(exact).max()


def test_without_a_range_or_with_nan_it_is_refused(faces: bytes) -> None:
    ranges = int8.measure_ranges(faces, "vision", _cases())
    with pytest.raises(AffectError, match="no range is known of 'r1'") as caught:
        int8.to_int8(faces, "vision", {name: span for name, span in ranges.items() if name != "r1"})
    assert caught.value.code == "export.calibration"
    broken = Case("example 'e3'", {"x": np.full((1, 8, SIZE, SIZE), np.nan, np.float32)})
    with pytest.raises(AffectError, match="NaN or infinity at 'x' on example 'e3'") as caught:
        int8.measure_ranges(faces, "vision", [*_cases(), broken])
    assert caught.value.code == "export.calibration"
