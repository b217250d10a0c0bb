"""The recurrence as a kernel in an engine: the folder it comes from, its PTX, and the graph that calls it.

What the kernel computes is tested in tests/kernels; that TensorRT launches it so, nowhere yet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from affectrt.affect import MODALITIES, Modality
from affectrt.cli.equations import ghrnn
from affectrt.errors import AffectError
from affectrt_export import graphs
from affectrt_export.engine.kernels import ARGUMENTS, Kernel, read_kernels, with_kernels, without_scratch
from affectrt_training.recipes.starter.weights import Starter

HIDDEN = 8
KERNEL = Kernel(HIDDEN, "forward", "", 32, 0)
KERNELS = {HIDDEN: KERNEL}


class Recurrence(OpRun):  # type: ignore[misc]
    """What the plugin is to compute, from the equations."""

    op_domain = "affectrt"

    def _run(self, sums: Any, w_h: Any, lengths: Any, h0: Any, **_: Any) -> tuple[Any, Any]:
        batch, steps, _twice = sums.shape
        assert not h0.any() and h0.shape == (batch, HIDDEN) and lengths.dtype == np.int64
        y, h_n = np.zeros((batch, steps, HIDDEN), np.float32), np.zeros((batch, HIDDEN), np.float32)
        for row, length in enumerate(lengths):
            if length:
                states = ghrnn(sums[row, :length], np.eye(2 * HIDDEN), w_h, np.zeros(2 * HIDDEN))
                y[row, :length], h_n[row] = states, states[-1]
        return y, h_n


Recurrence.__name__ = KERNEL.operator


@pytest.fixture(scope="module")
def fusion(starter: Starter) -> bytes:
    """The fusion graph of a random ghrnn-cma."""
    meta = starter.meta
    dims: dict[Modality, int] = {m: meta["config"][f"{m}_dim"] for m in MODALITIES}
    return graphs.fusion_graph(starter.fusion, dims).graph


def given(model: bytes, batch: int, steps: tuple[int, int, int]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    inputs = {}
    for node in onnx.load_from_string(model).graph.input:
        modality, _, lengths = node.name.partition("_")
        most = steps[[*MODALITIES].index(modality)]
        if lengths:
            inputs[node.name] = random.integers(0, most + 1, batch)
        else:
            dim = node.type.tensor_type.shape.dim[2].dim_value
            inputs[node.name] = random.standard_normal((batch, most, dim)).astype(np.float32)
    return inputs


def test_the_graph_computes_the_same(fusion: bytes) -> None:
    """With the equations in the kernel's place, over lengths and batches."""
    changed, used = with_kernels(fusion, KERNELS)
    assert used == (KERNEL,)
    onnx.checker.check_model(onnx.load_from_string(changed))
    operators = [node.op_type for node in onnx.load_from_string(changed).graph.node]
    assert "GRU" not in operators and operators.count(KERNEL.operator) == 3
    reference = ReferenceEvaluator(onnx.load_from_string(changed), new_ops=[Recurrence])
    session = onnxruntime.InferenceSession(fusion, providers=["CPUExecutionProvider"])
    for batch, steps in ((1, (1, 1, 1)), (4, (5, 9, 3)), (3, (7, 2, 11))):
        inputs = given(fusion, batch, steps)
        for expected, got in zip(session.run(None, inputs), reference.run(None, inputs), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def changed_node(graph: bytes, change: Callable[[Any, Any], None]) -> bytes:
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        if node.op_type == "GRU":
            change(model.graph, node)
    return bytes(model.SerializeToString())


def untie(graph: Any, node: Any) -> None:
    for tensor in graph.initializer:
        if tensor.name == node.input[1]:
            value = onnx.numpy_helper.to_array(tensor).copy()
            value[0, 0, 0] += 1e-3
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


def reset_after(graph: Any, node: Any) -> None:
    for attribute in [a for a in node.attribute if a.name == "linear_before_reset"]:
        node.attribute.remove(attribute)
    node.attribute.append(onnx.helper.make_attribute("linear_before_reset", 1))


def without_lengths(graph: Any, node: Any) -> None:
    node.input[4] = ""


@pytest.mark.parametrize("change", [untie, reset_after, without_lengths])
def test_another_recurrence_stays(fusion: bytes, change: Callable[[Any, Any], None]) -> None:
    other = changed_node(fusion, change)
    assert other != fusion
    assert with_kernels(other, KERNELS) == (other, ())


def test_another_state_size_stays(fusion: bytes) -> None:
    assert with_kernels(fusion, {64: KERNEL}) == (fusion, ())
    assert with_kernels(fusion, {}) == (fusion, ())


# --- What affectrt_kernels.aot compiled --------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the one kernel that counts, for two architectures, beside one that doesn't."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs Triton's compiler, not its interpreter")
    from affectrt_kernels import aot, triton_jobs

    folder = tmp_path_factory.mktemp("kernels")
    jobs = triton_jobs.jobs([triton_jobs.Shapes(HIDDEN, 8, 16, ((0, 1), (0, 2)))])
    (job,) = (job for job in jobs if job.name == f"gated_rnn_forward_1_row_h{HIDDEN}_fp32")
    entries = []
    with aot._compiler():
        for architecture in (87, 89):
            (folder / f"sm_{architecture}").mkdir()
            entries.append(aot.build(job, architecture, folder))
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "kernels": entries}), encoding="utf-8")
    return folder


