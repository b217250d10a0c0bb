"""What a window amounts to, against the plainest way to say it."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import affectrt
from affectrt.affect import Modality
from affectrt.backends import Array, FloatArray, Graph
from affectrt.encoders import Encoders
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word
from affectrt.media import Media, VideoFrame
from affectrt.profiling import StageTimer
from affectrt.timeline import Timeline

times = st.integers(0, 200).map(lambda tenths: tenths / 10)


def rows(modality: Modality, times_s: list[float], dim: int) -> FeatureSequence:
    """Every row tells its own time."""
    values = np.repeat(np.array(times_s, np.float32)[:, None], dim, axis=1)
    return FeatureSequence(modality, values.reshape(-1, dim), np.array(times_s, np.float64), "test")


@given(
    words=st.lists(st.tuples(times, times), max_size=20),
    audio=st.lists(times, max_size=20).map(sorted),
    vision=st.lists(times, max_size=20).map(sorted),
    at_s=times,
    window_s=st.sampled_from([0.5, 2.0, 4.0]),
)
def test_windows_by_brute_force(
    tiny_model: affectrt.Model,
    words: list[tuple[float, float]],
    audio: list[float],
    vision: list[float],
    at_s: float,
    window_s: float,
) -> None:
    encoders = tiny_model.encoders
    timeline = Timeline(encoders, window_s=window_s, keep_s=inf)
    said = [Word(f"w{k}", min(pair), max(pair)) for k, pair in enumerate(words)]
    for word in said:
        timeline.push_word(word)
    cut = len(audio) // 2
    timeline.push_features(rows("audio", audio[:cut], encoders.dim("audio")))
    timeline.push_features(rows("audio", audio[cut:], encoders.dim("audio")))
    timeline.push_features(rows("vision", vision, encoders.dim("vision")))
    window = timeline.at(at_s)

    assert list(window) == ["text", "audio", "vision"]
    heard = [word for word in said if at_s - window_s < word.end_s <= at_s]
    expected = encoders.text.extract(heard)
    assert len(window["text"]) == len(expected)
    assert sorted(window["text"].times_s) == sorted(expected.times_s)
    expected_audio = [t for t in audio if at_s - window_s < t <= at_s]
    assert window["audio"].values[:, 0].tolist() == pytest.approx(expected_audio)
    expected_vision = [t for t in vision if at_s - window_s < t <= at_s]
    if expected_vision and expected_vision[-1] < at_s - 1.0:
        expected_vision = []
    assert window["vision"].values[:, 0].tolist() == pytest.approx(expected_vision)
    newest = max([*audio, *vision, *(word.end_s for word in said)], default=-inf)
    assert timeline.newest_s == newest


@given(st.lists(times, min_size=1, max_size=40).map(sorted))
def test_what_is_older_than_kept_is_dropped_and_nothing_else(
    tiny_model: affectrt.Model, ends: list[float]
) -> None:
    kept, all_of_it = (Timeline(tiny_model.encoders, window_s=2.0, keep_s=keep_s) for keep_s in (3.0, inf))
    for end_s in ends:
        for timeline in (kept, all_of_it):
            timeline.push_word(Word("so", 0.0, end_s))
            timeline.push_features(rows("audio", [end_s], tiny_model.encoders.dim("audio")))
        for back_s in (0.0, 1.0):
            one, other = kept.at(end_s - back_s), all_of_it.at(end_s - back_s)
            for modality in ("text", "audio"):
                np.testing.assert_array_equal(one[modality].times_s, other[modality].times_s)
    assert len(kept.window(-inf, inf)["audio"]) == sum(end_s > ends[-1] - 3.0 for end_s in ends)
    assert len(kept.window(-inf, ends[-1] - 3.0)["text"]) == 0


def test_text_is_encoded_once_while_the_words_stay(tiny_model: affectrt.Model) -> None:
    timer = StageTimer()
    timeline = Timeline(tiny_model.encoders, window_s=4.0, keep_s=inf, timer=timer)
    timeline.push_word(Word("great", 0.5, 1.0))
    first, second = timeline.at(2.0), timeline.at(3.0)
    assert second["text"] is first["text"]
    assert timer.calls["text encoder"] == 1
    timeline.push_word(Word("film", 3.0, 3.5))
    assert len(timeline.at(4.0)["text"]) == 4
    assert len(timeline.at(5.2)["text"]) == 3, "the first word has left the window"
    assert timer.calls["text encoder"] == 3


def test_face_counts_for_a_second(tiny_model: affectrt.Model) -> None:
    timeline = Timeline(tiny_model.encoders, window_s=4.0, keep_s=inf)
    timeline.push_features(rows("vision", [1.0, 2.0], tiny_model.encoders.dim("vision")))
    assert len(timeline.at(3.0)["vision"]) == 2
    assert len(timeline.at(3.1)["vision"]) == 0


def test_rows_of_another_width(tiny_model: affectrt.Model) -> None:
    timeline = Timeline(tiny_model.encoders, window_s=4.0, keep_s=inf)
    with pytest.raises(AffectError) as caught:
        timeline.push_features(rows("audio", [1.0], 3))
    assert caught.value.code == "features.dim"


def test_rows_that_run_backwards(tiny_model: affectrt.Model) -> None:
    timeline = Timeline(tiny_model.encoders, window_s=4.0, keep_s=inf)
    dim = tiny_model.encoders.dim("audio")
    timeline.push_features(rows("audio", [2.0], dim))
    with pytest.raises(AffectError) as caught:
        timeline.push_features(rows("audio", [0.9], dim))
    assert caught.value.code == "features.times"
    assert len(timeline.at(2.0)["audio"]) == 1
    timeline.push_features(rows("audio", [1.0, 2.0, 3.0], dim))
    assert timeline.at(3.0)["audio"].times_s.tolist() == [1.0, 2.0, 2.0, 3.0], "a second's disorder is sorted"


def test_each_face_is_encoded_once(tiny_model: affectrt.Model) -> None:
    """Over a real clip: overlapping windows share their faces' states."""
    graph = tiny_model.encoders.vision_graph
    encoded: list[int] = []

    class Counting(Encoders):
        @property
        def vision_graph(self) -> Graph:
            def counting(**inputs: Array) -> tuple[FloatArray, ...]:
                encoded.append(len(inputs["faces"]))
                return graph(**inputs)

            return counting

    timeline = Timeline(Counting(tiny_model.bundle, threads=1), window_s=2.0, keep_s=inf)
    clip = Path(__file__).parents[2] / "demo" / "clip.mp4"
    seen: set[float] = set()
    with Media.open(clip, max_video_rate_hz=10.0, audio=False) as media:
        for item in media:
            assert isinstance(item, VideoFrame)
            timeline.push_frame(item.bgr, item.time_s)
            if item.time_s > 3.0:
                break
            seen.update(timeline.at(item.time_s)["vision"].times_s.tolist())
    assert len(seen) >= 15
    assert sum(encoded) == len(seen)
