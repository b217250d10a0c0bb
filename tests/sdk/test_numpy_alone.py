"""With numpy and nothing else: features in, results out, and what is missing is named when it is used."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import affectrt
from affectrt.errors import AffectError

ONLY_NUMPY = """
import sys
from importlib.abc import MetaPathFinder

class OnlyNumpy(MetaPathFinder):
    allowed = {*sys.stdlib_module_names, "numpy", "affectrt", "affectrt_kernels"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

assert not {"onnxruntime", "tokenizers", "av", "cv2", "torch"} & sys.modules.keys()
sys.meta_path.insert(0, OnlyNumpy())
bundle = sys.argv[1]
"""
HEAD = """
import numpy as np
import affectrt
from affectrt import AffectError, FeatureSequence

model = affectrt.load(bundle)
def rows(modality, steps, start_s=0.0):
    values = np.random.default_rng(steps).standard_normal((steps, model.manifest.dim(modality)))
    times = start_s + np.arange(1, steps + 1) / 10
    return FeatureSequence(modality, values.astype(np.float32), times, "mine")
features = {m: rows(m, 12) for m in ("text", "audio", "vision")}
"""


def run(code: str, bundle: Path, *, blocked: bool = True) -> str:
    code = (ONLY_NUMPY if blocked else "import sys; bundle = sys.argv[1]\n") + HEAD + code
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_given_features_are_enough(ghrnn_bundle: Path) -> None:
    code = "a = model.predict(features=features); print(model.backend, repr(a.sentiment), a.emotions)"
    alone = run(code, ghrnn_bundle)
    assert alone.startswith("native ")
    assert alone == run(code, ghrnn_bundle, blocked=False)


def test_a_stream_of_features_is_enough(ghrnn_bundle: Path) -> None:
    code = """
with model.stream(2.0, 0.5) as stream:
    for k in range(30):
        for modality in features:
            stream.push_features(rows(modality, 1, start_s=k / 10))
    for affect in stream.flush():
        print(affect.time_s, repr(affect.sentiment), sorted(affect.present), affect.events)
"""
    alone = run(code, ghrnn_bundle)
    assert alone.count("['audio', 'text', 'vision'] ()") == 6 == alone.count("\n")
    assert alone == run(code, ghrnn_bundle, blocked=False)


def test_what_is_missing_is_named_when_it_is_used(ghrnn_bundle: Path) -> None:
    code = """
sound = (np.sin(np.arange(16000) / 10).astype(np.float32), 16000)
for use in (
    lambda: model.predict(text="so happy"),
    lambda: model.predict(text="so happy", features={"audio": features["audio"]}),
    lambda: model.predict(audio=sound),
    lambda: model.predict(audio=bundle),
    lambda: model.predict(video=bundle),
    lambda: model.predict(image=np.zeros((48, 48), np.uint8)),
    lambda: affectrt.load(bundle, backend="onnxruntime"),
):
    try:
        use()
    except AffectError as error:
        print(error.code, error.message)
"""
    lines = run(code, ghrnn_bundle).splitlines()
    assert len(lines) == 7
    for line, extra in zip(lines, ("media", "media", "cpu", "media", "media", "media", "cpu"), strict=True):
        assert line.startswith("extra.missing ") and f"pip install 'affectrt[{extra}]'" in line, line


def test_a_stream_goes_on_with_what_there_is(ghrnn_bundle: Path) -> None:
    """Sound, pictures and words that nothing here can encode are reported, and features still speak."""
    code = """
with model.stream(2.0, 0.5) as stream:
    stream.push_text("so happy", 0.1, 0.4)
    stream.push_audio(np.ones(16000, np.float32) / 2, 16000, 0.0)
    stream.push_frame(np.zeros((48, 48), np.uint8), 0.2)
    stream.push_features(rows("vision", 14))
    for affect in stream.flush():
        print(affect.time_s, sorted(affect.present), [event.code for event in affect.events])
"""
    lines = run(code, ghrnn_bundle).splitlines()
    # Time goes on with what fails, and the results tell why they rest on nothing.
    assert lines == [
        "0.5 [] ['extra.missing', 'extra.missing']",
        "1.0 [] []",
        "1.4 ['vision'] ['extra.missing']",
    ]


def test_commands_say_what_is_missing(ghrnn_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("so happy", encoding="utf-8")
    code = f"""
from affectrt.cli import main
print(main(["info", bundle]), main(["doctor", bundle]))
print(main(["analyze", {str(tmp_path / "words.txt")!r}, "--bundle", bundle]), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", ONLY_NUMPY + code, str(ghrnn_bundle)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    out = " ".join(done.stdout.split())
    assert "; not onnxruntime: this needs the library 'onnxruntime'" in out
    assert "runs on native; loads in" in out
    assert "made-up features stand for text, audio, vision: this needs the library 'tokenizers'" in out
    assert done.stdout.splitlines()[-1] == "2"
    assert done.stderr.startswith("affectrt: [extra.missing] this needs the library 'tokenizers'")
    assert done.stderr.count("\n") == 1


def test_encoders_that_come_later_are_made_once(ghrnn_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        for library in ("tokenizers", "onnxruntime"):
            patched.setitem(sys.modules, library, None)
        encoders = affectrt.load(ghrnn_bundle, threads=1).encoders
        for part in ("text", "audio_graph", "vision_graph"):
            with pytest.raises(AffectError, match="could not be imported") as caught:
                getattr(encoders, part)
            assert caught.value.code == "extra.missing"
    with ThreadPoolExecutor(8) as pool:
        for part in ("text", "audio_graph", "vision_graph"):
            made = list(pool.map(lambda _, part=part: getattr(encoders, part), range(32)))
            assert len({id(each) for each in made}) == 1


def test_what_can_be_loaded_is_loaded_at_once(ghrnn_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first result of a live application waits for no encoder."""
    model = affectrt.load(ghrnn_bundle, threads=1)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert model.predict(text="i love it").present == {"text"}
    assert model.encoders.audio_graph is not None and model.encoders.vision_graph is not None