def test_kernels_are_read_for_the_gpu(compiled: Path) -> None:
    (kernel,) = read_kernels(compiled, "8.7").values()
    assert (kernel.hidden, kernel.entry, kernel.operator) == (HIDDEN, "forward", "gated_rnn_h8")
    assert kernel.threads % 32 == 0 and kernel.shared_bytes >= 0
    assert ".target sm_87" in kernel.ptx
    assert ".target sm_89" in read_kernels(compiled, "8.9")[HIDDEN].ptx
    assert ".target sm_89" in read_kernels(compiled, "12.0")[HIDDEN].ptx, "the newest that it runs"
    with pytest.raises(
        AffectError, match=r"for compute capability 8\.6, got none; .*aot --arch 86"
    ) as caught:
        read_kernels(compiled, "8.6")
    assert caught.value.code == "engine.kernels"


def test_the_ptx_takes_what_a_plugin_passes(compiled: Path, tmp_path: Path) -> None:
    """Inputs, integers, outputs and nothing else; NVIDIA's assembler takes it."""
    (kernel,) = read_kernels(compiled, "8.7").values()
    declared = re.findall(r"\.param \.(u\d+)", kernel.ptx)
    assert declared == ["u64" if kind.startswith("*") else "u32" for kind in ARGUMENTS.values()]
    import triton

    ptxas: Any = triton.knobs.nvidia.ptxas
    assembler = getattr(ptxas, "path", None) or shutil.which("ptxas")
    if assembler is None:
        pytest.skip("needs ptxas")
    source = tmp_path / "kernel.ptx"
    source.write_text(kernel.ptx)
    command = [assembler, "-v", "--gpu-name=sm_87", str(source), "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ptx_that_cannot_lose_its_scratch() -> None:
    ptx = ".entry f(\n\t.param .u64 f_param_0,\n\t.param .u64 f_param_1\n)\n{ }"
    assert without_scratch(ptx, 1, 1) == ".entry f(\n\t.param .u64 f_param_0\n)\n{ }"
    with pytest.raises(ValueError, match="takes 2 parameters, expected 2 \\+ 1"):
        without_scratch(ptx, 2, 1)
    with pytest.raises(ValueError, match="uses f_param_1"):
        without_scratch(ptx.replace("{ }", "{ ld.param [f_param_1]; }"), 1, 1)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda entry: entry["arguments"].reverse(), "arguments"),
        (lambda entry: entry["scratch"][0].update(bytes=16), "it needs scratch memory"),
        (lambda entry: entry.update(ptx="gone.ptx"), "gone.ptx"),
        (lambda entry: entry.pop("block"), "block"),
    ],
)
def test_a_folder_that_does_not_fit(
    compiled: Path, tmp_path: Path, edit: Callable[[Any], object], told: str
) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(compiled, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["kernels"]:
        edit(entry)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AffectError, match=told) as caught:
        read_kernels(folder, "8.7")
    assert caught.value.code == "engine.kernels" and "affectrt_kernels.aot" in caught.value.message


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"expected what affectrt_kernels\.aot writes") as caught:
        read_kernels(tmp_path, "8.7")
    assert caught.value.code == "engine.kernels"
