"""Fusion, calibration, contributions and whole-clip prediction."""

from __future__ import annotations

import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import affectrt
from affectrt.affect import EMOTIONS, MODALITIES, Affect, Modality
from affectrt.bundle import Manifest
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word, words_of
from affectrt.media import AudioChunk, Media

DEMO = Path(__file__).parents[2] / "demo" / "clip.mp4"
RATE_HZ = 16_000


def sequence(model: affectrt.Model, modality: Modality, length: int, seed: int = 0) -> FeatureSequence:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(length, model.encoders.dim(modality))).astype(np.float32)
    return FeatureSequence(modality, values, np.arange(length, dtype=np.float64) / 10, "test")


def voice(length_s: float, level: float = 0.2) -> np.typing.NDArray[np.float32]:
    """A buzz at 140 Hz that swells and fades like syllables, over a little noise."""
    t = np.arange(int(length_s * RATE_HZ)) / RATE_HZ
    buzz = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * t), 0, None) ** 2
    noise = np.random.default_rng(0).normal(0, 1e-4, len(t))
    return (level * buzz * syllables + noise).astype(np.float32)


def comparable(affect: Affect) -> Affect:
    return replace(affect, latency_ms=0.0)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(AffectError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value.code


@pytest.mark.parametrize("present", [c for n in range(4) for c in combinations(MODALITIES, n)])
def test_fuse_against_one_call_per_subset(tiny_model: affectrt.Model, present: tuple[Modality, ...]) -> None:
    sequences: dict[Modality, FeatureSequence] = {
        m: sequence(tiny_model, m, 3 + 4 * k) for k, m in enumerate(present)
    }
    affect = tiny_model.fuse(sequences, 2.5, perf_counter())
    assert affect.time_s == 2.5
    assert affect.present == set(present)
    assert list(affect.contributions) == list(present)
    for modality in present:
        rest = {m: s for m, s in sequences.items() if m != modality}
        without = tiny_model.fuse(rest, 2.5, perf_counter()).sentiment
        assert affect.contributions[modality] == pytest.approx(affect.sentiment - without, abs=1e-5)
    calibration = tiny_model.manifest.calibration
    assert affect.interval == calibration.interval(affect.sentiment, present)
    assert tuple(affect.emotions) == EMOTIONS
    assert sum(affect.emotions.values()) == pytest.approx(1.0)
    assert 0 <= affect.latency_ms < 5_000


def test_temperature_is_that_of_what_is_present(
    make_bundle: Callable[..., Path], tiny_model: affectrt.Model
) -> None:
    manifest = tiny_model.manifest
    hot = replace(manifest.calibration, temperature={**manifest.calibration.temperature, "audio": 1e6})
    model = affectrt.load(make_bundle(replace(manifest, calibration=hot)), threads=1)
    alone = model.fuse({"audio": sequence(model, "audio", 4)}, 0.0, perf_counter())
    assert max(alone.emotions.values()) - min(alone.emotions.values()) < 1e-4
    both: dict[Modality, FeatureSequence] = {
        "audio": sequence(model, "audio", 4),
        "text": sequence(model, "text", 4),
    }
    expected = tiny_model.fuse(both, 0.0, 0.0)
    assert model.fuse(both, 0.0, 0.0).emotions == pytest.approx(dict(expected.emotions))


def test_empty_rows_are_absent(tiny_model: affectrt.Model) -> None:
    prior = comparable(tiny_model.fuse({}, 1.0, perf_counter()))
    assert prior.present == frozenset()
    assert prior.contributions == {}
    empty = {m: FeatureSequence.empty(m, 3) for m in MODALITIES}
    assert comparable(tiny_model.fuse(empty, 1.0, perf_counter())) == prior


def test_fuse_refuses_what_does_not_fit(tiny_model: affectrt.Model) -> None:
    wide = FeatureSequence("audio", np.zeros((2, 99), np.float32), np.zeros(2))
    assert error_of(lambda: tiny_model.fuse({"audio": wide}, 0.0, 0.0)) == "features.dim"
    dim = tiny_model.encoders.dim("text")
    huge = FeatureSequence("text", np.full((9, dim), 3e38, np.float32), np.zeros(9))
    assert error_of(lambda: tiny_model.fuse({"text": huge}, 0.0, 0.0)) == "model.not_finite"


def test_load_refuses_graphs_that_are_something_else(
    make_bundle: Callable[..., Path], tiny_members: dict[str, bytes]
) -> None:
    swapped = make_bundle(members={"audio.onnx": tiny_members["vision.onnx"]})
    assert error_of(lambda: affectrt.load(swapped)) == "graph.signature"
    broken = make_bundle(members={"fusion.onnx": b"nothing"})
    assert error_of(lambda: affectrt.load(broken)) == "graph.invalid"
    wordless = make_bundle(members={"tokenizer.json": b"{}"})
    assert error_of(lambda: affectrt.load(wordless)) == "tokenizer.invalid"


def test_threads_share_a_model(tiny_model: affectrt.Model) -> None:
    texts = [
        f"i am {word} it was a film {k}" for k, word in enumerate(["happy", "sad", "great", "awful"] * 8)
    ]
    expected = [comparable(tiny_model.predict(text=text)) for text in texts]
    assert len({affect.sentiment for affect in expected}) > 16
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda text: comparable(tiny_model.predict(text=text)), texts))
    assert results == expected


