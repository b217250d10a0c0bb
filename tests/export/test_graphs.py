"""Graphs are portable: standard operators at opset 17, IR 10, dynamic sizes, no trace of a machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from affectrt.backends.fusion import FUSION_INPUTS
from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.bundle import Bundle
from affectrt.errors import AffectError
from affectrt_export import graphs, opset, parity
from affectrt_training.encoders.voice import VoiceEncoder
from affectrt_training.recipes.starter.weights import Starter

GRAPHS = ("text.onnx", "audio.onnx", "vision.onnx", "fusion.onnx")


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_is_portable_and_tells_nothing_of_its_origin(bundle: Bundle, name: str) -> None:
    data = bundle.read(name)
    model = onnx.load_from_string(data)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 10
    assert not model.functions
    assert all(node.domain == "" and not node.metadata_props for node in model.graph.node)
    assert b".py" not in data


def test_inputs_and_outputs_have_the_names_and_sizes_of_the_bundle_format(bundle: Bundle) -> None:
    def signature(name: str) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        graph = onnx.load_from_string(bundle.read(name)).graph
        sides = []
        for side in (graph.input, graph.output):
            shapes = {
                v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in side
            }
            sides.append(shapes)
        return sides[0], sides[1]

    assert signature("text.onnx") == (
        {"input_ids": ["batch", "tokens"], "attention_mask": ["batch", "tokens"]},
        {"states": ["batch", "tokens", 32]},
    )
    assert signature("audio.onnx") == (
        {"log_mel": ["batch", "frames", 16]},
        {"states": ["batch", "rows", 10]},
    )
    assert signature("vision.onnx") == ({"faces": ["faces", 48, 48]}, {"states": ["faces", 8]})
    inputs, outputs = signature("fusion.onnx")
    assert tuple(inputs) == FUSION_INPUTS
    assert inputs["audio"] == ["batch", "audio_rows", 10]
    assert inputs["audio_lengths"] == ["batch"]
    assert outputs == {"sentiment": ["batch"], "emotion_logits": ["batch", 7]}


def test_the_recurrence_is_one_gru_per_stream_with_constant_weights(bundle: Bundle) -> None:
    graph = onnx.load_from_string(bundle.read("fusion.onnx")).graph
    constants = {tensor.name for tensor in graph.initializer}
    recurrences = [node for node in graph.node if node.op_type == "GRU"]
    assert len(recurrences) == 3
    assert all(set(node.input[1:4]) <= constants for node in recurrences)


def test_padding_does_not_change_a_text(text_fp32: bytes, starter: Starter) -> None:
    graph = OnnxGraph(text_fp32)
    ids = np.array([[2, 20, 21, 22, 3]])
    (alone,) = graph(input_ids=ids, attention_mask=np.ones_like(ids))
    padded = np.concatenate([ids, np.full((1, 3), 7)], axis=1)
    mask = np.array([[1] * 5 + [0] * 3])
    (among,) = graph(
        input_ids=np.vstack([padded, padded]), attention_mask=np.vstack([mask, np.ones_like(mask)])
    )
    np.testing.assert_allclose(among[0, :5], alone[0], atol=1e-5)
    assert np.abs(among[1, :5] - alone[0]).max() > 1e-3


def _model(node: Any, constants: dict[str, Any], shape: list[int], out: list[str | int], *more: str) -> Any:
    names = [*node.output]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, out) for name in names],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("node", "constants", "out"),
    [
        (helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1), {"axes": [1, 2]}, [2, 1, 1]),
        (helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=0), {"axes": [-1]}, [2, 4]),
        (helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0), {}, []),
        (helper.make_node("Split", ["x"], ["y", "z"], axis=2, num_outputs=2), {}, [2, 4, 3]),
        (helper.make_node("Split", ["x", "sizes"], ["y", "z"], axis=2), {"sizes": [3, 3]}, [2, 4, 3]),
        (helper.make_node("Pad", ["x", "pads"], ["y"]), {"pads": [0, 1, 0, 0, 1, 0]}, [2, 6, 6]),
        (helper.make_node("Relu", ["x"], ["y"]), {}, [2, 4, 6]),
    ],
)
def test_a_graph_computes_the_same_at_opset_17(
    node: Any, constants: dict[str, Any], out: list[str | int]
) -> None:
    model = _model(node, constants, [2, 4, 6], out)
    before = OnnxGraph(model.SerializeToString())
    opset.downgrade(model)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [17]
    after = OnnxGraph(model.SerializeToString())
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    for want, got in zip(before(x=x), after(x=x), strict=True):
        np.testing.assert_array_equal(got, want)


def test_an_operator_that_cannot_be_downgraded_is_named() -> None:
    node = helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"], name="the_pad")
    model = _model(node, {"pads": [1, 1], "axes": [1]}, [2, 4, 6], [2, 6, 6])
    with pytest.raises(AffectError, match=r"the_pad.*Pad") as caught:
        opset.downgrade(model)
    assert caught.value.code == "export.opset"


def test_a_graph_of_another_opset_is_refused() -> None:
    model = _model(helper.make_node("Relu", ["x"], ["y"]), {}, [2, 4, 6], [2, 4, 6])
    model.opset_import[0].version = 21
    with pytest.raises(AffectError, match=r"expected .*opset 18, got") as caught:
        opset.downgrade(model)
    assert caught.value.code == "export.opset"


def test_a_voice_encoder_of_full_size_takes_any_number_of_frames() -> None:
    """Where the small one of the other tests is traced without ado, this one once wanted nine."""
    voice = VoiceEncoder().eval().requires_grad_(False)
    made = graphs.audio_graph(voice, voice.config.n_mels, voice.config.dim)
    cases = parity.audio_cases(voice.config.n_mels, 80)
    assert parity.check_parity("audio", made.graph, voice, ("states",), cases, made.program) < 1e-4
