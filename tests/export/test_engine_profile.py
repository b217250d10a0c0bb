"""The shapes that engines are built for, of every kind of modality, without TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf, nan
from typing import Any

import onnxruntime
import pytest

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt.manifest import Manifest, RowsSpec, TextSpec
from affectrt_export.engine.profile import profiles

NOTHING_ASKED: Mapping[Modality, float | None] = {}


def of_words(manifest: Manifest, words_per_row: int) -> Manifest:
    assert isinstance(manifest.text, TextSpec)
    return replace(manifest, text=replace(manifest.text, words_per_row=words_per_row))


def largest(manifest: Manifest, modality: Modality, asked: float | None = None) -> tuple[int, int]:
    """Steps of an encoder's input and of fusion's, at most."""
    shapes = profiles(manifest, {modality: asked})
    name = {"text": "input_ids", "audio": "log_mel", "vision": "faces"}[modality]
    encoder = shapes[modality][name][2] if modality in shapes else (0, 0)
    return encoder[0 if modality == "vision" else 1], shapes["fusion"][modality][2][1]


def test_every_graph_has_a_shape_for_every_input(
    tiny_manifest: Manifest, tiny_members: dict[str, bytes]
) -> None:
    shapes = profiles(tiny_manifest, NOTHING_ASKED)
    assert shapes.keys() == tiny_manifest.graphs.keys()
    for graph, member in tiny_manifest.graphs.items():
        session = onnxruntime.InferenceSession(tiny_members[member], providers=["CPUExecutionProvider"])
        assert {node.name for node in session.get_inputs()} == shapes[graph].keys()
        for node in session.get_inputs():
            for shape in shapes[graph][node.name]:
                assert len(shape) == len(node.shape)
                fixed = [(size, have) for size, have in zip(node.shape, shape, strict=True) if size == have]
                assert len(fixed) == sum(isinstance(size, int) for size in node.shape)


@pytest.mark.parametrize("window_s", [0.01, 4.0, 300.0])
@pytest.mark.parametrize("most", [NOTHING_ASKED, {"text": 3, "audio": 0.08, "vision": 1}])
@pytest.mark.parametrize("words_per_row", [0, 1, 5])
def test_the_usual_shape_lies_between_the_others(
    tiny_manifest: Manifest, window_s: float, most: Mapping[Modality, float], words_per_row: int
) -> None:
    manifest = replace(of_words(tiny_manifest, words_per_row), window_s=window_s)
    for inputs in profiles(manifest, most).values():
        for smallest, usual, largest_ in inputs.values():
            assert all(
                1 <= low <= mid <= high for low, mid, high in zip(smallest, usual, largest_, strict=True)
            )


def test_the_defaults_hold_what_the_sdk_sends(tiny_manifest: Manifest) -> None:
    """Windows of up to 20 s with both of their ends; an utterance as long as the encoder takes."""
    assert largest(tiny_manifest, "text") == (32, 32)
    assert largest(tiny_manifest, "audio") == (2001, 251)
    assert largest(tiny_manifest, "vision") == (201, 201)
    live = replace(tiny_manifest, window_s=30.0)
    assert largest(live, "audio") == (3001, 376) and largest(live, "vision") == (301, 301)


def test_limits_are_the_encoders_and_fusions(tiny_manifest: Manifest) -> None:
    assert largest(tiny_manifest, "text", 10) == (10, 10)
    assert largest(tiny_manifest, "audio", 2.5) == (251, 32)
    assert largest(tiny_manifest, "vision", 7) == (7, 7)


def test_rows_of_words_are_counted_in_words(tiny_manifest: Manifest) -> None:
    """However many words: the encoder reads them in passages of all the tokens that it takes."""
    assert largest(of_words(tiny_manifest, 1), "text") == (32, 500)
    assert largest(of_words(tiny_manifest, 5), "text") == (32, 500)
    assert largest(of_words(tiny_manifest, 5), "text", 51) == (32, 11)
    assert largest(of_words(tiny_manifest, 1), "text", 1) == (32, 1)


def test_rows_of_the_application(tiny_manifest: Manifest) -> None:
    manifest = replace(tiny_manifest, text=RowsSpec(300), audio=RowsSpec(74), vision=RowsSpec(35))
    shapes = profiles(manifest, NOTHING_ASKED)
    assert shapes.keys() == {"fusion"}
    assert shapes["fusion"]["audio"] == ((1, 1, 74), (4, 50, 74), (8, 500, 74))
    for modality in MODALITIES:
        assert largest(manifest, modality, 20) == (0, 20)


def test_a_modality_that_the_model_never_had(tiny_manifest: Manifest) -> None:
    manifest = replace(tiny_manifest, vision=None)
    shapes = profiles(manifest, NOTHING_ASKED)
    assert "vision" not in shapes and shapes["fusion"]["vision"] == ((1, 1, 1), (4, 1, 1), (8, 1, 1))
    with pytest.raises(AffectError, match="--max-vision: model tiny knows no vision, got 5") as caught:
        profiles(manifest, {"vision": 5})
    assert caught.value.code == "engine.limits"


@pytest.mark.parametrize(
    ("changes", "modality", "expected", "wrong"),
    [
        ({}, "text", "3 to 32 tokens", (2, 33, 4.5, nan, inf, -inf)),
        ({}, "audio", "0.08 to 60 seconds", (0.07, 61, nan, inf)),
        ({}, "vision", "1 to 4096 faces", (0, 4097, 1.5, nan)),
        ({"audio": RowsSpec(5)}, "audio", "1 to 4096 rows", (0, 2.5, 5000)),
    ],
)
def test_limits_that_make_no_sense(
    tiny_manifest: Manifest, changes: dict[str, Any], modality: Modality, expected: str, wrong: tuple[float]
) -> None:
    for asked in wrong:
        with pytest.raises(AffectError, match=f"--max-{modality}: expected {expected}, got") as caught:
            profiles(replace(tiny_manifest, **changes), {modality: asked})
        assert caught.value.code == "engine.limits"
