"""A run at int8: calibrated on its training rows, proven on the task, refused by name; numpy runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load as load_safetensors

import affectrt
from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt_export import graphs, int8, int8_run, run
from affectrt_export.describe import describe
from affectrt_export.int8_run import Int8Run, calibration_examples
from affectrt_export.progress import silent
from affectrt_export.run import RunReport, export_run
from affectrt_export.task import TaskGate
from affectrt_export.workplace import Proofs
from affectrt_training.config import build
from affectrt_training.data.dataset import Dataset, Example, FloatMatrix
from affectrt_training.fit.checkpoint import load_run
from affectrt_training.fit.predict import predict
from affectrt_training.fit.run import fit_run
from affectrt_training.fit.settings import RunConfig

DIMS: dict[Modality, int] = {"text": 40, "audio": 6, "vision": 5}


def made(cleared: Mapping[Modality, int] | None = None, seed: int = 0) -> Dataset:
    """Rows far from normalised, some missing."""
    rng = np.random.default_rng(seed)
    examples = []
    for k in range(24):
        given: dict[Modality, FloatMatrix] = {
            m: (3.0 + 5.0 * rng.normal(size=(1 + (k + 4 * i) % 9, DIMS[m]))).astype(np.float32)
            for i, m in enumerate(MODALITIES)
            if (k + i) % 5
        }
        examples.append(Example(f"e{k}", given, (), float(rng.uniform(-3, 3)), k % 7))
    return Dataset("made", {"train": examples[:12], "valid": examples[12:]}, DIMS, cleared=cleared or {})


@pytest.fixture(scope="module")
def ghrnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of GHRNN-CMA on rows. Don't change it."""
    folder = tmp_path_factory.mktemp("runs") / "ghrnn"
    config = {
        "system": "ghrnn-cma",
        "model": {"model_dim": 24, "heads": 2, "hidden_dim": 24},
        "training": {"epochs": 1, "batch_size": 12, "accelerator": "cpu"},
    }
    fit_run(build(RunConfig, config, where="test"), made(), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def report(ghrnn: Path, tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    """Its export at int8."""
    path = tmp_path_factory.mktemp("int8") / "x.affect"
    return export_run(ghrnn, path, precision="int8", dataset=made(), max_drop=0.05)


def test_the_bundle_is_int8_and_close(ghrnn: Path, report: RunReport, tmp_path: Path) -> None:
    manifest = report.manifest
    assert manifest.precision == {"fusion": "int8"}
    assert report.gate is not None and report.gate.drop <= 0.05 and not report.kept
    figures = {metric.name: (metric.value, metric.dataset) for metric in manifest.metrics}
    assert figures["mae_int8"] == (round(report.gate.after, 6), "made valid")
    assert figures["mae_pytorch"] == (round(report.gate.before, 6), "made valid")
    bundle = affectrt.load(report.path).bundle
    kinds = [node.op_type for node in onnx.load_from_string(bundle.read("fusion.onnx")).graph.node]
    assert kinds.count("QuantizeLinear") and kinds.count("GRU") == 3
    full = export_run(ghrnn, tmp_path / "full.affect").manifest.members
    for member in ("fusion.onnx", "fusion.safetensors"):
        assert manifest.members[member].bytes < 0.75 * full[member].bytes
    expected = predict(load_run(ghrnn), made().split("valid")).sentiment
    for backend in ("native", "onnxruntime"):
        model = affectrt.load(report.path, backend=backend)
        for example, sentiment in zip(made().split("valid"), expected, strict=True):
            features = {
                m: FeatureSequence(m, rows, np.arange(len(rows), dtype=np.float64))
                for m, rows in example.rows.items()
            }
            answer = model.predict(features=features).sentiment
            assert answer == pytest.approx(float(sentiment), abs=0.05)
    assert (
        export_run(
            ghrnn, tmp_path / "again.affect", precision="int8", dataset=made(), max_drop=0.05
        ).path.read_bytes()
        == report.path.read_bytes()
    )


def test_native_weights_are_the_graphs(report: RunReport) -> None:
    bundle = affectrt.load(report.path).bundle
    stored = load_safetensors(bundle.read("fusion.safetensors"))
    graph = onnx.load_from_string(bundle.read("fusion.onnx")).graph
    codes = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == 3}
    assert stored["w_h"].dtype == np.int8 and stored["w_h.scale"].shape == (3, 48, 1)
    (convolution,) = [value for value in codes.values() if value.shape == stored["text.conv.weight"].shape]
    assert np.array_equal(convolution, stored["text.conv.weight"])
    # A GRU node has its rows three times: the update gate's, negated, and the candidate's.
    recurrent = [value for value in codes.values() if value.shape == (1, 72, 24)]
    candidates = {value[0, 48:].tobytes() for value in recurrent}
    assert candidates == {rows[24:].tobytes() for rows in stored["w_h"]}


ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Only(MetaPathFinder):
    allowed = {*sys.stdlib_module_names, "numpy", "affectrt", "affectrt_kernels", *sys.argv[2:]}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Only())