def test_predict_text(tiny_model: affectrt.Model) -> None:
    affect = tiny_model.predict(text="i love it")
    assert affect.present == {"text"}
    features = tiny_model.encoders.text.extract(words_of("i love it", 0.0))
    assert comparable(affect) == comparable(tiny_model.fuse({"text": features}, affect.time_s, 0.0))
    assert affect.time_s == pytest.approx(1.2)
    timed = tiny_model.predict(text=[Word("i", 0.0, 0.1), Word("love", 0.1, 0.2), Word("it", 3.0, 4.0)])
    assert timed.sentiment == pytest.approx(affect.sentiment)
    assert timed.time_s == 4.0


def test_predict_long_text(tiny_model: affectrt.Model) -> None:
    """As long as it fits the encoder it is one window, however slowly it would be said."""
    fits = " ".join(["awful"] * 5 + ["."] * 24)
    features = tiny_model.encoders.text.extract(words_of(fits, 0.0))
    assert len(features) == 31
    assert words_of(fits, 0.0)[-1].end_s < 20.0
    slow = " ".join(["i am so sad"] * 7)
    assert tiny_model.predict(text=slow).sentiment == pytest.approx(
        tiny_model.fuse({"text": tiny_model.encoders.text.extract(words_of(slow, 0.0))}, 0.0, 0.0).sentiment
    )
    longer = " ".join(["i am so sad"] * 14 + ["it was great"] * 14)  # 98 words, 39.2 s, two windows
    words = words_of(longer, 0.0)
    halves = [[w for w in words if w.end_s <= 19.6], [w for w in words if w.end_s > 19.6]]
    parts = [
        tiny_model.fuse({"text": tiny_model.encoders.text.extract(half)}, 0.0, 0.0).sentiment
        for half in halves
    ]
    assert tiny_model.predict(text=longer).sentiment == pytest.approx(np.mean(parts))


def test_predict_audio(tiny_model: affectrt.Model) -> None:
    affect = tiny_model.predict(audio=(voice(3.0), RATE_HZ))
    assert affect.present == {"audio"}
    assert affect.time_s == pytest.approx(3.0)
    stereo = np.stack([voice(3.0), voice(3.0)], axis=1)
    assert tiny_model.predict(audio=(stereo, RATE_HZ)).sentiment == pytest.approx(affect.sentiment)
    assert tiny_model.predict(audio=((voice(3.0) * 32767).astype(np.int16), RATE_HZ)).present == {"audio"}


@pytest.mark.parametrize("length_s", [0.0, 0.01, 3.0, 25.0])
def test_silence_is_absent(tiny_model: affectrt.Model, length_s: float) -> None:
    affect = tiny_model.predict(audio=(np.zeros(int(length_s * RATE_HZ), np.float32), RATE_HZ))
    prior = tiny_model.fuse({}, affect.time_s, 0.0)
    assert replace(comparable(affect), interval=prior.interval) == comparable(prior)
    assert affect.interval == pytest.approx(prior.interval)


def test_long_clip_is_the_mean_of_the_windows_with_something_in_them(tiny_model: affectrt.Model) -> None:
    # 60 s: 20 s of speech, 20 s of silence, 20 s of silence with words.
    pcm = np.concatenate([voice(20.0), np.zeros(40 * RATE_HZ, np.float32)])
    words = words_of("it was great", 50.0, 52.0)
    affect = tiny_model.predict(audio=(pcm, RATE_HZ), text=words)
    spoken = tiny_model.predict(audio=(voice(20.0), RATE_HZ))
    written = tiny_model.predict(text="it was great")
    assert affect.present == {"audio", "text"}
    assert affect.time_s == pytest.approx(60.0)
    assert affect.sentiment == pytest.approx((spoken.sentiment + written.sentiment) / 2, abs=1e-3)
    assert affect.contributions["text"] == pytest.approx(written.contributions["text"] / 2, abs=1e-3)
    assert sum(affect.emotions.values()) == pytest.approx(1.0)


def test_text_without_times_spreads_over_the_clip(tiny_model: affectrt.Model) -> None:
    pcm = np.concatenate([voice(20.0), voice(20.0, level=0.1)])
    text = "i am sad it was great"
    spread = tiny_model.predict(audio=(pcm, RATE_HZ), text=text)
    timed = tiny_model.predict(audio=(pcm, RATE_HZ), text=words_of(text, 0.0, 40.0))
    assert comparable(spread) == comparable(timed)


