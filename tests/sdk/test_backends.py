"""What runs a fusion model: the choice, the native backend against the equations, and one person's ticks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import affectrt
from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.backends.causal import CausalFusion
from affectrt.backends.choice import DEVICES, choose_backend, obstacle
from affectrt.backends.native import NativeFusion
from affectrt.backends.onnx_runtime import OnnxFusion
from affectrt.bundle import Bundle
from affectrt.cli.equations import ghrnn_cma, random_weights
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.manifest import Manifest

Weights = dict[str, npt.NDArray[np.float32]]
HEADS = 3


def rows(manifest: Manifest, modality: Modality, steps: int, seed: int = 0) -> FeatureSequence:
    values = np.random.default_rng([seed, steps]).standard_normal((steps, manifest.dim(modality)))
    return FeatureSequence(modality, values.astype(np.float32), np.linspace(0.1, 3.0, steps), "test")


def error_of(call: Callable[[], object]) -> AffectError:
    with pytest.raises(AffectError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "affectrt_kernels._native", None)
    monkeypatch.delattr(sys.modules["affectrt_kernels"], "_native", raising=False)


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


# --- The choice ------------------------------------------------------------------------------------


def test_native_is_taken_where_it_can(ghrnn_bundle: Path, tiny_model: affectrt.Model) -> None:
    assert affectrt.load(ghrnn_bundle).backend == "native"
    assert affectrt.load(ghrnn_bundle, backend="onnxruntime").backend == "onnxruntime"
    assert tiny_model.backend == "onnxruntime", "its family is unknown to the kernels"
    assert all(obstacle(backend, Bundle.open(ghrnn_bundle)) is None for backend in DEVICES["cpu"])


def test_a_model_says_what_runs_it_and_why(ghrnn_bundle: Path, tiny_model: affectrt.Model) -> None:
    told = affectrt.load(ghrnn_bundle).backend_reason
    assert told.startswith("the first of tensorrt, native, onnxruntime that can; not tensorrt: ")
    assert "no TensorRT engines of it are here" in told and "'affectrt build-engine' builds them" in told
    assert "; not native: model tiny: the backend native knows the family 'ghrnn-cma'" in (
        tiny_model.backend_reason
    )
    told = affectrt.load(ghrnn_bundle, device="cpu").backend_reason
    assert told == "the first of native, onnxruntime that can"
    assert affectrt.load(ghrnn_bundle, backend="native").backend_reason == "asked for by name"


def test_a_broken_bundle_is_no_reason_to_take_another_backend(make_ghrnn: Callable[..., Path]) -> None:
    error = error_of(lambda: affectrt.load(make_ghrnn({})))
    assert error.code == "bundle.weights"


def test_who_names_a_backend_gets_it_or_an_error(tiny_bundle: Path, ghrnn_bundle: Path) -> None:
    error = error_of(lambda: affectrt.load(ghrnn_bundle, backend="cuda"))
    assert error.code == "backend.unknown"
    assert error.message.startswith("backend: expected one of tensorrt, native, onnxruntime, ")
    assert error.message.endswith("or None, got 'cuda'")
    error = error_of(lambda: affectrt.load(tiny_bundle, backend="native"))
    assert error.code == "backend.unsupported"
    assert "'ghrnn-cma' only, not 'mean'" in error.message and "onnxruntime" in error.message


def test_a_device_narrows_the_choice(tiny_bundle: Path, ghrnn_bundle: Path) -> None:
    assert affectrt.load(ghrnn_bundle, device="cpu").backend == "native"
    assert affectrt.load(tiny_bundle, device="cpu").backend == "onnxruntime"
    assert affectrt.load(ghrnn_bundle, device="cpu", backend="onnxruntime").backend == "onnxruntime"
    error = error_of(lambda: affectrt.load(ghrnn_bundle, device="gpu"))
    assert error.code == "backend.device" and "expected auto, cpu, cuda, got 'gpu'" in error.message
    error = error_of(lambda: affectrt.load(ghrnn_bundle, device="cuda", backend="native"))
    assert error.code == "backend.device" and "expected cpu, which the backend native uses" in error.message


def test_a_gpu_that_cannot_run_is_an_error_with_its_reasons(
    ghrnn_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    error = error_of(lambda: affectrt.load(ghrnn_bundle, device="cuda"))
    assert error.code == "backend.unavailable"
    assert "affectrt build-engine" in error.message and "has no CUDAExecutionProvider" in error.message
    error = error_of(lambda: affectrt.load(ghrnn_bundle, backend="tensorrt"))
    assert error.code == "engine.missing"
    for backend in ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx"):
        error = error_of(lambda backend=backend: affectrt.load(ghrnn_bundle, backend=backend))  # type: ignore[misc]
        assert error.code == "backend.unavailable" and "affectrt[gpu]" in error.message


def test_a_provider_that_is_listed_and_does_not_start(
    ghrnn_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself would warn and go on without it."""
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in runtime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime, "get_available_providers", lambda: listed)
    for load in (
        lambda: affectrt.load(ghrnn_bundle, backend="onnxruntime-cuda"),
        lambda: affectrt.load(ghrnn_bundle, device="cuda"),
    ):
        error = error_of(load)
        assert error.code == "backend.unavailable"
        assert "CUDAExecutionProvider was asked for and doesn't start here" in error.message
        assert "ONNX Runtime would go on without it" in error.message


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension(ghrnn_bundle: Path) -> None:
    assert affectrt.load(ghrnn_bundle).backend == "onnxruntime"
    error = error_of(lambda: affectrt.load(ghrnn_bundle, backend="native"))
    assert error.code == "backend.missing" and "install affectrt again" in error.message


