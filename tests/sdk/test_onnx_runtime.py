"""Graphs: what doesn't fit is named, and one graph serves several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from affectrt.backends import Array
from affectrt.backends.onnx_runtime import OnnxGraph, lacks_vnni
from affectrt.errors import AffectError


@pytest.fixture(scope="module")
def graph(tiny_members: dict[str, bytes]) -> OnnxGraph:
    return OnnxGraph(tiny_members["vision.onnx"], threads=1, name="vision")


def test_runs(graph: OnnxGraph) -> None:
    (states,) = graph(faces=np.ones((3, 48, 48), np.float32))
    assert states.shape == (3, 8)
    assert states.dtype == np.float32
    assert (graph.inputs, graph.outputs) == (("faces",), ("states",))


@pytest.mark.parametrize(
    ("inputs", "needle"),
    [
        ({}, "got none"),
        ({"face": np.ones((3, 48, 48), np.float32)}, "expected inputs faces, got face"),
        ({"faces": np.ones((3, 48, 48), np.float32), "more": np.ones(1)}, "got faces, more"),
        ({"faces": np.ones((3, 48, 48), np.float64)}, "got float64"),
        ({"faces": np.ones((48, 48), np.float32)}, "of shape [48, 48]"),
        ({"faces": np.ones((3, 48, 47), np.float32)}, "of shape [3, 48, 47]"),
    ],
)
def test_signature(graph: OnnxGraph, inputs: dict[str, Array], needle: str) -> None:
    with pytest.raises(AffectError) as caught:
        graph(**inputs)
    assert caught.value.code == "graph.signature"
    assert "vision" in caught.value.message
    assert needle in caught.value.message


def test_expect(graph: OnnxGraph) -> None:
    graph.expect(["faces"], ["states"])
    for inputs, outputs in ((["face"], ["states"]), (["faces"], ["state"]), (["faces", "x"], ["states"])):
        with pytest.raises(AffectError) as caught:
            graph.expect(inputs, outputs)
        assert caught.value.code == "graph.signature"


@pytest.mark.parametrize("model", [b"", b"not a graph", b"\x08\x0a" * 50])
def test_invalid(model: bytes) -> None:
    with pytest.raises(AffectError) as caught:
        OnnxGraph(model, threads=1)
    assert caught.value.code == "graph.invalid"
    assert "\n" not in caught.value.message


def test_invalid_threads(tiny_members: dict[str, bytes]) -> None:
    with pytest.raises(AffectError) as caught:
        OnnxGraph(tiny_members["vision.onnx"], threads=0)
    assert caught.value.code == "graph.threads"


def test_failing_run_is_one_line(tiny_members: dict[str, bytes]) -> None:
    graph = OnnxGraph(tiny_members["text.onnx"], threads=1, name="text")
    ids = np.full((1, 4), 10**6, np.int64)  # beyond the embedding table
    with pytest.raises(AffectError) as caught:
        graph(input_ids=ids, attention_mask=np.ones_like(ids))
    assert caught.value.code == "graph.failed"
    assert "\n" not in caught.value.message


def test_shared_between_threads(graph: OnnxGraph) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.random((1 + k % 4, 48, 48), np.float32) for k in range(64)]
    expected = [graph(faces=batch)[0] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda batch: graph(faces=batch)[0], batches))
    for want, got in zip(expected, results, strict=True):
        np.testing.assert_array_equal(want, got)


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "lacks"),
    [
        ("x86_64", "flags : fpu sse2 avx2 fma", True),
        ("x86_64", "flags : fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "flags : fpu avx2 avx_vnni", False),
        ("AMD64", "", True),  # not Linux: nobody tells, so be careful
        ("aarch64", "Features : fp asimd", False),
    ],
)
def test_processors_whose_int8_matmul_saturates_are_known(machine: str, cpuinfo: str, lacks: bool) -> None:
    assert lacks_vnni(machine, cpuinfo) is lacks
