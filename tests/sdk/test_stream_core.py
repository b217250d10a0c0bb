"""What a stream computes: when results are due, what they rest on, and what it survives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import affectrt
from affectrt.affect import Affect
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word, words_of
from affectrt.media import AudioChunk, Media, VideoFrame
from affectrt.profiling import StageTimer
from affectrt.streaming.core import StreamCore
from affectrt.streaming.watch import LOST_S, SILENT_S

DEMO = Path(__file__).parents[2] / "demo" / "clip.mp4"
RATE_HZ = 16_000


def voice(length_s: float) -> np.typing.NDArray[np.float32]:
    """A buzz at 140 Hz that swells and fades like syllables, over a little noise."""
    t = np.arange(int(length_s * RATE_HZ)) / RATE_HZ
    buzz = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12))
    noise = np.random.default_rng(0).normal(0, 1e-4, len(t))
    return (0.2 * buzz * np.clip(np.sin(2 * np.pi * 2.5 * t), 0, None) ** 2 + noise).astype(np.float32)


def core(
    model: affectrt.Model,
    window_s: float | None = None,
    hop_s: float = 1.0,
    *,
    timer: StageTimer | None = None,
) -> StreamCore:
    return StreamCore(model, window_s, hop_s, timer=timer)


def comparable(affects: list[Affect]) -> list[Affect]:
    return [replace(affect, latency_ms=0.0, events=()) for affect in affects]


def happened(affects: list[Affect]) -> list[tuple[str, float]]:
    return [(event.code, event.time_s) for affect in affects for event in affect.events]


def times(affects: list[Affect]) -> list[float]:
    return [round(affect.time_s, 6) for affect in affects]


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(AffectError) as caught:
        call()
    return caught.value.code


def test_results_are_due_when_the_newest_time_reaches_them(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model, hop_s=0.5)
    assert stream.poll() == []
    stream.push_text("so", 0.0, 0.49)
    assert stream.poll() == []
    stream.push_text("happy", 0.5, 1.1)
    assert times(stream.poll()) == [0.5, 1.0]
    assert stream.poll() == []
    stream.push_text("it", 2.9, 3.0)
    results = stream.poll()
    assert times(results) == [1.5, 2.0, 2.5, 3.0]
    assert all(affect.present == {"text"} for affect in results)


def test_a_result_is_that_of_its_window(tiny_model: affectrt.Model) -> None:
    words = words_of("i am so happy it was a great film i love it", 0.0, 8.0)
    stream = core(tiny_model, window_s=2.0)
    for word in words:
        stream.push_word(word)
    results = stream.poll()
    assert times(results) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    for affect in results:
        heard = [w for w in words if affect.time_s - 2.0 < w.end_s <= affect.time_s]
        expected = tiny_model.fuse(
            {"text": tiny_model.encoders.text.extract(heard)}, affect.time_s, perf_counter()
        )
        assert comparable([affect]) == comparable([expected])


@pytest.mark.parametrize(
    ("end_s", "expected"),
    [(0.1, [0.1]), (1.0, [1.0]), (1.2, [1.0]), (1.25, [1.0, 1.25]), (2.9, [1.0, 2.0, 2.9])],
)
def test_flush(tiny_model: affectrt.Model, end_s: float, expected: list[float]) -> None:
    stream = core(tiny_model)
    stream.push_audio(voice(end_s), RATE_HZ, 0.0)
    assert times(stream.flush()) == expected
    assert stream.flush() == [], "the end is told once"


def test_flush_of_nothing(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model)
    assert stream.flush() == []


def test_audio_and_silence(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model, window_s=2.0)
    stream.push_audio(np.concatenate([voice(4.0), np.zeros(5 * RATE_HZ, np.float32)]), RATE_HZ, 0.0)
    results = stream.poll()
    assert times(results) == [float(k) for k in range(1, 10)]
    assert [affect.present for affect in results[:4]] == [{"audio"}] * 4
    assert [affect.present for affect in results[-3:]] == [frozenset()] * 3
    prior = tiny_model.fuse({}, 9.0, perf_counter())
    assert comparable(results[-1:]) == comparable([prior])
    assert [code for code, _ in happened(results)] == ["speaker_silent"]


@settings(deadline=None, max_examples=15)
@given(
    chunks=st.lists(st.integers(1, 16_000), min_size=1, max_size=12),
    poll_after=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_chunks_and_polls_make_no_difference(
    tiny_model: affectrt.Model, chunks: list[int], poll_after: list[bool]
) -> None:
    pcm = voice(sum(chunks) / RATE_HZ + 0.1)[: sum(chunks)]
    whole = core(tiny_model, window_s=2.0, hop_s=0.5)
    whole.push_audio(pcm, RATE_HZ, 0.0)
    expected = whole.flush()
    results: list[Affect] = []
    stream = core(tiny_model, window_s=2.0, hop_s=0.5)
    at = 0
    for length, poll in zip(chunks, poll_after, strict=False):
        stream.push_audio(pcm[at : at + length], RATE_HZ, at / RATE_HZ)
        at += length
        if poll:
            results += stream.poll()
    results += stream.flush()
    assert times(results) == pytest.approx(times(expected), abs=1e-5)
    for one, other in zip(results, expected, strict=True):
        assert one.present == other.present
        assert one.sentiment == pytest.approx(other.sentiment, abs=1e-4)


def test_order_of_pushing_between_polls_makes_no_difference(tiny_model: affectrt.Model) -> None:
    length_s = 20
    words = words_of("i am so sad it was awful " * 4, 0.0, float(length_s))
    pcm = voice(length_s)
    dim = tiny_model.encoders.dim("vision")
    moments = np.arange(10 * length_s) / 10
    faces = FeatureSequence("vision", np.sin(np.arange(dim) + moments[:, None]).astype(np.float32), moments)

    def push_words(stream: StreamCore) -> None:
        for word in words:
            stream.push_word(word)

    def push_sound(stream: StreamCore) -> None:
        stream.push_audio(pcm, RATE_HZ, 0.0)

    def push_faces(stream: StreamCore) -> None:
        stream.push_features(faces)

    def push_along(stream: StreamCore) -> list[Affect]:
        results: list[Affect] = []
        for k in range(10 * length_s):
            stream.push_audio(pcm[k * 1600 : (k + 1) * 1600], RATE_HZ, k / 10)
            for word in words:
                if k / 10 < word.end_s <= (k + 1) / 10:
                    stream.push_word(word)
            stream.push_features(faces.between(k / 10 if k else -1.0, (k + 1) / 10))
            results += stream.poll() if k % 7 == 0 else []
        return results

    stream = core(tiny_model)
    expected = push_along(stream) + stream.flush()
    assert [affect.present for affect in expected] == [{"text", "audio", "vision"}] * length_s
    for order in permutations((push_words, push_sound, push_faces)):
        stream = core(tiny_model)
        for push in order:
            push(stream)
        results = stream.flush()
        assert times(results) == times(expected)
        for one, other in zip(results, expected, strict=True):
            assert one.present == other.present
            assert one.sentiment == pytest.approx(other.sentiment, abs=1e-4)


def test_a_real_clip(tiny_model: affectrt.Model) -> None:
    timer = StageTimer()
    stream = core(tiny_model, timer=timer)
    with Media.open(DEMO, max_video_rate_hz=10.0) as media:
        results: list[Affect] = []
        for item in media:
            if item.time_s > 2.2:
                break
            if isinstance(item, AudioChunk):
                stream.push_audio(item.pcm, item.sample_rate_hz, item.time_s)
            else:
                assert isinstance(item, VideoFrame)
                stream.push_frame(item.bgr, item.time_s)
            results += stream.poll()
    assert happened(results) == []
    assert times(results) == [1.0, 2.0]
    assert {"audio", "vision"} <= set().union(*(affect.present for affect in results))
    assert all(0 < affect.latency_ms < 5_000 for affect in results)
    assert {"face tracking", "face encoder", "audio features", "audio encoder", "fusion"} <= set(
        timer.seconds
    )


def test_pushed_features(tiny_model: affectrt.Model) -> None:
    dim = tiny_model.encoders.dim("vision")
    rows = FeatureSequence("vision", np.ones((15, dim), np.float32), np.arange(15) / 10, "OpenFace")
    stream = core(tiny_model)
    stream.push_features(rows)
    (affect,) = stream.poll()
    expected = tiny_model.fuse({"vision": rows.between(-3.0, 1.0)}, 1.0, perf_counter())
    assert comparable([affect]) == comparable([expected])
    wide = FeatureSequence("vision", np.ones((1, dim + 1), np.float32), np.ones(1))
    assert error_of(lambda: stream.push_features(wide)) == "features.dim"


def test_bad_input_is_refused_and_changes_nothing(tiny_model: affectrt.Model) -> None:
    grey = np.zeros((48, 48), np.uint8)
    good = voice(1.0)
    stream = core(tiny_model)
    for call, code in (
        (lambda: stream.push_audio(np.full(10, np.nan), RATE_HZ, 0.0), "audio.not_finite"),
        (lambda: stream.push_audio(np.zeros((2, 3, 4)), RATE_HZ, 0.0), "audio.shape"),
        (lambda: stream.push_audio(np.zeros(10, np.uint8), RATE_HZ, 0.0), "audio.dtype"),
        (lambda: stream.push_audio(good, 10, 0.0), "audio.sample_rate"),
        (lambda: stream.push_audio(good, RATE_HZ, float("nan")), "stream.time"),
        (lambda: stream.push_frame(np.zeros((10_000, 10_000, 3), np.uint8), 0.0), "vision.frame_shape"),
        (lambda: stream.push_frame(grey, float("inf")), "stream.time"),
        (lambda: stream.push_text("so", 2.0, 1.0), "text.times"),
        (lambda: stream.push_text("so", float("nan")), "text.times"),
    ):
        assert error_of(call) == code
    assert stream.flush() == []
    stream.push_audio(good, RATE_HZ, 0.0)
    (affect,) = stream.flush()
    assert affect.time_s == 1.0
    assert affect.events == stream.untold == ()


def test_caller_may_use_its_buffers_again(tiny_model: affectrt.Model) -> None:
    expected, results = ([], [])  # type: tuple[list[Affect], list[Affect]]
    for affects, spoil in ((expected, False), (results, True)):
        buffer = voice(2.0)
        stream = core(tiny_model)
        stream.push_audio(buffer, RATE_HZ, 0.0)
        if spoil:
            buffer[:] = 0.0
        affects += comparable(stream.poll())
    assert results == expected
    assert results[-1].present == {"audio"}


def test_a_fault_in_time_order_becomes_an_event(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model)
    stream.push_audio(voice(5.0), RATE_HZ, 0.0)
    assert len(stream.poll()) == 5
    stream.push_audio(voice(1.0), RATE_HZ, 1.0)
    stream.push_text("so", 5.5, 6.0)
    (affect,) = stream.poll()
    assert affect.time_s == 6.0
    assert happened([affect]) == [("audio.backwards_time", 1.0)]
    assert stream.untold == ()


def test_clock_of_the_application(tiny_model: affectrt.Model) -> None:
    """Times may be those of the wall clock: nothing is computed for the years before."""
    start_s = 1_790_000_000.25
    stream = core(tiny_model)
    stream.push_audio(voice(2.0), RATE_HZ, start_s)
    assert times(stream.poll()) == [1_790_000_001.0, 1_790_000_002.0]
    stream.push_audio(voice(1.0), RATE_HZ, start_s + 1e9)
    (affect,) = stream.poll()
    assert affect.time_s == 2_790_000_001.0
    assert happened([affect]) == [("stream.time_jump", start_s + 1e9)]


def test_pause_has_results(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model)
    stream.push_text("so happy", 0.0, 1.0)
    stream.push_text("so sad", 29.0, 30.0)
    results = stream.poll()
    assert times(results) == [float(k) for k in range(1, 31)]
    assert results[14].present == frozenset()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_config(tiny_model: affectrt.Model, value: float) -> None:
    assert error_of(lambda: core(tiny_model, hop_s=value)) == "stream.config"
    assert error_of(lambda: core(tiny_model, window_s=value)) == "stream.config"


def test_who_stops_delivering_is_lost_and_comes_back(tiny_model: affectrt.Model) -> None:
    """Words drive the clock on; the sound fails for four seconds."""
    stream = core(tiny_model, hop_s=0.5)
    for k in range(12):
        if not 2 <= k < 6:
            stream.push_audio(voice(1.0), RATE_HZ, float(k))
        stream.push_text("so", float(k), k + 1.0)
    events = happened(stream.flush())
    assert events == [("modality_lost", 2.0 + LOST_S + 0.5), ("modality_back", 7.0)]


def test_the_silent_speaker_is_told_once(tiny_model: affectrt.Model) -> None:
    sound = np.concatenate([voice(3.0), np.zeros(20 * RATE_HZ, np.float32), voice(3.0)])
    stream = core(tiny_model, window_s=1.0, hop_s=0.5)
    stream.push_audio(sound, RATE_HZ, 0.0)
    results = stream.flush()
    spoken_s = max(affect.time_s for affect in results if affect.present and affect.time_s < 20.0)
    assert happened(results) == [("speaker_silent", spoken_s + SILENT_S)]


def test_pictures_alone_tell_of_no_speaker(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model)
    for k in range(100):
        stream.push_frame(np.zeros((48, 48), np.uint8), k / 10)
    assert happened(stream.flush()) == []


def test_the_same_fault_is_told_once_a_second(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model)
    stream.push_audio(voice(10.0), RATE_HZ, 0.0)
    stream.poll()
    for k in range(40):
        stream.push_audio(voice(0.05), RATE_HZ, k / 20)
    stream.push_text("so", 10.0, 11.0)
    (affect,) = stream.poll()
    codes = [code for code, _ in happened([affect])]
    assert codes == ["audio.backwards_time"] * 2


def test_a_clock_that_was_set_back_starts_over(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model)
    stream.push_audio(voice(2.0), RATE_HZ, 5000.0)
    assert times(stream.poll()) == [5001.0, 5002.0]
    for k in range(50):
        stream.push_audio(voice(0.1), RATE_HZ, 100.0 + k / 10)
    results = stream.poll()
    assert times(results) == [103.0, 104.0, 105.0]
    assert [code for code, _ in happened(results)] == ["audio.backwards_time"] * 2 + ["stream.time_jump"]
    assert all(affect.present == {"audio"} for affect in results)


def test_one_late_input_sets_no_clock(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model)
    for k in range(30):
        stream.push_audio(voice(1.0), RATE_HZ, float(k))
        stream.push_word(Word("so", k - 16.0, k - 15.0))
        assert times(stream.poll()) == [k + 1.0]
    assert [code for code, _ in happened(stream.flush())] == []


def test_a_word_that_no_window_holds_any_more_is_told(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model)
    stream.push_audio(voice(20.0), RATE_HZ, 0.0)
    stream.poll()
    stream.push_text("so", 1.0, 2.0)
    stream.push_text("so", 20.0, 21.0)
    results = stream.poll()
    assert happened(results) == [("text.backwards_time", 1.0)]


def test_a_result_that_fails_is_an_event_of_the_next(tiny_model: affectrt.Model) -> None:
    dim = tiny_model.encoders.dim("vision")
    huge = FeatureSequence("vision", np.full((2, dim), 3e38, np.float32), np.array([0.4, 0.5]))
    stream = core(tiny_model, window_s=1.5)
    stream.push_features(huge)
    for k in range(4):
        stream.push_text("so", float(k), k + 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        results = stream.flush()
    assert times(results) == [2.0, 3.0, 4.0]
    assert happened(results)[0] == ("model.not_finite", 1.0)


def test_events_are_part_of_what_is_written(tiny_model: affectrt.Model) -> None:
    stream = core(tiny_model)
    stream.push_audio(voice(4.0), RATE_HZ, 0.0)
    stream.poll()
    stream.push_audio(voice(0.5), RATE_HZ, 1.0)
    stream.push_text("so", 4.0, 5.0)
    (affect,) = stream.poll()
    (event,) = affect.events
    assert affect.to_dict()["events"] == [
        {"time_s": 1.0, "code": "audio.backwards_time", "message": event.message}
    ]