@pytest.mark.usefixtures("no_runtime")
def test_without_onnx_runtime(tiny_bundle: Path, ghrnn_bundle: Path) -> None:
    assert affectrt.load(ghrnn_bundle).backend == "native"
    for call in (
        lambda: affectrt.load(ghrnn_bundle, backend="onnxruntime"),
        lambda: affectrt.load(tiny_bundle),
    ):
        error = error_of(call)
        assert error.code == "extra.missing" and "pip install 'affectrt[cpu]'" in error.message


@pytest.mark.usefixtures("no_runtime", "no_extension")
def test_with_neither(ghrnn_bundle: Path) -> None:
    error = error_of(lambda: affectrt.load(ghrnn_bundle))
    assert error.code == "extra.missing" and "affectrt[cpu]" in error.message


def test_settings_that_make_no_sense(make_ghrnn: Callable[..., Path]) -> None:
    for heads in (None, "3", 3.0, True, 0, -1, 2**70):
        error = error_of(lambda heads=heads: affectrt.load(make_ghrnn(heads=heads)))  # type: ignore[misc]
        assert (
            error.code == "bundle.manifest"
            and "config.heads: expected a whole number from 1" in error.message
        )


@pytest.mark.parametrize(
    "ablation",
    [
        {"pairs": ["at"]},
        {"attention": False},
        {"joint": False},
        {"cell": "lstm"},
        {"cell": None},
        {"causal": True},
    ],
)
def test_ablations_are_left_to_the_graph(make_ghrnn: Callable[..., Path], ablation: dict[str, Any]) -> None:
    bundle = Bundle.open(make_ghrnn(**ablation))
    assert choose_backend(bundle).backend == "onnxruntime"
    for refused in (lambda: choose_backend(bundle, "native"), lambda: NativeFusion(bundle)):
        error = error_of(refused)
        assert error.code == "backend.unsupported" and next(iter(ablation)) in error.message


def test_the_papers_own_structure_is_native_when_spelled_out(make_ghrnn: Callable[..., Path]) -> None:
    bundle = Bundle.open(make_ghrnn(pairs=["vt", "at"], attention=True, joint=True, cell="ghrnn"))
    assert choose_backend(bundle).backend == "native"