import numpy as np
import affectrt
model = affectrt.load(sys.argv[1], backend="onnxruntime" if "onnxruntime" in sys.argv else "native")
features = {}
for m in ("text", "audio", "vision"):
    rows = np.full((4, model.manifest.dim(m)), 2.0, np.float32)
    features[m] = affectrt.FeatureSequence(m, rows, np.arange(4.0))
print(model.backend, model.predict(features=features).sentiment)
"""


def test_it_runs_with_numpy_alone_and_with_onnxruntime_alone(report: RunReport) -> None:
    said = {}
    for allowed in ([], ["onnxruntime"]):
        command = [sys.executable, "-c", ALONE, str(report.path), *allowed]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        backend, sentiment = done.stdout.split()
        said[backend] = float(sentiment)
    assert said.keys() == {"native", "onnxruntime"}
    assert said["native"] == pytest.approx(said["onnxruntime"], abs=0.05)


# --- Refusals --------------------------------------------------------------------------------------


def _refused(code: str, match: str, folder: Path, place: Path, **options: Any) -> str:
    with pytest.raises(AffectError, match=match) as caught:
        export_run(folder, place / "x.affect", precision="int8", **options)
    assert caught.value.code == code
    assert not list(place.iterdir())
    return caught.value.message


def test_without_data_or_at_another_opset_it_is_refused(ghrnn: Path, tmp_path: Path) -> None:
    _refused("export.calibration", "pass --calibrate DATA", ghrnn, tmp_path)
    _refused("export.opset", "int8 is written at opset 17, got 18", ghrnn, tmp_path, dataset=made(), opset=18)


def test_nan_in_the_calibration_data_is_refused(ghrnn: Path) -> None:
    fitted, dataset = load_run(ghrnn), made()
    train = list(dataset.split("train"))
    broken = train[3].rows["audio"].copy()
    broken[0, 2] = np.nan
    train[3] = replace(train[3], rows={**train[3].rows, "audio": broken})
    with_nan = replace(dataset, splits={**dataset.splits, "train": train})
    cases = [
        (with_nan, r"made, split 'train', example 'e3': audio rows hold NaN or infinity"),
        (made({"audio": 3}, seed=1), r"3 audio values are NaN or infinite, and the run wasn't trained on"),
        (replace(dataset, splits={**dataset.splits, "train": []}), r"expected examples, got none"),
    ]
    for data, match in cases:
        with pytest.raises(AffectError, match=match) as caught:
            calibration_examples(fitted, data)
        assert caught.value.code == "export.calibration"
    # What training read as zeros, calibration may: its own data are the ones that it was trained on.
    assert len(calibration_examples(fitted, made({"audio": 3}))) == 12


def test_too_small_a_drop_is_refused_with_the_layers_ranked(ghrnn: Path, tmp_path: Path) -> None:
    exactly = predict(load_run(ghrnn), made().split("valid")).sentiment
    valid = [replace(e, sentiment=float(s)) for e, s in zip(made().split("valid"), exactly, strict=True)]
    sure = replace(made(), splits={**made().splits, "valid": valid})
    message = _refused(
        "export.task_gate", "layers by sensitivity", ghrnn, tmp_path, dataset=sure, max_drop=0.0
    )
    ranked = [line.split() for line in message.splitlines()[1:]]
    moved = [float(difference) for _, difference in ranked]
    assert len(ranked) >= 4 and all(layer.startswith("fusion/node_") for layer, _ in ranked)
    assert moved == sorted(moved, reverse=True) and moved[0] > moved[-1] > 0


@pytest.fixture(scope="module")
def graphs_of_run(ghrnn: Path) -> Int8Run:
    """The run, calibrated, its fusion proven."""
    fitted, proofs = load_run(ghrnn), Proofs(silent)
    run._fusion(fitted, proofs, graphs.OPSET, (), None)
    manifest = describe(fitted, "ghrnn", "int8", graphs.OPSET, "")
    return Int8Run(fitted, manifest, proofs, calibration_examples(fitted, made()), None)


@pytest.mark.parametrize("enough", [0, 1, 2, 3])
def test_the_most_sensitive_layers_are_kept_back_until_the_task_is_content(
    graphs_of_run: Int8Run, enough: int
) -> None:
    def left_in_fp32(members: Mapping[str, bytes]) -> list[str]:
        return int8.layers(members["fusion.onnx"], "fusion")

    def measure(members: Mapping[str, bytes]) -> TaskGate:
        return TaskGate("mae", "d", 9, 1.0, 1.0 if len(left_in_fp32(members)) >= enough else 1.5)

    members, gate, kept = int8_run.settle(graphs_of_run, measure, 0.01, silent)
    assert gate.drop == 0.0
    assert kept == graphs_of_run.ranking()[: len(kept)]
    assert sorted(left_in_fp32(members)) == sorted(layer.node for layer in kept)
    assert len(kept) == enough
