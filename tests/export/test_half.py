"""fp16 graphs: products and tables alone are in half precision, inputs far beyond its range stay whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.errors import AffectError
from affectrt_export.half import MOVES, PRODUCTS, to_half


def model(weight: float = 1.0) -> bytes:
    """Normalised rows → two products with a transposition between, then softmax."""
    rng = np.random.default_rng(0)
    constants = {
        "thousandth": np.array(1e-4, np.float32),
        "first": weight * rng.normal(size=(8, 8)).astype(np.float32),
        "second": rng.normal(size=(4, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["x", "thousandth"], ["small"], name="scale"),
        helper.make_node("MatMul", ["small", "first"], ["a"], name="product"),
        helper.make_node("Transpose", ["a"], ["b"], name="move", perm=[1, 0]),
        helper.make_node("MatMul", ["b", "second"], ["c"], name="another"),
        helper.make_node("Add", ["a", "small"], ["d"], name="sum"),
        helper.make_node("Softmax", ["c"], ["y"], name="softmax"),
        helper.make_node("Relu", ["d"], ["z"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 4]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 8]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return bytes(proto.SerializeToString())


def test_products_are_half_and_all_else_is_full() -> None:
    proto = onnx.load_from_string(to_half(model()))
    typed = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*typed.graph.value_info, *typed.graph.output)}
    for node in proto.graph.node:
        if node.op_type != "Cast":
            half = node.op_type in PRODUCTS or node.name == "move"
            assert kinds[node.output[0]] == (TensorProto.FLOAT16 if half else TensorProto.FLOAT), node.name
    assert [node.op_type for node in proto.graph.node].count(
        "Cast"
    ) == 3  # into the products, out of a and of c
    assert {t.name: t.data_type for t in proto.graph.initializer}["first.fp16"] == TensorProto.FLOAT16
    assert "first" not in {t.name for t in proto.graph.initializer}
    assert "Relu" in MOVES  # but here it stands behind a sum, which is in full precision


def test_it_computes_nearly_the_same_also_of_inputs_beyond_the_range() -> None:
    x = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32) * 1e5
    before, after = (OnnxGraph(graph)(x=x) for graph in (model(), to_half(model())))
    for want, got in zip(before, after, strict=True):
        assert got.dtype == np.float32 and np.isfinite(got).all()
        assert 0 < np.abs(got - want).max() < 1e-2 * np.abs(want).max()


def test_a_table_is_half_and_what_stands_in_it_is_full_again() -> None:
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "table": rng.normal(size=(9, 4)).astype(np.float32),
        "places": np.arange(9),
        "w": rng.normal(size=(4, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="rows"),
        helper.make_node("Gather", ["places", "ids"], ["n"], name="whole numbers"),
        helper.make_node("Tanh", ["rows"], ["t"], name="tanh"),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [5])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 4]),
            helper.make_tensor_value_info("n", TensorProto.INT64, [5]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    half = to_half(proto.SerializeToString())
    kinds = {t.name: t.data_type for t in onnx.load_from_string(half).graph.initializer}
    assert kinds == {
        "table.fp16": TensorProto.FLOAT16, "places": TensorProto.INT64, "w.fp16": TensorProto.FLOAT16,
    }  # fmt: skip
    ids = np.array([0, 8, 3, 3, 5])
    y, n = OnnxGraph(half)(ids=ids)
    np.testing.assert_array_equal(n, ids)
    np.testing.assert_allclose(y, np.tanh(constants["table"][ids]) @ constants["w"], atol=1e-2)


def test_a_weight_beyond_the_range_and_a_graph_without_products_are_refused() -> None:
    with pytest.raises(AffectError, match="weight 'first' holds") as caught:
        to_half(model(weight=1e5))
    assert caught.value.code == "export.half"
    proto: Any = onnx.load_from_string(model())
    del proto.graph.node[1:]
    proto.graph.node.append(helper.make_node("Identity", ["small"], ["z"]))
    proto.graph.node.append(helper.make_node("Transpose", ["small"], ["y"]))
    with pytest.raises(AffectError, match="no product"):
        to_half(proto.SerializeToString())
