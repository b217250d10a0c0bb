"""Incremental streams against the causal model on whole recordings, whatever the order of pushing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.torch import save

import affectrt
from affectrt.affect import Affect, Modality
from affectrt.errors import AffectError
from affectrt.features.causal_audio import SpeechGate
from affectrt.features.log_mel import log_mel
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word, words_of
from affectrt.manifest import CausalSpec, Manifest
from affectrt.streaming.core import StreamCore
from affectrt.streaming.incremental import CausalTimeline, IncrementalMode
from affectrt_training.models.ghrnn_cma import GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma
from tests.clips import DEMO
from tests.conftest import _graph, _normal
from tests.sdk.serving import voice
from tests.training.offline_causal import (
    Recording,
    Rows,
    Sound,
    answers,
    face_rows,
    voice_rows,
)
from tests.training.pushing import (
    RATE_HZ,
    TOLERANCE,
    at_once,
    check,
    core,
    pieces,
    pushed,
    recording_of,
)

DILATION, CONTEXT_ROWS = 21, 7 + 21


def hearing(dim: int, n_mels: int) -> bytes:
    """An encoder whose states see rows past their own, as the starter's do."""
    rng = np.random.default_rng(3)
    wide: dict[str, Any] = {"kernel_shape": [3], "dilations": [DILATION], "pads": [DILATION] * 2}
    nodes = [
        helper.make_node("Transpose", ["log_mel"], ["channels_first"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["channels_first", "kernel"], ["wide"], **wide),
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("AveragePool", ["bent"], ["pooled"], kernel_shape=[8], strides=[8], ceil_mode=1),
        helper.make_node("Transpose", ["pooled"], ["states"], perm=[0, 2, 1]),
    ]
    return _graph(
        "audio",
        nodes,
        {"log_mel": (TensorProto.FLOAT, ["B", "T", n_mels])},
        {"states": ["B", "K", dim]},
        {"kernel": _normal(rng, dim, n_mels, 3)},
    )


@pytest.fixture(scope="module")
def model(make_bundle: Callable[..., Path], tiny_manifest: Manifest) -> affectrt.Model:
    """The tiny bundle with a causal model of random weights and a voice encoder that sees ahead."""
    torch.manual_seed(2)
    dims: dict[str, Any] = {f"{m}_dim": tiny_manifest.dim(m) for m in ("text", "audio", "vision")}
    config = GhrnnCmaConfig(
        **dims, model_dim=12, heads=3, hidden_dim=10, fused_dim=9, causal=True, window_s=1.7
    )
    module = CausalGhrnnCma(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    spec = CausalSpec("causal.safetensors", asdict(config), 0.1, CONTEXT_ROWS, tiny_manifest.calibration)
    members = {
        "causal.safetensors": save(module.state_dict()),
        "audio.onnx": hearing(config.audio_dim, 64),
    }
    return affectrt.load(make_bundle(replace(tiny_manifest, causal=spec), members), threads=1)


@pytest.fixture(scope="module")
def demo() -> Recording:
    return recording_of(DEMO / "clip.mp4")


def excerpt(whole: Recording, start_s: float, end_s: float) -> Recording:
    """A part of a recording without gaps; it keeps its times."""
    (sound,) = whole.sounds
    first, last = round(start_s * sound.rate_hz), round(end_s * sound.rate_hz)
    return Recording(
        [Sound(sound.pcm[first:last], sound.rate_hz, first / sound.rate_hz)],
        [(frame, time_s) for frame, time_s in whole.frames if start_s <= time_s <= end_s],
        [word for word in whole.words if start_s + 0.2 <= word.start_s and word.end_s <= end_s],
        end_s,
    )


def test_a_clip_at_once(model: affectrt.Model, demo: Recording) -> None:
    results = at_once(model, demo)
    assert {"text", "audio", "vision"} <= set().union(*(affect.present for affect in results))
    assert [affect.time_s for affect in results] == pytest.approx(np.arange(1, len(results) + 1) / 10)
    check(model, results, demo)


def test_results_in_between_are_left_out_ticks_are_not(model: affectrt.Model, demo: Recording) -> None:
    part = excerpt(demo, 3.0, 9.0)
    check(model, at_once(model, part, hop_s=0.7), part, 3.0)


CUTS = st.lists(st.sampled_from([901, 1600, 5001, 8000]), min_size=1, max_size=6)
LATE_S = st.sampled_from([0.0, 0.13, 0.4])
TURNS = st.lists(st.booleans(), min_size=1, max_size=6)


@settings(max_examples=10)
@given(
    start_s=st.sampled_from([2.0, 6.3, 11.1]),
    length_s=st.sampled_from([2.0, 3.21]),
    cuts=CUTS,
    late_s=st.fixed_dictionaries({"sound": LATE_S, "frame": LATE_S}),
    polls=TURNS,
    twice=TURNS,
)
def test_any_chunks_order_repeats_and_polls(
    model: affectrt.Model,
    demo: Recording,
    start_s: float,
    length_s: float,
    cuts: list[int],
    late_s: dict[str, float],
    polls: list[bool],
    twice: list[bool],
) -> None:
    part = excerpt(demo, start_s, start_s + length_s)
    check(model, pushed(model, part, cuts, late_s, polls, twice), part, part.sounds[0].start_s)


@settings(max_examples=10)
@given(
    rates=st.lists(st.sampled_from([6_000, 8_000, 16_000, 22_050, 48_000]), min_size=2, max_size=3),
    gaps_s=st.lists(st.sampled_from([0.06, 0.2, 0.6, 2.5]), min_size=3, max_size=3),
    cuts=CUTS,
    late_s=st.fixed_dictionaries({"sound": LATE_S}),
    polls=TURNS,
    twice=TURNS,
)
def test_gaps_and_changes_of_rate(
    model: affectrt.Model,
    rates: list[int],
    gaps_s: list[float],
    cuts: list[int],
    late_s: dict[str, float],
    polls: list[bool],
    twice: list[bool],
) -> None:
    sounds: list[Sound] = []
    at_s = 1.0
    for rate, gap_s in zip(rates, gaps_s, strict=False):
        at_s += gap_s
        pcm = voice(1.5)
        resampled = np.interp(np.arange(round(1.5 * rate)) / rate, np.arange(len(pcm)) / RATE_HZ, pcm)
        sounds.append(Sound(resampled.astype(np.float32), rate, at_s))
        at_s += 1.5
    part = Recording(sounds, (), words_of("i am so sad it was awful", sounds[0].start_s, at_s), at_s)
    results = pushed(model, part, cuts, late_s, polls, twice)
    assert "audio" in set().union(*(affect.present for affect in results))
    check(model, results, part, sounds[0].start_s)


@pytest.mark.parametrize(("rate", "cut"), [(8_000, 160), (4_000, 320), (16_000, 160)])
def test_small_pieces_of_any_rate(model: affectrt.Model, rate: int, cut: int) -> None:
    pcm = voice(3.0)
    pcm = np.interp(np.arange(3 * rate) / rate, np.arange(len(pcm)) / RATE_HZ, pcm).astype(np.float32)
    part = Recording([Sound(pcm, rate, 0.0)], (), (), 3.0)
    results = pushed(model, part, [cut], {}, [True], [False])
    assert "audio" in results[-1].present
    check(model, results, part)


def test_a_microphone_that_loses_60_ms_twice_a_second_is_heard(
    model: affectrt.Model, demo: Recording
) -> None:
    (sound,) = demo.sounds
    starts = np.arange(2.0, 9.0, 0.5)
    first = np.round(starts * sound.rate_hz).astype(int)
    length = round(0.44 * sound.rate_hz)
    sounds = [Sound(sound.pcm[k : k + length], sound.rate_hz, k / sound.rate_hz) for k in first]
    part = Recording(sounds, (), (), 9.0)
    results = pushed(model, part, [1000], {}, [True, False], [False])
    assert np.mean(["audio" in affect.present for affect in results]) > 0.7
    check(model, results, part, 2.0)


def test_a_stream_with_a_thread_answers_the_same(model: affectrt.Model, demo: Recording) -> None:
    part = excerpt(demo, 6.3, 9.0)
    results: list[Affect] = []
    with model.stream(hop_s=0.1, mode="incremental", on_result=results.append) as stream:
        for _, _, push in sorted(pieces(part, [1000, 1600, 700]), key=lambda turn: turn[1]):
            push(stream)
        stream.flush()
    check(model, results, part, part.sounds[0].start_s)


def test_live_results_come_by_the_clock(model: affectrt.Model) -> None:
    with model.stream(hop_s=0.1, mode="incremental") as stream:
        for turn in range(12):
            stream.push_audio(voice(0.1), RATE_HZ)
            if turn == 3:
                stream.push_text("it was great")
            sleep(0.1)
        results = stream.flush()
    left_out = [event for affect in results for event in affect.events if event.code == "dropped_results"]
    assert len(results) >= 8 or left_out
    assert {"text", "audio"} <= results[-1].present


def test_contributions_are_what_the_model_says_without(model: affectrt.Model, demo: Recording) -> None:
    part = excerpt(demo, 6.0, 9.0)
    results = at_once(model, part)
    without: dict[str, Recording] = {
        "text": replace(part, words=()),
        "audio": replace(part, sounds=()),
        "vision": replace(part, frames=()),
    }
    for modality, rest in without.items():
        _, sentiment, _ = answers(model, rest, part.sounds[0].start_s)
        for affect in results:
            if modality in affect.present:
                left = affect.sentiment - affect.contributions[modality]
                k = round((affect.time_s - 6.0) / 0.1)
                assert left == pytest.approx(float(sentiment[k]), abs=TOLERANCE)
    assert all(affect.contributions.keys() == affect.present for affect in results)


@pytest.mark.parametrize("late_s", [0.0, 0.4, 0.9])
def test_rows_of_the_applications_own(model: affectrt.Model, demo: Recording, late_s: float) -> None:
    """The same rows that the device made, late and in two parts of each piece, polled all along."""
    part = excerpt(demo, 6.0, 9.0)
    expected = {round(affect.time_s, 1): affect.sentiment for affect in at_once(model, part)}
    given: dict[Modality, Rows] = {
        "audio": voice_rows(model, part.sounds),
        "vision": face_rows(model, part.frames),
    }
    stream, results = core(model), []
    stream.push_frame(np.zeros((48, 48, 3), np.uint8), 6.0)  # nobody; it begins the stream
    for end_s in np.arange(6.3, 9.6, 0.3):
        for word in part.words:
            if end_s - 0.3 < word.end_s <= end_s:
                stream.push_word(word)
        for modality, rows in given.items():
            until_s = end_s - (late_s if modality == "vision" else 0.0)
            inside = (rows.times_s > until_s - 0.3) & (rows.times_s <= until_s)
            values, times_s = rows.values[inside], rows.times_s[inside]
            for turn in (slice(None, None, 2), slice(1, None, 2)):
                if len(times_s[turn]):
                    stream.push_features(FeatureSequence(modality, values[turn], times_s[turn]))
        results += stream.poll()
    results += stream.flush()
    told = {round(affect.time_s, 1): affect.sentiment for affect in results}
    common = [time_s for time_s in expected if time_s in told and time_s < 8.0]
    assert len(common) == 19
    assert [told[t] for t in common] == pytest.approx([expected[t] for t in common], abs=TOLERANCE)


def test_rows_take_the_place_of_what_the_device_made(model: affectrt.Model) -> None:
    """And nothing of that is kept: an application that goes on pushing sound fills no memory."""
    stream = core(model)
    dim = model.manifest.dim("audio")
    rows = np.ones((5, dim), np.float32)
    for turn in range(40):
        stream.push_audio(voice(0.5), RATE_HZ, turn / 2)
        stream.push_features(FeatureSequence("audio", rows, turn / 2 + np.arange(5) / 10))
        said = np.ones((1, model.manifest.dim("text")), np.float32)
        stream.push_features(FeatureSequence("text", said, np.array([turn / 2])))
        stream.push_word(Word("great", turn / 2, turn / 2))
        stream.poll()
    timeline = stream._mode.timeline
    assert isinstance(timeline, CausalTimeline)
    assert timeline._audio is None and not timeline._waiting and not timeline._said
    with pytest.raises(AffectError, match="expected numbers below 1e"):
        timeline.push_features(FeatureSequence("audio", rows * np.float32(2e15), np.arange(25.0, 30.0)))


@pytest.mark.parametrize(("hop_s", "length_s"), [(3.3, 10.0), (9.0, 9.5)])
def test_ticks_go_on_however_rare_the_results(
    model: affectrt.Model, demo: Recording, hop_s: float, length_s: float
) -> None:
    """Faces are kept for seconds only: they must enter before they are forgotten."""
    part = excerpt(demo, 0.0, length_s)
    ticks, sentiment, _ = answers(model, part, 0.0)
    for affect in at_once(model, part, hop_s):
        k = int(np.flatnonzero(ticks <= affect.time_s + 1e-6)[-1])
        assert affect.sentiment == pytest.approx(float(sentiment[k]), abs=TOLERANCE)


@pytest.mark.parametrize("first", ["sound", "frame"])
def test_the_start_is_waited_for(model: affectrt.Model, demo: Recording, first: str) -> None:
    part = excerpt(demo, 6.0, 8.0)
    turns = sorted(pieces(part, [1600]), key=lambda turn: turn[1] + (0.3 if turn[0] != first else 0.0))
    stream, results = core(model), []
    for _, _, push in turns:
        push(stream)
        results += stream.poll()
    check(model, results + stream.flush(), part, 6.0)


def test_a_machine_that_is_too_slow_leaves_ticks_out(
    model: affectrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []
    step = IncrementalMode._step

    def slow(mode: IncrementalMode, tick_s: float) -> None:
        steps.append(tick_s)
        sleep(0.25)
        step(mode, tick_s)

    monkeypatch.setattr(IncrementalMode, "_step", slow)
    with model.stream(hop_s=0.5, mode="incremental") as stream:
        results = []
        for _ in range(40):
            stream.push_audio(voice(0.1), RATE_HZ)
            sleep(0.1)
            results += stream.poll()
    assert len(steps) < 30 and results[-1].time_s > 2.0
    assert any(event.code == "dropped_results" for affect in results for event in affect.events)


def test_what_is_present(model: affectrt.Model) -> None:
    stream = core(model)
    stream.push_audio(np.concatenate([voice(2.0), np.zeros(6 * RATE_HZ, np.float32)]), RATE_HZ, 0.0)
    stream.push_word(Word("great", 1.0, 1.5))
    present = {round(affect.time_s, 1): affect.present for affect in stream.flush()}
    assert present[0.3] == frozenset() and present[1.5] == {"text", "audio"}
    assert present[3.1] == {"text", "audio"} and present[3.3] == {"audio"}  # words count for 1.7 s
    # Speech is held for two seconds, its states are known late, and then count for 1.7 s.
    assert present[7.0] == frozenset()


def test_words_that_come_late_count_from_then_on(model: affectrt.Model) -> None:
    in_time, late = core(model), core(model)
    for stream in (in_time, late):
        stream.push_audio(voice(5.0), RATE_HZ, 0.0)
        results = [] if stream is in_time else stream.poll()
        stream.push_word(Word("great", 0.5, 1.0))
        stream.push_audio(voice(1.0), RATE_HZ, 5.0)
        results += stream.flush()
        if stream is in_time:
            expected = {round(affect.time_s, 1): affect for affect in results}
    told = {round(affect.time_s, 1): affect for affect in results}
    assert told.keys() == expected.keys()
    first = min(time_s for time_s, affect in told.items() if "text" in affect.present)
    assert 4.9 <= first <= 5.3, "what moves the answer is present from then on, however old"
    assert told[first].contributions["text"] != 0.0


def test_an_utterance_may_come_when_it_is_over(model: affectrt.Model) -> None:
    stream = core(model)
    stream.push_audio(voice(12.0), RATE_HZ, 0.0)
    stream.poll()
    stream.push_text("so " * 30 + "sad", 0.0, 12.0)
    stream.push_audio(voice(1.0), RATE_HZ, 12.0)
    results = stream.flush()
    assert not [event for affect in results for event in affect.events]
    assert "text" in results[-1].present


def test_results_come_also_when_nothing_could_be_taken(
    model: affectrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of refused inputs, and before the end of a word that takes seconds: nothing is present then."""
    stream = core(model)
    stream.push_word(Word("sooo", 0.2, 3.0))
    results = stream.flush()
    assert [affect.present for affect in results[:5]] == [frozenset()] * 5
    assert results[-1].present == {"text"}

    def refuse(timeline: CausalTimeline, word: Word) -> None:
        raise AffectError("extra.missing", "text: no encoder")

    monkeypatch.setattr(CausalTimeline, "push_word", refuse)
    stream = core(model)
    stream.push_word(Word("so", 0.2, 1.0))
    results = stream.flush()
    assert {event.code for affect in results for event in affect.events} == {"extra.missing"}
    assert results[-1].time_s == pytest.approx(1.0) and not results[-1].present


def test_a_long_pause_is_left_out(model: affectrt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[float] = []
    step = IncrementalMode._step

    def counted(mode: IncrementalMode, tick_s: float) -> None:
        steps.append(tick_s)
        step(mode, tick_s)

    monkeypatch.setattr(IncrementalMode, "_step", counted)
    stream = core(model, hop_s=1.0)
    for start_s in (0.0, 5000.0):
        stream.push_word(Word("great", start_s, start_s + 1.0))
    results = stream.flush()
    assert {event.code for affect in results for event in affect.events} == {"stream.time_jump"}
    assert len(steps) < 60 and steps[-1] == pytest.approx(5001.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"window_s": 2.0, "mode": "incremental"}, "leave out window_s"),
        ({"window_s": None, "mode": "both"}, "expected mode window or incremental, got 'both'"),
    ],
)
def test_settings_that_make_no_sense(model: affectrt.Model, given: dict[str, Any], told: str) -> None:
    with pytest.raises(AffectError, match=told):
        StreamCore(model, hop_s=0.1, **given)


def test_a_fan_is_a_voice_until_it_has_run_for_a_second(model: affectrt.Model) -> None:
    """What only later sound could tell: the window model knows at once."""
    gate = SpeechGate(model.encoders.audio_config())
    rng = np.random.default_rng(0)
    quiet, fan = rng.normal(0, 1e-4, 2 * RATE_HZ), rng.normal(0, 1, 4 * RATE_HZ)
    hum = np.cumsum(fan)
    hum = 0.1 * (hum - np.convolve(hum, np.ones(400) / 400, "same")) / 30
    rows = log_mel(np.concatenate([quiet, hum]).astype(np.float32), RATE_HZ)
    speech = np.concatenate([gate(rows[start : start + 8]) for start in range(0, len(rows), 8)])
    assert not speech[:195].any() and speech[200:290].mean() > 0.9 and speech[305:].mean() < 0.05