# --- Windows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [c for n in range(4) for c in combinations(MODALITIES, n)])
def test_native_results_are_those_of_the_equations(
    ghrnn_bundle: Path, ghrnn_weights: Weights, present: tuple[Modality, ...]
) -> None:
    model = affectrt.load(ghrnn_bundle, threads=1)
    sequences = {m: rows(model.manifest, m, 5 + 4 * k) for k, m in enumerate(present)}
    affect = model.fuse(sequences, 1.0, 0.0)

    def told(*given: Modality) -> tuple[float, npt.NDArray[np.float64]]:
        absent = {m: np.zeros((0, model.manifest.dim(m)), np.float32) for m in MODALITIES}
        values = {m: sequences[m].values for m in given}
        return ghrnn_cma(ghrnn_weights, HEADS, [values.get(m, absent[m]) for m in MODALITIES])

    sentiment, logits = told(*present)
    assert affect.sentiment == pytest.approx(sentiment, abs=1e-5)
    expected = model.manifest.calibration.probabilities(logits, present)
    assert list(affect.emotions.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert affect.present == set(present)
    for modality in present:
        without, _ = told(*(m for m in present if m != modality))
        assert affect.contributions[modality] == pytest.approx(sentiment - without, abs=1e-5)


def test_threads_share_a_native_model(ghrnn_bundle: Path) -> None:
    model = affectrt.load(ghrnn_bundle, threads=1)
    windows = [{m: rows(model.manifest, m, 1 + (7 * k) % 23, seed=k) for m in MODALITIES} for k in range(64)]

    def sentiment(window: dict[Modality, FeatureSequence]) -> float:
        return model.fuse(window, 1.0, 0.0).sentiment

    expected = [sentiment(window) for window in windows]
    assert len(set(expected)) == len(expected)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sentiment, windows)) == expected


def test_native_takes_rows_as_applications_hold_them(ghrnn_bundle: Path) -> None:
    model = affectrt.load(ghrnn_bundle, threads=1)
    plain = rows(model.manifest, "audio", 9)
    strided = FeatureSequence("audio", np.asfortranarray(plain.values), plain.times_s)
    frozen = FeatureSequence("audio", plain.values.copy(), plain.times_s)
    frozen.values.flags.writeable = False
    results = {model.fuse({"audio": sequence}, 1.0, 0.0).sentiment for sequence in (plain, strided, frozen)}
    assert len(results) == 1


def test_a_modality_is_absent_when_left_out_or_without_rows(ghrnn_bundle: Path) -> None:
    bundle = Bundle.open(ghrnn_bundle)
    audio = rows(bundle.manifest, "audio", 4).values
    subsets = np.array([[True, True, True], [True, False, True]])
    for fusion in (NativeFusion(bundle), OnnxFusion(bundle)):
        left_out = fusion({"audio": audio}, subsets)
        empty = fusion({"audio": audio, "text": audio[:0], "vision": np.zeros((0, 8), np.float32)}, subsets)
        for one, other in zip(left_out, empty, strict=True):
            np.testing.assert_array_equal(one, other)


def test_native_refuses_what_does_not_fit(ghrnn_bundle: Path) -> None:
    model = affectrt.load(ghrnn_bundle, threads=1)
    wide = FeatureSequence("audio", np.zeros((2, 99), np.float32), np.zeros(2))
    assert error_of(lambda: model.fuse({"audio": wide}, 0.0, 0.0)).code == "features.dim"
    huge = FeatureSequence("text", np.full((9, model.manifest.dim("text")), 3e38, np.float32), np.zeros(9))
    assert error_of(lambda: model.fuse({"text": huge}, 0.0, 0.0)).code == "model.not_finite"
    fusion = NativeFusion(model.bundle)
    error = error_of(lambda: fusion({"audio": wide.values}, np.ones((1, 3), bool)))
    assert error.code == "features.shape" and "audio: expected (T, D) = (2, 10)" in error.message
    with pytest.raises(AffectError, match=r"graph\.threads"):
        affectrt.load(ghrnn_bundle, threads=0)


