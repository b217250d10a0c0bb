"""The backend ``torch``: the bundle's model built again, declared by the package that owns it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import save

import affectrt
from affectrt.affect import MODALITIES, Modality
from affectrt.backends.choice import known_backends, obstacle
from affectrt.bundle import Bundle, write_bundle
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.manifest import Manifest
from affectrt.trial import difference
from affectrt_training.models.fusion import FusionModel
from affectrt_training.models.registry import create
from affectrt_training.torch_fusion import CpuModel, CudaModel

SETTINGS: Mapping[str, Mapping[str, object]] = {
    "ghrnn-cma": {"model_dim": 12, "heads": 3, "hidden_dim": 10, "fused_dim": 9},
    "mulg": {"model_dim": 8, "heads": 2, "layers": 1, "hidden_dim": 6},
    "lmf": {},
}
MakeFamily = Callable[..., Path]


def random_model(family: str, manifest: Manifest) -> FusionModel:
    torch.manual_seed(3)
    model = create(family, {m: manifest.dim(m) for m in MODALITIES}, SETTINGS[family])
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def make_family(make_bundle: Callable[..., Path], tiny_manifest: Manifest) -> MakeFamily:
    """Writes the bundle of a random model, with other weights or some settings changed."""

    def make(family: str, weights: Mapping[str, npt.NDArray[Any]] | None = None, **config: object) -> Path:
        model = random_model(family, tiny_manifest)
        own = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
        manifest = replace(tiny_manifest, family=family, config={**asdict(model.config), **config})
        member = tiny_manifest.fusion.weights
        return make_bundle(manifest, {member: save(dict(own if weights is None else weights))})

    return make


def rows(manifest: Manifest, present: tuple[Modality, ...]) -> dict[Modality, FeatureSequence]:
    random = np.random.default_rng(1)
    found = {}
    for modality, steps in zip(MODALITIES, (9, 20, 14), strict=True):
        values = random.standard_normal((steps, manifest.dim(modality)), np.float32)
        found[modality] = FeatureSequence(modality, values, np.linspace(0.1, 3.0, steps), "test")
    return {m: found[m] for m in present}


def error_of(call: Callable[[], object]) -> AffectError:
    with pytest.raises(AffectError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


def test_it_says_what_the_kernels_say(make_family: MakeFamily) -> None:
    path = make_family("ghrnn-cma")
    native, rebuilt = (affectrt.load(path, backend=name, threads=1) for name in ("native", "torch"))
    assert rebuilt.backend == "torch"
    for count in range(4):
        for present in combinations(MODALITIES, count):
            features = rows(native.manifest, present)
            a, b = (model.fuse(features, 3.0, 0.0) for model in (native, rebuilt))
            assert difference(a, b) < 1e-5
            assert a.contributions == pytest.approx(b.contributions, abs=1e-5)


@pytest.mark.parametrize("family", ["mulg", "lmf"])
def test_it_runs_families_that_only_training_knows(
    family: str, make_family: MakeFamily, tiny_manifest: Manifest
) -> None:
    model = random_model(family, tiny_manifest).double()
    loaded = affectrt.load(make_family(family), backend="torch", device="cpu", threads=1)
    features = rows(tiny_manifest, ("text", "vision"))
    found = loaded.fuse(features, 3.0, 0.0)
    inputs: dict[str, torch.Tensor] = {}
    for modality in MODALITIES:
        values = features[modality].values if modality in features else np.zeros((1, 10), np.float32)
        inputs[modality] = torch.from_numpy(values)[None].double()
        inputs[f"{modality}_lengths"] = torch.tensor([len(values) if modality in features else 0])
    (sentiment,), (logits,) = model(**inputs)
    assert found.sentiment == pytest.approx(float(sentiment), abs=1e-5)
    expected = tiny_manifest.calibration.probabilities(logits.numpy(), ("text", "vision"))
    np.testing.assert_allclose(list(found.emotions.values()), expected, atol=1e-5)


def test_it_only_runs_when_it_is_named(make_family: MakeFamily) -> None:
    assert affectrt.load(make_family("ghrnn-cma")).backend == "native"
    assert affectrt.load(make_family("mulg"), device="cpu").backend == "onnxruntime"
    error = error_of(lambda: affectrt.load(make_family("mulg"), backend="torch", device="gpu"))
    assert error.code == "backend.device"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_an_error(make_family: MakeFamily) -> None:
    error = error_of(lambda: affectrt.load(make_family("mulg"), backend="torch", device="cuda"))
    assert error.code == "gpu.missing" and "sees no GPU" in error.message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that PyTorch can use")
def test_recorded_runs_repeat_the_answer(tiny_manifest: Manifest) -> None:
    on_cpu = CpuModel(random_model("ghrnn-cma", tiny_manifest))
    on_gpu = CudaModel(random_model("ghrnn-cma", tiny_manifest))
    for seed in range(5):
        random = np.random.default_rng(seed)
        inputs: dict[str, npt.NDArray[Any]] = {}
        for modality in MODALITIES:
            shape = (2, 17, tiny_manifest.dim(modality))
            inputs[modality] = random.standard_normal(shape, np.float32)
            inputs[f"{modality}_lengths"] = random.integers(0, 18, 2)
        for got, want in zip(on_gpu(**inputs), on_cpu(**inputs), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)
    assert [recording is not None for recording in on_gpu._seen.values()] == [True]


def test_what_it_cannot_build_again_is_refused(
    make_family: MakeFamily,
    tiny_bundle: Path,
    tiny_manifest: Manifest,
    tiny_members: dict[str, bytes],
    tmp_path: Path,
) -> None:
    def refused(path: Path) -> AffectError:
        found = obstacle("torch", Bundle.open(path))
        assert found is not None and found.code == "backend.unsupported"
        assert found.message.endswith("the backend onnxruntime runs any bundle's graph")
        return found

    assert "not 'mean'" in refused(tiny_bundle).message
    assert "not causal ones" in refused(make_family("ghrnn-cma", causal=True)).message
    bare = replace(tiny_manifest, family="mulg", fusion=replace(tiny_manifest.fusion, weights=None))
    members = {name: data for name, data in tiny_members.items() if name != tiny_manifest.fusion.weights}
    write_bundle(tmp_path / "bare.affect", bare, members)
    assert "which the bundle doesn't hold" in refused(tmp_path / "bare.affect").message


def test_settings_and_weights_must_fit_each_other(make_family: MakeFamily) -> None:
    def load(path: Path) -> AffectError:
        return error_of(lambda: affectrt.load(path, backend="torch"))

    assert load(make_family("ghrnn-cma", model_dim=24)).code == "bundle.weights"
    assert load(make_family("ghrnn-cma", {"w": np.zeros(3, np.float32)})).code == "bundle.weights"
    error = load(make_family("ghrnn-cma", heads=5))
    assert error.code == "bundle.manifest" and "expected a divisor of model_dim 12" in error.message
    assert load(make_family("ghrnn-cma", depth=5)).code == "bundle.manifest"


def test_naming_it_imports_nothing_heavy(make_family: MakeFamily) -> None:
    code = (
        "import sys; from affectrt.bundle import Bundle; "
        "from affectrt.backends.choice import known_backends, obstacle; "
        f"assert obstacle('torch', Bundle.open({str(make_family('mulg'))!r})) is None; "
        "assert known_backends()[-1] == 'torch'; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_broken_declaration_costs_nothing_until_it_is_named(
    make_family: MakeFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "other-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[affectrt.backends]\nother = not_there:BACKEND\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = make_family("ghrnn-cma")
    assert "other" in known_backends()
    assert affectrt.load(path).backend == "native"
    error = error_of(lambda: affectrt.load(path, backend="other"))
    assert error.code == "backend.broken" and "not_there:BACKEND" in error.message
