"""int8 text: close to fp32 whatever the text, a quarter of the size, standard operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from affectrt.backends import FloatArray
from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.errors import AffectError
from affectrt_export.quantize import quantize, quantize_weight


def _matmul(weight: FloatArray) -> bytes:
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "T", columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return bytes(model.SerializeToString())


def test_a_weight_keeps_its_scale_in_every_channel() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(64, 5)) * [1e-4, 1e-2, 1, 100, 0]).astype(np.float32)
    codes, scales = quantize_weight(weight, axis=0)
    assert codes.dtype == np.int8
    assert scales.shape == (1, 5)
    assert np.abs(codes).max() == 127
    # Rounding is off by half a step at most, in every channel by its own step.
    assert (np.abs(codes * scales - weight) <= scales / 2 * 1.0001).all()


def test_a_product_equals_its_definition_in_numpy() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(48, 10)).astype(np.float32)
    x = rng.normal(size=(2, 7, 48)).astype(np.float32) * rng.uniform(0.01, 50, (2, 7, 1)).astype(np.float32)
    (got,) = OnnxGraph(quantize(_matmul(weight)))(x=x)
    codes, scales = quantize_weight(weight, axis=0)
    steps = np.abs(x).max(-1, keepdims=True) / 127
    want = (np.rint(x / steps).astype(np.int32) @ codes.astype(np.int32)) * steps * scales
    # One code may round the other way where x / step ends in one half: that is one step of one weight.
    assert (np.abs(got - want) <= 1.01 * steps * np.abs(weight).max()).all()
    np.testing.assert_allclose(np.median(np.abs(got - want) / steps), 0, atol=1e-3)


def test_a_loud_token_leaves_the_resolution_of_the_others_alone() -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(48, 10)).astype(np.float32)
    x = rng.normal(size=(1, 6, 48)).astype(np.float32)
    graph = OnnxGraph(quantize(_matmul(weight)))
    (quiet,) = graph(x=x)
    x[0, 5] *= 1000
    (loud,) = graph(x=x)
    np.testing.assert_array_equal(loud[0, :5], quiet[0, :5])


def test_a_row_of_zeros_stays_zero() -> None:
    weight = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)
    (y,) = OnnxGraph(quantize(_matmul(weight)))(x=np.zeros((1, 2, 8), np.float32))
    assert not y.any()


def test_the_text_graph_shrinks_and_stays_close(text_fp32: bytes) -> None:
    int8 = quantize(text_fp32)
    model = onnx.load_from_string(int8)
    assert all(node.domain == "" for node in model.graph.node)
    assert [entry.version for entry in model.opset_import] == [17]
    matrices = [t for t in model.graph.initializer if len(t.dims) == 2 and min(t.dims) > 2]
    assert matrices
    assert all(tensor.data_type == TensorProto.INT8 for tensor in matrices)
    assert len(int8) < 0.5 * len(text_fp32)
    ids = np.arange(5, 25)[None]
    mask = np.ones_like(ids)
    (want,), (got,) = (OnnxGraph(g)(input_ids=ids, attention_mask=mask) for g in (text_fp32, int8))
    cosine = (want * got).sum(-1) / np.linalg.norm(want, axis=-1) / np.linalg.norm(got, axis=-1)
    assert cosine.min() > 0.99
    assert np.abs(want - got).max() > 1e-4  # it is another graph, after all


def test_int8_is_the_same_for_a_text_alone_and_among_others(text_fp32: bytes) -> None:
    graph = OnnxGraph(quantize(text_fp32))
    ids = np.arange(5, 25)[None]
    (alone,) = graph(input_ids=ids, attention_mask=np.ones_like(ids))
    three = np.vstack([ids, ids[:, ::-1], ids * 2])
    (among,) = graph(input_ids=three, attention_mask=np.ones_like(three))
    np.testing.assert_allclose(among[0], alone[0], atol=1e-4)


def test_the_same_graph_gives_the_same_bytes(text_fp32: bytes) -> None:
    assert quantize(text_fp32) == quantize(text_fp32)


def test_a_graph_with_nothing_to_quantize_is_refused() -> None:
    model = onnx.load_from_string(_matmul(np.eye(4, dtype=np.float32)))
    model.graph.node[0].op_type = "Add"
    with pytest.raises(AffectError, match="no constant matrix") as caught:
        quantize(model.SerializeToString())
    assert caught.value.code == "export.quantize"