def test_weights_that_are_not_such_a_models(
    make_ghrnn: Callable[..., Path], ghrnn_weights: Weights, tiny_manifest: Manifest
) -> None:
    dims = [tiny_manifest.dim(m) for m in MODALITIES]
    fewer = {**ghrnn_weights, "emotion.weight": ghrnn_weights["emotion.weight"][:5]}
    fewer["emotion.bias"] = ghrnn_weights["emotion.bias"][:5]
    changed: list[tuple[Weights | None, dict[str, bytes], str]] = [
        (None, {"fusion.safetensors": b"\x80\x04pickle"}, "a header of at most"),
        ({n: w for n, w in ghrnn_weights.items() if n != "w_h"}, {}, "'w_h' among the names"),
        ({**ghrnn_weights, "w_h": ghrnn_weights["w_h"] * np.float32(np.nan)}, {}, "finite numbers"),
        (
            {**ghrnn_weights, "gate": ghrnn_weights["bias"]},
            {},
            "the weights of GHRNN-CMA only, got also 'gate'",
        ),
        (
            {**ghrnn_weights, "a\nb" * 999: ghrnn_weights["bias"]},
            {},
            "weights of GHRNN-CMA only, got also 'a ba",
        ),
        ({**ghrnn_weights, "no_word": np.ones(dims[0], np.float32)}, {}, "'no_word' not among the weights"),
        (random_weights(0, dims=[dims[0], dims[1], 9]), {}, "expected [12, 10, 8] features and 7 emotions"),
        (random_weights(0, dims=dims, model=10), {}, "a divisor of the model's width 10, got 3"),
        (fewer, {}, f"{len(EMOTIONS)} emotions, got [12, 10, 8] and 5"),
    ]
    for weights, members, message in changed:
        path = make_ghrnn(weights, members)
        error = error_of(lambda path=path: affectrt.load(path))  # type: ignore[misc]
        assert error.code == "bundle.weights" and message in error.message, error.message
        assert error.message.startswith("bundle tiny: fusion.safetensors: ")
        assert affectrt.load(path, backend="onnxruntime").backend == "onnxruntime"


# --- Ticks -----------------------------------------------------------------------------------------


def test_a_bundle_without_a_causal_model_says_so(ghrnn_bundle: Path) -> None:
    model = affectrt.load(ghrnn_bundle)
    for ask in (lambda: model.causal, lambda: model.stream(mode="incremental")):
        error = error_of(ask)
        assert error.code == "model.not_causal" and "windows only" in error.message


def test_steps_are_those_of_the_kernels(causal_bundle: Bundle) -> None:
    """The wrapper adds nothing: `tests/kernels` proves what the kernels compute."""
    from affectrt.weights import read_safetensors
    from affectrt_kernels import _native

    manifest = causal_bundle.manifest
    weights = read_safetensors(causal_bundle.read("causal.safetensors"), "here")
    no_word = weights.pop("no_word")
    theirs = _native.GhrnnCma(weights, heads=HEADS).stream(no_word, 2.0)
    mine = CausalFusion(causal_bundle).start()
    audio, vision = rows(manifest, "audio", 8), rows(manifest, "vision", 4)
    text = rows(manifest, "text", 1).values[0]
    for time_s, said, heard, seen in (
        (1.0, None, None, None),
        (3.0, text, audio, vision),
        (3.4, None, None, FeatureSequence.empty("vision", 3)),
        (9.0, text, None, None),
    ):
        expected = theirs.step(
            time_s,
            said,
            *((heard.values, heard.times_s) if heard else (None, None)),
            *((seen.values, seen.times_s) if seen else (None, None)),
        )
        sentiment, logits = mine.step(time_s, said, heard, seen)
        assert sentiment == expected[0]
        np.testing.assert_array_equal(logits, expected[1])


