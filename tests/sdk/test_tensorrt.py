"""``affectrt build-engine`` and the backend ``tensorrt`` against a stand-in for NVIDIA's libraries.

In the stand-in the GPU's memory is the host's and an engine is its ONNX graph, run by ONNX Runtime. It shows
what is ours: cache, buffers, limits, recordings, threads. Whether the real libraries do as it does, no test
here shows; tests/export/test_tensorrt_bindings.py holds our calls to their interface.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

import affectrt
from affectrt.affect import MODALITIES
from affectrt.backends.tensorrt import engine_key
from affectrt.bundle import Bundle, write_bundle
from affectrt.cli import main
from affectrt.engines import Engine, EngineBuild, EngineCache
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.manifest import Manifest, RowsSpec, TextSpec
from affectrt_export.engine.kernels import ARGUMENTS

if TYPE_CHECKING:
    from tests.sdk.stand_in_tensorrt import TensorRt

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TensorRt]:
    """A machine with the stand-in and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(ROOT))
    cuda = import_module("tests.sdk.stand_in_cuda").Cuda()
    trt: TensorRt = import_module("tests.sdk.stand_in_tensorrt").TensorRt(cuda)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    for name, module in (
        ("tensorrt", trt),
        ("cuda", ModuleType("cuda")),
        ("cuda.bindings", bindings),
        ("cuda.bindings.runtime", cuda),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    yield trt
    # What imports tensorrt when it is imported must not outlive the stand-in.
    for name in ("affectrt_export.engine.build", "affectrt_export.engine.engines"):
        sys.modules.pop(name, None)


def rows(bundle: Path, steps: int, seed: int = 0) -> dict[Any, FeatureSequence]:
    manifest = Bundle.open(bundle).manifest
    random = np.random.default_rng(seed)
    return {
        m: FeatureSequence(
            m,
            random.standard_normal((steps, manifest.dim(m))).astype(np.float32),
            np.linspace(0.1, 3.0, steps),
            "test",
        )
        for m in MODALITIES
    }


def error_of(call: Callable[[], object]) -> AffectError:
    with pytest.raises(AffectError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


def test_from_bundle_to_result(trt: TensorRt, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert affectrt.load(tiny_bundle).backend == "onnxruntime"
    error = error_of(lambda: affectrt.load(tiny_bundle, device="cuda"))
    assert error.code == "backend.unavailable" and "affectrt build-engine" in error.message
    assert main(["build-engine", str(tiny_bundle), "--workspace", "64"]) == 0
    assert capsys.readouterr().out.count("(none was built)") == 4
    assert trt.configs[0].told == [("workspace", 64 << 20), ("clear", "tf32"), ("timings", b"")]
    assert trt.configs[1].told[-1] == ("timings", b"learnt")

    cpu = affectrt.load(tiny_bundle, device="cpu")
    for device in ("auto", "cuda"):
        model = affectrt.load(tiny_bundle, device=device)
        assert (cpu.backend, model.backend) == ("onnxruntime", "tensorrt")
        for _ in range(4):
            sound = (np.sin(np.arange(32000) / 10).astype(np.float32), 16000)
            for given in ({"text": "so happy"}, {"features": rows(tiny_bundle, 7)}, {"audio": sound}):
                one, other = (each.predict(**given) for each in (cpu, model))
                assert one.sentiment == pytest.approx(other.sentiment, abs=1e-6)
                assert one.present == other.present
                assert one.contributions == pytest.approx(other.contributions)
    assert trt.cuda.launched > 4
    assert main(["doctor", str(tiny_bundle)]) == 0
    assert "tensorrt, onnxruntime agree within" in capsys.readouterr().out


def test_an_engine_is_built_once_and_again_when_asked(
    trt: TensorRt, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*options: str) -> str:
        assert main(["build-engine", str(tiny_bundle), *options]) == 0
        return capsys.readouterr().out

    assert build().count("none was built") == 4
    assert build().count("was there") == 4
    assert build("--rebuild").count("asked for") == 4
    assert build("--precision", "tf32").count("other options: precision fp32") == 4
    told = build("--precision", "tf32", "--max-text", "5")
    assert told.count("was there") == 2 and told.count("other shapes") == 2, "text and fusion"
    trt.__version__ = "10.4.0"
    assert build().count("was built for tensorrt '10.3.0', here is '10.4.0'") == 4
    trt.cuda.gpu.name = b"Stand-in, 9000"
    assert build().count("was built for gpu 'Stand-in 9000', here is 'Stand-in, 9000'") == 4


def test_an_unfit_engine_is_passed_over_and_told(
    trt: TensorRt, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build-engine", str(tiny_bundle)]) == 0
    trt.__version__ = "10.2.0"
    assert affectrt.load(tiny_bundle).backend == "onnxruntime"
    error = error_of(lambda: affectrt.load(tiny_bundle, backend="tensorrt"))
    assert error.code == "engine.missing" and "was built for tensorrt '10.3.0'" in error.message
    capsys.readouterr()
    assert main(["doctor", str(tiny_bundle)]) == 0
    out = capsys.readouterr().out
    assert "was built for tensorrt '10.3.0', here is '10.2.0'" in out
    assert f"→ affectrt build-engine {tiny_bundle}" in out


def test_who_does_not_start_is_passed_over_and_told(trt: TensorRt, tiny_bundle: Path) -> None:
    """An engine that is whole and right, and that TensorRT doesn't take all the same."""
    assert main(["build-engine", str(tiny_bundle)]) == 0
    bundle, cache = Bundle.open(tiny_bundle), EngineCache()
    for graph in ("fusion", "text"):
        key = engine_key(bundle, graph)
        found = cache.find(key)
        assert isinstance(found, Engine)
        cache.store(key, found.build, b"no engine")
        model = affectrt.load(tiny_bundle)
        assert model.backend == "onnxruntime"
        assert f"; not tensorrt: tiny/{graph}: TensorRT could not read this engine" in model.backend_reason
        error = error_of(lambda: affectrt.load(tiny_bundle, backend="tensorrt"))
        assert error.code == "engine.invalid"
        error = error_of(lambda: affectrt.load(tiny_bundle, device="cuda"))
        assert error.code == "backend.unavailable" and f"tiny/{graph}" in error.message
        cache.store(key, found.build, found.data)
    assert affectrt.load(tiny_bundle).backend == "tensorrt"


def test_a_gpu_that_fails_is_no_reason_to_go_on_without(
    trt: TensorRt, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["build-engine", str(tiny_bundle)]) == 0
    monkeypatch.setattr(trt.cuda, "cudaMalloc", lambda size: (2, None))
    for asked in ({"backend": "tensorrt"}, {"device": "cuda"}):
        error = error_of(lambda asked=asked: affectrt.load(tiny_bundle, **asked))  # type: ignore[misc]
        assert "could not allocate" in error.message and "operation not permitted" in error.message
    model = affectrt.load(tiny_bundle)
    assert model.backend == "onnxruntime" and "could not allocate" in model.backend_reason


def test_rows_of_the_application_and_of_words(
    trt: TensorRt,
    tiny_manifest: Manifest,
    tiny_members: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert isinstance(tiny_manifest.text, TextSpec)
    manifest = replace(
        tiny_manifest,
        text=replace(tiny_manifest.text, words_per_row=2),
        audio=RowsSpec(tiny_manifest.dim("audio")),
        vision=RowsSpec(tiny_manifest.dim("vision")),
        fusion=replace(tiny_manifest.fusion, weights=None),
    )
    path = tmp_path / "rows.affect"
    kept = ("text.onnx", "tokenizer.json", "fusion.onnx")
    write_bundle(path, manifest, {name: tiny_members[name] for name in kept})
    assert main(["build-engine", str(path), "--max-text", "100", "--max-audio", "30"]) == 0
    built = [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert built == ["text", "fusion"]
    cpu, gpu = (affectrt.load(path, device=device) for device in ("cpu", "cuda"))
    given = rows(path, 30)
    text = "it was a great film and i am so happy " * 9  # several passages of the encoder
    one, other = (m.predict(text=text, features={"audio": given["audio"]}) for m in (cpu, gpu))
    assert one.sentiment == pytest.approx(other.sentiment, abs=1e-6)
    assert one.present == other.present == {"text", "audio"}
    error = error_of(lambda: gpu.predict(features={"audio": rows(path, 31)["audio"]}))
    assert error.code == "engine.limits" and "--max-audio" in error.message


@pytest.mark.parametrize("answers", [True, False])
def test_doctor_knows_a_driver_that_is_too_old(
    trt: TensorRt,
    install: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: bool,
) -> None:
    install("tensorrt-cu13", "tensorrt")
    if not answers:  # CUDA of a version that the driver doesn't know
        monkeypatch.setattr(trt.cuda, "cudaGetDeviceCount", lambda: (35, None))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert ("Stand-in 9000, compute capability 8.7, driver for CUDA 12.6" in out) == answers
    assert ("could not count the GPUs" in out) != answers
    assert "is made for CUDA 13, the driver knows CUDA up to 12.6" in out
    assert "→ update the driver, or install what is made for CUDA 12" in out


def test_what_a_graph_may_not_hold(trt: TensorRt, tiny_members: dict[str, bytes]) -> None:
    from affectrt_export.engine.build import Options, build_engine

    error = error_of(lambda: build_engine(tiny_members["text.onnx"], "m/x", {}, Options(), b"", None))
    assert error.code == "engine.profile" and "got input_ids, attention_mask" in error.message
    named = tiny_members["vision.onnx"].replace(b"vision", b"refuse")
    error = error_of(lambda: build_engine(named, "m/x", {}, Options(), b"", None))
    assert error.code == "engine.unsupported" and "'node_7' (MatMulInteger): not known" in error.message
    assert "--precision fp16" in error.message


def recurrent_fusion() -> bytes:
    """A fusion graph of one GHRNN with a state of four over the text, as it is exported."""
    random = np.random.default_rng(0)
    w_x, w_h, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((8, 12), (8, 4), (8,)))

    def tied(blocks: Any) -> Any:
        return np.concatenate([-blocks[:4], blocks])[None]

    weights = {
        "w": tied(w_x),
        "r": tied(w_h),
        "b": np.concatenate([tied(bias), np.zeros((1, 12), np.float32)], axis=1),
        "heads": random.standard_normal((4, 8)).astype(np.float32),
        "parts": np.array([1, 7]),
        "one": np.array([1]),
        "zero": np.array([0]),
    }
    node = onnx.helper.make_node
    nodes = [
        node("Transpose", ["text"], ["steps"], perm=[1, 0, 2]),
        node("Cast", ["text_lengths"], ["lengths"], to=onnx.TensorProto.INT32),
        node("GRU", ["steps", "w", "r", "b", "lengths"], ["", "last"], hidden_size=4),
        node("Squeeze", ["last", "zero"], ["state"]),
        node("MatMul", ["state", "heads"], ["both"]),
        node("Split", ["both", "parts"], ["column", "emotion_logits"], axis=1),
        node("Squeeze", ["column", "one"], ["sentiment"]),
    ]
    of = onnx.helper.make_tensor_value_info
    inputs = []
    for modality, dim in (("text", 12), ("audio", 10), ("vision", 8)):
        inputs += [of(modality, onnx.TensorProto.FLOAT, ["B", f"T_{modality}", dim])]
        inputs += [of(f"{modality}_lengths", onnx.TensorProto.INT64, ["B"])]
    outputs = [of("sentiment", onnx.TensorProto.FLOAT, ["B"])]
    outputs += [of("emotion_logits", onnx.TensorProto.FLOAT, ["B", 7])]
    arrays = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = onnx.helper.make_graph(nodes, "fusion", inputs, outputs, arrays)
    opsets = [onnx.helper.make_opsetid("", 17)]
    return bytes(onnx.helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString())


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """A folder as affectrt_kernels.aot writes it, but for what the PTX does."""
    arguments = [{"name": name, "type": kind} for name, kind in ARGUMENTS.items()]
    kernel = {
        "name": "gated_rnn_forward_1_row_h4_fp32",
        "arch": 87,
        "ptx": "kernel.ptx",
        "entry": "forward",
        "block": [32, 1, 1],
        "arguments": arguments,
        "scratch": [{"name": "global_scratch", "bytes": 0}, {"name": "profile_scratch", "bytes": 0}],
        "constants": {"GATES": 1, "REVERSE": False, "ROWS": 1, "H": 4},
        "shared_bytes": 0,
    }
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"kernels": [kernel]}))
    parameters = ",\n".join(f"\t.param .u64 forward_param_{k}" for k in range(len(arguments) + 2))
    (folder / "kernel.ptx").write_text(f".visible .entry forward(\n{parameters}\n)\n{{ ret; }}\n")
    return folder


def test_the_recurrence_as_a_kernel(
    trt: TensorRt,
    make_bundle: Callable[..., Path],
    kernels: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make_bundle(None, {"fusion.onnx": recurrent_fusion()})
    build = ["build-engine", str(path), "--kernels", str(kernels)]
    assert main(build) == 2
    assert "expected TensorRT 10.9 or later, got 10.3.0" in capsys.readouterr().err
    plugins = import_module("tests.sdk.stand_in_tensorrt").Plugins()
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugins)
    monkeypatch.setattr(trt, "plugin", plugins, raising=False)
    monkeypatch.setattr(trt, "QuickPluginCreationRequest", object, raising=False)
    try:
        assert main(build) == 0
        assert plugins.registered == ["affectrt::gated_rnn_h4"]
        assert main(build) == 0
        assert capsys.readouterr().out.count("was there") == 4
        cpu, gpu = (affectrt.load(path, device=device) for device in ("cpu", "cuda"))
        for steps in (1, 7, 30):
            one, other = (model.predict(features=rows(path, steps)) for model in (cpu, gpu))
            assert one.sentiment == pytest.approx(other.sentiment, abs=1e-5)
        assert main(build[:2]) == 0
        out = capsys.readouterr().out
        assert out.count("was there") == 3 and "was built with other options: other kernels" in out
    finally:
        sys.modules.pop("affectrt_export.engine.plugin", None)


def test_kernels_that_are_of_no_use(
    trt: TensorRt, tiny_bundle: Path, kernels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build-engine", str(tiny_bundle), "--kernels", str(kernels)]) == 2
    assert "[engine.kernels] model tiny: expected a recurrence of one gate" in capsys.readouterr().err
    assert main(["build-engine", str(tiny_bundle), "--kernels", str(kernels.parent)]) == 2
    assert "expected what affectrt_kernels.aot writes" in capsys.readouterr().err


def graph(trt: TensorRt, tiny_members: dict[str, bytes], most: int = 6) -> Any:
    """The tiny bundle's text encoder as an engine of utterances up to ``most`` tokens."""
    from affectrt.backends.tensorrt import EngineGraph

    shapes = ((1, 1), (1, 2), (2, most))
    profile = {"input_ids": shapes, "attention_mask": shapes}
    data = json.dumps(profile).encode() + b"\n" + tiny_members["text.onnx"]
    return EngineGraph(Engine(data, EngineBuild("fp32", False, profile)), name="tiny/text")


def tokens(steps: int, batch: int = 1, first: int = 0) -> dict[str, Any]:
    ids = np.arange(first, first + batch * steps, dtype=np.int64).reshape(batch, steps)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_recordings_answer_as_runs_do(trt: TensorRt, tiny_members: dict[str, bytes]) -> None:
    """Shapes in any order, each with new values: what is replayed reads the new ones."""
    engine = graph(trt, tiny_members, most=7)
    session = onnxruntime.InferenceSession(tiny_members["text.onnx"], providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for turn in range(120):
        given = tokens(int(random.integers(1, 8)), int(random.integers(1, 3)), first=turn % 5)
        (states,) = engine(**given)
        np.testing.assert_array_equal(states, session.run(None, given)[0])
        assert len(trt.cuda.alive) <= 8
    assert trt.cuda.launched > 20, "14 shapes for 8 places"


def test_a_shape_is_recorded_when_it_comes_again(trt: TensorRt, tiny_members: dict[str, bytes]) -> None:
    engine = graph(trt, tiny_members)
    counts = []
    for steps in (3, 3, 3, 4, 3, 4, 4):
        engine(**tokens(steps))
        counts.append((len(trt.cuda.alive), trt.cuda.launched))
    assert counts == [(0, 0), (1, 0), (1, 1), (1, 1), (1, 2), (2, 2), (2, 3)]
    del engine
    assert trt.cuda.memory == {} and trt.cuda.alive == [], "all is freed with the graph"


def test_an_engine_that_cannot_be_recorded_runs_all_the_same(
    trt: TensorRt, tiny_members: dict[str, bytes]
) -> None:
    trt.cuda.records = False
    engine = graph(trt, tiny_members)
    first = engine(**tokens(3))[0]
    for _ in range(4):
        np.testing.assert_array_equal(engine(**tokens(3))[0], first)
    assert trt.cuda.launched == 0 and trt.cuda.recording is None


def test_threads_take_turns(trt: TensorRt, tiny_members: dict[str, bytes]) -> None:
    engine = graph(trt, tiny_members)
    cases = [tokens(steps, batch, first) for steps in (1, 3, 6) for batch in (1, 2) for first in (0, 4)]
    expected = [engine(**case)[0] for case in cases]
    with ThreadPoolExecutor(8) as pool:
        for case, result in pool.map(lambda n: (n, engine(**cases[n % 12])[0]), range(96)):
            np.testing.assert_array_equal(result, expected[case % 12])


def test_a_result_outlives_the_next_run(trt: TensorRt, tiny_members: dict[str, bytes]) -> None:
    engine = graph(trt, tiny_members)
    (states,) = engine(**tokens(3))
    kept = states.copy()
    engine(**tokens(3, first=9))
    np.testing.assert_array_equal(states, kept)


def test_wrong_arrays_are_named(trt: TensorRt, tiny_members: dict[str, bytes]) -> None:
    engine = graph(trt, tiny_members)
    error = error_of(lambda: engine(input_ids=tokens(3)["input_ids"]))
    assert error.code == "graph.signature" and "got input_ids" in error.message
    error = error_of(lambda: engine(**{n: a.astype(np.int32) for n, a in tokens(3).items()}))
    assert error.code == "graph.signature" and "expected int64" in error.message
    for wrong in (tokens(7), tokens(2, batch=3)):
        error = error_of(lambda wrong=wrong: engine(**wrong))  # type: ignore[misc]
        assert error.code == "engine.limits" and "from [1, 1] to [2, 6]" in error.message
        assert "--max-text" in error.message
    error = error_of(lambda: engine.expect(["a"], ["states"]))
    assert error.code == "graph.signature"


def test_an_engine_that_tensorrt_refuses(trt: TensorRt) -> None:
    from affectrt.backends.tensorrt import EngineGraph

    error = error_of(lambda: EngineGraph(Engine(b"no", EngineBuild("fp32", False, {})), name="tiny/text"))
    assert error.code == "engine.invalid" and "build it again" in error.message


def test_a_gpu_that_fails_says_why(trt: TensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    from affectrt.backends.gpu import Stream, find_gpu

    monkeypatch.setattr(trt.cuda, "cudaStreamCreateWithFlags", lambda flags: (2, None), raising=False)
    error = error_of(Stream)
    assert error.code == "gpu.failed" and "operation not permitted" in error.message
    monkeypatch.setattr(trt.cuda, "cudaGetDeviceCount", lambda: (0, 0), raising=False)
    assert error_of(find_gpu).code == "gpu.missing"
    monkeypatch.setattr(trt.cuda, "cudaGetDeviceCount", lambda: (35, None), raising=False)
    assert error_of(find_gpu).code == "gpu.missing"
    for said in ((0, 0), (999, None)):
        monkeypatch.setattr(trt.cuda, "cudaDriverGetVersion", lambda said=said: said)
        error = error_of(find_gpu)
        assert error.code == "gpu.missing" and "install the driver" in error.message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-text", "2"], "--max-text: expected 3 to"),
        (["--max-text", "100000"], "--max-text: expected 3 to"),
        (["--max-audio", "0"], "--max-audio: expected 0.08 to 60 seconds, got 0"),
        (["--max-audio", "nan"], "--max-audio"),
        (["--max-vision", "0"], "--max-vision: expected 1 to 4096 faces, got 0"),
        (["--workspace", "0"], "--workspace: expected 1 to"),
        (["--precision", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_options_that_make_no_sense(
    trt: TensorRt, tiny_bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert main(["build-engine", str(tiny_bundle), *options]) == 2
    assert named in capsys.readouterr().err


def test_without_tensorrt(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["build-engine", str(tiny_bundle)]) == 2
    assert "[extra.missing]" in (err := capsys.readouterr().err) and "affectrt[tensorrt]" in err