def test_predict_still(tiny_model: affectrt.Model, tmp_path: Path) -> None:
    import cv2

    crop = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
    affect = tiny_model.predict(image=crop)
    assert affect.present == {"vision"}
    (states,) = tiny_model.encoders.vision_graph(faces=crop[None].astype(np.float32) / np.float32(255))
    expected = tiny_model.fuse({"vision": FeatureSequence("vision", states, np.zeros(1))}, 0.0, 0.0)
    assert affect.sentiment == pytest.approx(expected.sentiment, abs=1e-5)
    assert cv2.imwrite(str(tmp_path / "face.png"), crop)
    assert comparable(tiny_model.predict(image=tmp_path / "face.png")) == comparable(affect)
    nobody = tiny_model.predict(image=np.full((300, 400, 3), 90, np.uint8))
    assert nobody.present == frozenset()
    # A still is there all along, also in every window of a long clip.
    long = tiny_model.predict(image=crop, text=words_of("so happy", 0.0, 45.0))
    assert long.present == {"text", "vision"}


def test_predict_video(tiny_model: affectrt.Model) -> None:
    silence = (np.zeros(RATE_HZ, np.float32), RATE_HZ)
    affect = tiny_model.predict(video=DEMO, audio=silence, text="i am happy")
    assert affect.present == {"text", "vision"}, "the given sound takes the place of the video's"


def test_predict_sound_of_a_file(tiny_model: affectrt.Model, tmp_path: Path) -> None:
    affect = tiny_model.predict(audio=DEMO)
    assert affect.present == {"audio"}
    with Media.open(DEMO, video=False) as media:
        chunks = [item for item in media if isinstance(item, AudioChunk)]
    pcm = np.concatenate([chunk.pcm for chunk in chunks])
    given = tiny_model.predict(audio=(pcm, chunks[0].sample_rate_hz))
    assert affect.sentiment == pytest.approx(given.sentiment, abs=1e-3)
    # A file with nothing but sound may be given as a video, too.
    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes((voice(3.0) * 32767).astype("<i2").tobytes())
    assert tiny_model.predict(video=tmp_path / "voice.wav").present == {"audio"}


def test_predict_features(tiny_model: affectrt.Model) -> None:
    sequences = {m: sequence(tiny_model, m, 5) for m in MODALITIES}
    affect = tiny_model.predict(features=sequences)
    assert comparable(affect) == comparable(tiny_model.fuse(sequences, 0.4, 0.0))
    wrong = {"audio": sequences["text"]}
    assert error_of(lambda: tiny_model.predict(features=wrong)) == "features.modality"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"video": "a.mp4", "image": "a.png"},
        {"text": "so", "features": {"text": None}},
        {"audio": "a.wav", "features": {"audio": None}},
        {"image": "a.png", "features": {"vision": None}},
    ],
)
def test_two_inputs_for_one_modality(tiny_model: affectrt.Model, given: dict[str, Any]) -> None:
    assert error_of(lambda: tiny_model.predict(**given)) == "predict.conflict"


def test_bad_input(tiny_model: affectrt.Model, tmp_path: Path) -> None:
    assert error_of(tiny_model.predict) == "predict.no_input"
    nan = np.full(RATE_HZ, np.nan, np.float32)
    assert error_of(lambda: tiny_model.predict(audio=(nan, RATE_HZ))) == "audio.not_finite"
    assert error_of(lambda: tiny_model.predict(video=tmp_path / "none.mp4")) == "media.not_found"
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    assert error_of(lambda: tiny_model.predict(video=tmp_path / "text.mp4")) == "media.undecodable"
    frame = np.zeros((10_000, 10_000, 3), np.uint8)
    assert error_of(lambda: tiny_model.predict(image=frame)) == "vision.frame_shape"


def test_a_clip_cut_short_warns(tiny_model: affectrt.Model, tmp_path: Path) -> None:
    whole = tmp_path / "whole.wav"
    with wave.open(str(whole), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes((voice(6.0) * 32767).astype("<i2").tobytes())
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[: 44 + 3 * 2 * RATE_HZ])
    with pytest.warns(UserWarning, match="cut short") as caught:
        affect = tiny_model.predict(audio=cut)
    assert caught[0].filename == __file__
    assert affect.present == {"audio"}
    assert affect.time_s == pytest.approx(3.0, abs=0.1)


@given(st.text(max_size=40))
def test_any_text_has_a_result(tiny_model: affectrt.Model, text: str) -> None:
    affect = tiny_model.predict(text=text)
    assert affect.present == ({"text"} if text.split() else frozenset())
    assert -3 <= affect.interval[0] <= affect.sentiment <= affect.interval[1] <= 3


def test_the_manifest_is_there_to_read(tiny_model: affectrt.Model, tiny_manifest: Manifest) -> None:
    assert replace(tiny_model.manifest, members={}) == tiny_manifest
    assert "tiny" in repr(tiny_model)