def test_a_step_that_does_not_fit_changes_nothing(causal_bundle: Bundle) -> None:
    manifest = causal_bundle.manifest
    fusion = CausalFusion(causal_bundle)
    stream, untouched = fusion.start(), fusion.start()
    audio = rows(manifest, "audio", 8)
    for each in (stream, untouched):
        each.step(3.0, None, audio)
    wide = FeatureSequence("audio", np.zeros((1, 99), np.float32), np.array([3.1]))
    dim = manifest.dim("text")
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((3.0,), "stream.input"),
        ((float("nan"),), "stream.input"),
        ((4.0, np.full(dim, np.nan, np.float32)), "stream.input"),
        ((4.0, np.zeros(dim + 1, np.float32)), "stream.input"),
        ((4.0, np.zeros(dim)), "stream.input"),
        ((4.0, None, rows(manifest, "audio", 3)), "stream.input"),
        ((3.05, None, replace(audio, times_s=audio.times_s + 3.0)), "stream.input"),
        ((4.0, None, wide), "features.dim"),
        ((4.0, None, rows(manifest, "vision", 3)), "features.modality"),
        ((4.0, None, None, audio), "features.modality"),
    ]
    for arguments, code in wrong:
        assert error_of(lambda arguments=arguments: stream.step(*arguments)).code == code  # type: ignore[misc]
    assert stream.step(4.0)[0] == untouched.step(4.0)[0]


def test_causal_bundles_that_make_no_sense(make_causal: Callable[..., Bundle], causal_bundle: Bundle) -> None:
    no_word = np.ones(causal_bundle.manifest.dim("text"), np.float32)
    error = error_of(lambda: CausalFusion(make_causal({"no_word": None})))
    assert error.code == "bundle.weights" and "'no_word' among the weights" in error.message
    for bad in (np.ones(3, np.float32), no_word * np.float32(np.nan)):
        error = error_of(lambda bad=bad: CausalFusion(make_causal({"no_word": bad})))  # type: ignore[misc]
        assert error.code == "bundle.weights" and "no_word: expected" in error.message
    for window_s in ("2", None, True, 10**400):
        error = error_of(lambda window_s=window_s: CausalFusion(make_causal(window_s=window_s)))  # type: ignore[misc]
        assert error.code == "bundle.manifest" and "causal.config.window_s: expected float" in error.message
    for length_s in (0.0, -1.0):
        error = error_of(lambda length_s=length_s: CausalFusion(make_causal(window_s=length_s)))  # type: ignore[misc]
        assert error.code == "bundle.manifest" and "window_s: expected a number of seconds" in error.message
    error = error_of(lambda: CausalFusion(make_causal(heads=0)))
    assert error.code == "bundle.manifest" and "causal.config.heads: expected a whole number" in error.message


def test_a_bundle_whose_causal_model_is_broken_fails_at_once(make_causal: Callable[..., Bundle]) -> None:
    bundle = make_causal({"emotion.weight": np.ones((3, 9), np.float32)})
    assert error_of(lambda: affectrt.Model(bundle)).code == "bundle.weights"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tick_s": 1e-9}, "causal.tick_s: expected 0.01 to 1 seconds"),
        ({"audio_context_rows": -1}, "causal.audio_context_rows: expected 0 to 1000"),
    ],
)
def test_what_the_manifest_says_of_the_causal_model_is_checked(
    causal_bundle: Bundle, change: dict[str, Any], told: str
) -> None:
    manifest = causal_bundle.manifest
    assert manifest.causal is not None
    wrong = replace(manifest, causal=replace(manifest.causal, **change))
    error = error_of(lambda: Manifest.from_json(wrong.to_json(), "here"))
    assert error.code == "bundle.manifest" and told in error.message
