"""Incremental streams against the causal model on whole recordings, whatever the order of pushing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.torch import save

import affectrt
from affectrt.affect import Affect
from affectrt.errors import AffectError
from affectrt.features.causal_audio import SpeechGate
from affectrt.features.log_mel import log_mel
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word, words_of
from affectrt.manifest import CausalSpec, Manifest
from affectrt.streaming.core import StreamCore
from affectrt_training.models.ghrnn_cma import GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma
from tests.clips import DEMO
from tests.conftest import _graph, _normal
from tests.sdk.serving import voice
from tests.training.offline_causal import (
    Recording,
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
    rates=st.lists(st.sampled_from([8_000, 16_000, 22_050, 48_000]), min_size=2, max_size=3),
    gaps_s=st.lists(st.sampled_from([0.2, 0.31, 2.5]), min_size=3, max_size=3),
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
    assert len(results) >= 8 and {"text", "audio"} <= results[-1].present


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


def test_rows_of_the_applications_own(model: affectrt.Model, demo: Recording) -> None:
    """The same rows that the device made, in any order within a second."""
    part = excerpt(demo, 6.0, 9.0)
    expected = at_once(model, part)
    heard, seen = voice_rows(model, part.sounds), face_rows(model, part.frames)
    stream, results = core(model), []
    for word in part.words:
        stream.push_word(word)
    stream.push_frame(np.zeros((48, 48, 3), np.uint8), 6.0)  # nobody; it begins the stream
    for modality, rows in (("audio", heard), ("vision", seen)):
        for start in (0, 1):
            sequence = FeatureSequence(modality, rows.values[start::2], rows.times_s[start::2])  # type: ignore[arg-type]
            stream.push_features(sequence)
    results = stream.flush()
    for one, other in zip(expected, results, strict=False):
        assert one.sentiment == pytest.approx(other.sentiment, abs=TOLERANCE)


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
        stream.push_audio(voice(2.0), RATE_HZ, 0.0)
        results = [] if stream is in_time else stream.poll()
        stream.push_word(Word("great", 0.5, 1.0))
        stream.push_audio(voice(1.0), RATE_HZ, 2.0)
        results += stream.flush()
        if stream is in_time:
            expected = results
    assert [affect.time_s for affect in results] == [affect.time_s for affect in expected]
    assert all("text" not in affect.present for affect in results if affect.time_s < 1.95)
    assert results[21].present >= {"text"} and results[21].sentiment != expected[21].sentiment


def test_a_long_pause_costs_nothing(model: affectrt.Model) -> None:
    stream = core(model, hop_s=500.0)
    stream.push_word(Word("great", 0.0, 1.0))
    stream.push_word(Word("awful", 3000.0, 3001.0))
    start = perf_counter()
    assert len(stream.flush()) == 7
    assert perf_counter() - start < 5.0
    with pytest.raises(AffectError, match="leave out window_s"):
        StreamCore(model, 2.0, 0.1, mode="incremental")
    with pytest.raises(AffectError, match="expected mode window or incremental, got 'both'"):
        StreamCore(model, None, 0.1, mode="both")  # type: ignore[arg-type]


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
