"""The parity gate lets equal graphs pass and refuses every kind of wrong one by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from affectrt.affect import MODALITIES
from affectrt.backends.fusion import FUSION_OUTPUTS
from affectrt.bundle import Bundle
from affectrt.calibration import PRESENCE_KEYS, presence_key
from affectrt.errors import AffectError
from affectrt.features.text import Tokenizer
from affectrt_export import parity
from affectrt_export.gate import probe_sentences
from affectrt_training.recipes.starter.weights import Starter


@pytest.fixture(scope="module")
def fusion_cases(starter: Starter) -> list[parity.Case]:
    rng = np.random.default_rng(0)
    rows = {
        m: rng.normal(size=(n, starter.meta[m]["dim"])).astype(np.float32)
        for m, n in zip(MODALITIES, (24, 60, 40), strict=True)
    }
    return list(parity.fusion_cases(rows))


def _changed(graph: bytes, change: Callable[[Any], None]) -> bytes:
    model = onnx.load_from_string(graph)
    change(model.graph)
    return bytes(model.SerializeToString())


def _reweigh(name: str, factor: float) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        for tensor in graph.initializer:
            if tensor.name == name:
                value = numpy_helper.to_array(tensor).copy()
                value.flat[0] = value.flat[0] * factor + (factor - 1)
                tensor.CopyFrom(numpy_helper.from_array(value, name))
                return
        raise AssertionError(f"no weight {name}")

    return change


def _swap(field: str, first: int, second: int) -> Callable[[Any], None]:
    """Swap two inputs or outputs by renaming what the nodes read or write."""

    def change(graph: Any) -> None:
        values = getattr(graph, field)
        a, b = values[first].name, values[second].name
        names = {a: b, b: a}
        for node in graph.node:
            for side in (node.input, node.output):
                side[:] = [names.get(name, name) for name in side]

    return change


def _refused(
    match: str, graph: bytes, module: Any, outputs: tuple[str, ...], cases: list[parity.Case]
) -> None:
    with pytest.raises(AffectError, match=match) as caught:
        parity.check_parity("tried.onnx", graph, module, outputs, cases)
    assert caught.value.code == "export.parity"
    assert "tried.onnx" in caught.value.message
    assert "\n" not in caught.value.message


def test_an_honest_fusion_graph_passes(
    starter: Starter, bundle: Bundle, fusion_cases: list[parity.Case]
) -> None:
    largest = parity.check_parity(
        "fusion.onnx", bundle.read("fusion.onnx"), starter.fusion, FUSION_OUTPUTS, fusion_cases
    )
    assert 0 < largest < 1e-5


def test_one_wrong_weight_is_refused(
    starter: Starter, bundle: Bundle, fusion_cases: list[parity.Case]
) -> None:
    graph = _changed(bundle.read("fusion.onnx"), _reweigh("sentiment.bias", 1.001))
    _refused(
        r"output 'sentiment' on 1 rows \(text \[1, 1, 32\].*differ by 0\.001.*at most 0\.0001",
        graph,
        starter.fusion,
        FUSION_OUTPUTS,
        fusion_cases,
    )


def test_a_nan_weight_of_the_graph_is_refused(
    starter: Starter, bundle: Bundle, fusion_cases: list[parity.Case]
) -> None:
    graph = _changed(bundle.read("fusion.onnx"), _reweigh("emotion.bias", float("nan")))
    _refused(
        "'emotion_logits' .*NaN or infinity from the graph",
        graph,
        starter.fusion,
        FUSION_OUTPUTS,
        fusion_cases,
    )


def test_swapped_outputs_are_refused(
    starter: Starter, bundle: Bundle, fusion_cases: list[parity.Case]
) -> None:
    def swap(graph: Any) -> None:
        _swap("output", 0, 1)(graph)
        shapes = [output.type.SerializeToString() for output in graph.output]
        for output, shape in zip(graph.output, reversed(shapes), strict=True):
            output.type.ParseFromString(shape)

    graph = _changed(bundle.read("fusion.onnx"), swap)
    _refused(
        r"'sentiment' .*shape \[1, 7\], PyTorch \[1\]", graph, starter.fusion, FUSION_OUTPUTS, fusion_cases
    )


def test_outputs_in_another_order_are_refused(
    starter: Starter, bundle: Bundle, fusion_cases: list[parity.Case]
) -> None:
    with pytest.raises(AffectError) as caught:
        parity.check_parity(
            "f", bundle.read("fusion.onnx"), starter.fusion, FUSION_OUTPUTS[::-1], fusion_cases
        )
    assert caught.value.code == "graph.signature"


def test_a_graph_that_reads_padding_is_refused(starter: Starter, bundle: Bundle) -> None:
    """The cases hold something past every length, so a graph that ignores lengths can't pass."""
    rng = np.random.default_rng(0)
    rows = {m: rng.normal(size=(9, starter.meta[m]["dim"])).astype(np.float32) for m in MODALITIES}
    graph = _changed(
        bundle.read("fusion.onnx"), _swap("input", 3, 5)
    )  # audio by vision's lengths and vice versa
    _refused(
        "graph and PyTorch differ by", graph, starter.fusion, FUSION_OUTPUTS, list(parity.fusion_cases(rows))
    )


def test_text_is_tried_on_every_length_and_in_threes(starter: Starter) -> None:
    tokenizer = Tokenizer.from_json(starter.tokenizer_json, 24)
    cases = list(parity.text_cases(tokenizer, probe_sentences(), 24))
    masks = [case.inputs["attention_mask"] for case in cases]
    assert {mask.shape[1] for mask in masks if len(mask) == 1} == set(range(1, 25))
    assert any(len(mask) == 3 and mask.sum(1).tolist() == [24, 12, 1] for mask in masks)


def test_fusion_is_tried_on_all_patterns_alone_and_in_threes(fusion_cases: list[parity.Case]) -> None:
    alone: set[str] = set()
    among: set[str] = set()
    for case in fusion_cases:
        lengths = np.stack([case.inputs[f"{m}_lengths"] for m in MODALITIES], axis=1)
        keys = {presence_key([m for m, n in zip(MODALITIES, row, strict=True) if n]) for row in lengths}
        (alone if len(lengths) == 1 else among).update(keys)
        assert all(case.inputs[m].shape[1] >= 1 for m in MODALITIES)
    assert alone == among == set(PRESENCE_KEYS)


def test_lengths_reach_from_one_to_the_longest() -> None:
    assert parity.lengths_to(1) == [1]
    lengths = parity.lengths_to(2000)
    assert lengths[:40] == list(range(1, 41))
    assert lengths[-2:] == [1999, 2000]


def test_nothing_to_compare_is_refused(starter: Starter, bundle: Bundle) -> None:
    _refused("no case", bundle.read("fusion.onnx"), starter.fusion, FUSION_OUTPUTS, [])
