"""The main job, end to end: the committed weights, exported, read a clip through the command line."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import affectrt
from affectrt.affect import MODALITIES, Modality
from affectrt.cli import main
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word
from affectrt.transcript import read_transcript
from affectrt_training.recipes.starter import measure as figures
from tests.clips import DEMO, beginning
from tests.training.pushing import at_once, check, pushed, recording_of

DATA = Path(os.environ["AFFECTRT_DATA"]) if "AFFECTRT_DATA" in os.environ else None
needs_data = pytest.mark.skipif(DATA is None, reason="AFFECTRT_DATA names no folder with the data sets")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("starter") / "starter.affect"
    assert main(["export", "starter", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def model(bundle: Path) -> affectrt.Model:
    return affectrt.load(bundle, threads=1)


def test_the_bundle_is_small_and_says_what_int8_costs(bundle: Path, model: affectrt.Model) -> None:
    assert bundle.stat().st_size < 32e6
    mae = {m.name: m.value for m in model.manifest.metrics if m.name.startswith("mae_")}
    assert mae["mae_int8"] <= 1.01 * mae["mae_fp32"] < 1.0


def _rows(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["analyze", *argv, "--format", "jsonl"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_demo_clip(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows(
        capsys, str(DEMO / "clip.mp4"), "--bundle", str(bundle), "--transcript", str(DEMO / "clip.srt")
    )
    times = [row["time_s"] for row in rows]
    assert times == sorted(times) and len(rows) >= 18
    seen = {round(row["time_s"]): "vision" in row["present"] for row in rows}
    assert seen[5] and not seen[12] and seen[16], "the face leaves the picture from 9.6 s to 12.6 s"
    assert any("audio" in row["present"] for row in rows)
    delight, outrage = (next(r for r in rows if r["time_s"] == t) for t in (3.0, 14.0))
    assert delight["sentiment"] > 0 > outrage["sentiment"]


def test_words_alone_have_the_right_sign(model: affectrt.Model) -> None:
    for text, sign in (
        ("I loved every minute of it, it was wonderful!", 1),
        ("This is the best gift I have ever received.", 1),
        ("What a terrible, boring waste of time.", -1),
        ("I hate how they treated us.", -1),
    ):
        affect = model.predict(text=text)
        assert sign * affect.sentiment > 0.5, text
        assert affect.interval[0] <= affect.sentiment <= affect.interval[1]
        assert sum(affect.emotions.values()) == pytest.approx(1.0)
        assert affect.present == {"text"}


def test_contributions_are_what_is_lost_without(model: affectrt.Model, tmp_path: Path) -> None:
    words = "It was wonderful!"
    face = beginning(tmp_path / "face.mkv", 4.0)
    both, words_only, face_and_voice = (
        model.predict(video=face, text=words),
        model.predict(text=words),
        model.predict(video=face),
    )
    assert both.present == {"text", "audio", "vision"}
    assert both.contributions["text"] == pytest.approx(both.sentiment - face_and_voice.sentiment, abs=0.02)
    assert set(words_only.contributions) == {"text"}


def test_both_backends_say_the_same(bundle: Path, model: affectrt.Model) -> None:
    """Windows of any lengths, with and without each modality: results and what they lose without each."""
    assert model.backend == "native"
    graph = affectrt.load(bundle, backend="onnxruntime", threads=1)
    random = np.random.default_rng(0)
    for trial in range(60):
        window: dict[Modality, FeatureSequence] = {}
        for modality in MODALITIES:
            steps = 0 if random.random() < 0.3 else int(random.choice([1, 2, 7, 40, 128, 500]))
            values = random.normal(0, random.choice([0.1, 1, 20]), (steps, model.manifest.dim(modality)))
            window[modality] = FeatureSequence(
                modality, values.astype(np.float32), np.linspace(0.0, 4.0, steps), "random"
            )
        native, onnx = (each.fuse(window, 4.0, 0.0) for each in (model, graph))
        assert native.present == onnx.present
        assert native.sentiment == pytest.approx(onnx.sentiment, abs=1e-4), trial
        assert native.emotions == pytest.approx(onnx.emotions, abs=1e-4), trial
        assert native.contributions == pytest.approx(onnx.contributions, abs=1e-4), trial


def test_less_known_is_less_sure(model: affectrt.Model, tmp_path: Path) -> None:
    """An interval without words is wider: nobody rated the sentiment of a voice or a face alone."""
    with_words = model.predict(text="It was fine.")
    silent = model.predict(video=beginning(tmp_path / "face.mkv", 4.0))
    assert silent.interval[1] - silent.interval[0] > with_words.interval[1] - with_words.interval[0]


def test_a_stream_agrees_with_itself_over_chunkings(model: affectrt.Model) -> None:
    """The same words, pushed at once or one by one, give the same results."""
    words = read_transcript(DEMO / "clip.srt")

    def run(chunks: list[list[Word]]) -> list[float]:
        results = []
        with model.stream() as stream:
            for chunk in chunks:
                for word in chunk:
                    stream.push_word(word)
                results += stream.poll()
            results += stream.flush()
        return [affect.sentiment for affect in results]

    assert run([words]) == pytest.approx(run([[word] for word in words]), abs=1e-5)


def test_incremental_results_turn_with_the_person(model: affectrt.Model) -> None:
    results = at_once(model, recording_of(DEMO / "clip.mp4"), hop_s=1.0)
    delight, outrage = (next(a for a in results if a.time_s == t) for t in (3.0, 14.0))
    assert delight.sentiment > 0 > outrage.sentiment


@pytest.mark.parametrize(
    "clip",
    [DEMO / "clip.mp4", *(pytest.param(f"talk_0{k}.mp4", marks=needs_data) for k in (1, 3))],
    ids=["demo", "talk_01", "talk_03"],
)
def test_incremental_results_are_those_of_the_whole_clip(model: affectrt.Model, clip: Path | str) -> None:
    """However a clip is cut, ordered, repeated and polled on its way: as PyTorch says, offline."""
    if isinstance(clip, str):
        assert DATA is not None
        clip = DATA / "clips" / clip
    recording = recording_of(clip)
    random = np.random.default_rng(len(recording.frames))
    for _ in range(2):
        results = pushed(
            model,
            recording,
            cuts=random.integers(1_000, 9_000, 40).tolist(),
            late_s={"sound": 0.2 * random.random(), "frame": 0.2 * random.random()},
            polls=(random.random(7) < 0.5).tolist(),
            twice=(random.random(5) < 0.3).tolist(),
        )
        check(model, results, recording)


@needs_data
@pytest.mark.parametrize(
    ("name", "ever", "never"),
    [
        *((f"talk_0{k}.mp4", {"audio", "vision"}, {"text"}) for k in range(1, 7)),
        ("speech_01.wav", {"audio"}, {"text", "vision"}),
        ("no_face.mp4", set(), {"text", "vision"}),
        ("face_then_none.mov", {"vision"}, {"text"}),
        ("none_then_face.mov", {"vision"}, {"text"}),
    ],
)
def test_real_clips(
    bundle: Path, capsys: pytest.CaptureFixture[str], name: str, ever: set[str], never: set[str]
) -> None:
    assert DATA is not None
    rows = _rows(capsys, str(DATA / "clips" / name), "--bundle", str(bundle))
    gaps = [b["time_s"] - a["time_s"] for a, b in pairwise(rows)]
    assert rows and max(gaps, default=1.0) <= 1.0
    present = set().union(*(row["present"] for row in rows))
    assert present >= ever and not present & never
    seen = ["vision" in row["present"] for row in rows]
    if name == "face_then_none.mov":
        assert seen[0] and not seen[-1]
    if name == "none_then_face.mov":
        assert not seen[0] and seen[-1]


@needs_data
def test_validation_figures(
    bundle: Path, model: affectrt.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model card promises, measured anew: the floors, and that agreeing modalities help.

    Every set whole, but fewer people are composed: always the same, as many of each emotion.
    """
    assert DATA is not None
    if "AFFECTRT_TEST_WHOLE" not in os.environ:
        monkeypatch.setattr(figures, "PEOPLE_PER_EMOTION", 20)
    found: dict[str, dict[str, Any]] = figures.measure(bundle, DATA, tmp_path)
    assert found["mosi"]["mae"] <= 0.80 and found["mosi"]["acc2_non0"] >= 0.84
    assert found["meld"]["weighted_f1"] >= 0.53
    assert found["ravdess"]["uar"] >= 0.50
    assert found["ferplus"]["accuracy"] >= 0.75
    accuracy = {frozenset(n[9:].split("+")): f["accuracy"] for n, f in found.items() if n[:9] == "composed_"}
    for some, together in accuracy.items():
        assert together >= max(accuracy[frozenset({m})] for m in some), sorted(some)
    for metric in model.manifest.metrics:
        names = [name for name, title in figures.TITLES.items() if title.split(",")[0] == metric.dataset]
        if names and metric.name in found[names[0]]:
            assert metric.value == pytest.approx(found[names[0]][metric.name], abs=0.01), metric
