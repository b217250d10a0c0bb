"""Log-mel energies, the speech gate, level normalisation, and windows of encoder states."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectrt.errors import AffectError
from affectrt.features.audio import LOG_MEL_SCALE, AudioFeatures, level_normalise, voiced
from affectrt.features.log_mel import AudioConfig, LogMel, as_mono, log_mel
from affectrt.media import read_audio

RATE_HZ = 16_000
DIM = 5
DEMO = Path(__file__).parents[2] / "demo" / "clip.mp4"
DATA = os.environ.get("AFFECTRT_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="AFFECTRT_DATA doesn't name the development data")

FloatArray = npt.NDArray[np.float32]


def noise(seconds: float, dbfs: float, seed: int = 0) -> FloatArray:
    samples = np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ))
    return np.asarray(samples * 10 ** (dbfs / 20), np.float32)


def syllables(seconds: float, rate_hz: int = RATE_HZ, level: float = 0.1) -> FloatArray:
    """A voice's outline: a 140 Hz harmonic tone that opens and closes four times a second."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    harmonics = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12))
    opening = np.sin(2 * np.pi * 2 * time) ** 2
    return np.asarray(level * harmonics * opening, np.float32)


def mean_states(**inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """A graph of the audio encoder's signature: state k is the mean of its rows' first bins."""
    (rows,) = inputs["log_mel"]
    blocks = [rows[start : start + 8, :DIM].mean(axis=0) for start in range(0, len(rows), 8)]
    return (np.stack(blocks)[np.newaxis].astype(np.float32),)


def reference_log_mel(pcm: FloatArray, config: AudioConfig) -> npt.NDArray[np.float64]:
    """The same energies by the textbook: povey window, pre-emphasis 0.97, triangles on the mel scale."""
    length, hop = round(config.frame_length_s * RATE_HZ), round(config.hop_s * RATE_HZ)
    n_fft = 512
    frames = np.lib.stride_tricks.sliding_window_view(pcm.astype(np.float64), length)[::hop].copy()
    frames -= frames.mean(axis=1, keepdims=True)
    frames[:, 1:] -= 0.97 * frames[:, :-1]
    frames[:, 0] -= 0.97 * frames[:, 0]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))) ** 0.85
    power = np.abs(np.fft.rfft(frames * window, n_fft)) ** 2
    low, high = (1127 * np.log1p(edge / 700) for edge in (config.low_hz, config.high_hz))
    edges = np.linspace(low, high, config.n_mels + 2)
    mel = 1127 * np.log1p(np.arange(n_fft // 2 + 1) * RATE_HZ / n_fft / 700)
    up = (mel - edges[:-2, np.newaxis]) / (edges[1:-1] - edges[:-2])[:, np.newaxis]
    down = (edges[2:, np.newaxis] - mel) / (edges[2:] - edges[1:-1])[:, np.newaxis]
    energies = power @ np.maximum(0, np.minimum(up, down)).T
    return np.asarray(np.log(np.maximum(energies, 2.0**-23)))


def test_log_mel_is_what_the_textbook_says() -> None:
    pcm = noise(0.5, -20) + syllables(0.5)
    config = AudioConfig()
    rows = log_mel(pcm, RATE_HZ, config)
    assert rows.shape == (1 + (8000 - 400) // 160, 64)
    np.testing.assert_allclose(rows, reference_log_mel(pcm, config), atol=2e-3)


def test_bins_are_where_the_config_says() -> None:
    time = np.arange(RATE_HZ) / RATE_HZ
    centres = AudioConfig().mel_centres_hz()
    for hz in (300.0, 1000.0, 4000.0):
        loudest = int(log_mel(0.1 * np.sin(2 * np.pi * hz * time), RATE_HZ).mean(axis=0).argmax())
        assert abs(centres[loudest] - hz) <= np.diff(centres)[min(loudest, 62)]


def test_digital_silence_is_finite() -> None:
    rows = log_mel(np.zeros(RATE_HZ, np.float32), RATE_HZ)
    np.testing.assert_allclose(rows, np.log(2.0**-23), atol=1e-4)
    assert np.isfinite(level_normalise(rows)).all()


@settings(max_examples=25, deadline=None)
@given(
    rate_hz=st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]),
    sizes=st.lists(st.integers(1, 5_000), min_size=1, max_size=30),
)
def test_rows_do_not_depend_on_the_chunking(rate_hz: int, sizes: list[int]) -> None:
    pcm = np.random.default_rng(len(sizes)).normal(size=sum(sizes)).astype(np.float32) * 0.1
    stream = LogMel()
    parts = [stream.push(part, rate_hz) for part in np.split(pcm, np.cumsum(sizes)[:-1])]
    streamed = np.concatenate([*parts, stream.flush()])
    np.testing.assert_allclose(streamed, log_mel(pcm, rate_hz), atol=1e-4)


@pytest.mark.parametrize("rate_hz", [22_050, 32_000, 44_100, 48_000, 96_000])
def test_other_rates_give_nearly_the_same_rows(rate_hz: int) -> None:
    expected = log_mel(syllables(2.0), RATE_HZ)
    rows = log_mel(syllables(2.0, rate_hz), rate_hz)
    assert abs(len(rows) - len(expected)) <= 1
    n = min(len(rows), len(expected))
    loud = expected[:n] > expected.max() - 10
    assert np.abs(rows[:n] - expected[:n])[loud].max() < 0.05


def test_the_rate_may_change_on_the_way() -> None:
    stream = LogMel()
    rows = [
        stream.push(syllables(1.0), RATE_HZ),
        stream.push(syllables(1.0, 48_000), 48_000),
        stream.push(syllables(1.0), RATE_HZ),
        stream.flush(),
    ]
    together = np.concatenate(rows)
    assert len(together) == 298
    steady = log_mel(syllables(1.0), RATE_HZ)
    loud = steady > steady.max() - 8
    for start in (0, 100, 200):
        assert np.abs(together[start : start + 98] - steady)[loud].max() < 0.1


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("digital silence", np.zeros(4 * RATE_HZ, np.float32)),
        *((f"white noise at {dbfs} dBFS", noise(4, dbfs)) for dbfs in (-70, -60, -40, -20)),
        ("noise that sets in", np.concatenate([np.zeros(2 * RATE_HZ, np.float32), noise(2, -60)])),
        ("brown noise", (np.cumsum(noise(4, -60)) * 0.2).astype(np.float32)),
        (
            "mains hum",
            sum(
                0.1 / k * np.sin(2 * np.pi * 50 * k * np.arange(4 * RATE_HZ) / RATE_HZ) for k in range(1, 20)
            ),
        ),
    ],
)
def test_what_is_no_voice_is_not_voiced(name: str, samples: FloatArray) -> None:
    assert voiced(log_mel(samples, RATE_HZ)).mean() < 0.02, name


@pytest.mark.parametrize(
    ("level", "noise_dbfs"), [(0.001, -90), (0.01, -90), (0.01, -60), (0.1, -90), (0.1, -60), (0.1, -40)]
)
def test_syllables_are_voiced_whatever_the_level(level: float, noise_dbfs: float) -> None:
    speech = voiced(log_mel(syllables(4, level=level) + noise(4, noise_dbfs), RATE_HZ))
    assert 0.3 < speech.mean() < 0.95


@pytest.mark.parametrize("frames", [0, 1, 2, 7])
def test_a_few_frames_are_enough_to_answer(frames: int) -> None:
    rows = np.full((frames, 64), -5, np.float32)
    assert voiced(rows).shape == (frames,)
    assert level_normalise(rows).shape == (frames, 64)


def test_speech_of_the_demo_clip_is_voiced() -> None:
    pcm, rate_hz = read_audio(DEMO)
    assert voiced(log_mel(pcm, rate_hz)).sum() * 0.01 > 3


@needs_data
def test_every_real_recording_of_speech_is_voiced() -> None:
    root = Path(str(DATA))
    quiet = "03-01-02-02-01-01-09.ogg"  # the softest of RAVDESS: calm, normal intensity
    files = [
        *sorted((root / "clips").glob("talk_*.mp4")),
        root / "clips" / "speech_01.wav",
        *sorted((root / "speech").glob("*/*.ogg"))[::60],
        root / "speech" / "ravdess" / quiet,
    ]
    for file in files:
        pcm, rate_hz = read_audio(file)
        assert voiced(log_mel(pcm, rate_hz)).sum() * 0.01 >= 0.3, file.name


def test_level_normalisation_takes_out_the_gain_and_keeps_the_tilt() -> None:
    pcm = syllables(3) + noise(3, -55)
    rows, soft_rows = (log_mel(pcm * gain, RATE_HZ) for gain in (1.0, 0.1))
    loud, soft = level_normalise(rows), level_normalise(soft_rows)
    above_digital_floor = soft_rows > soft_rows.min() + 0.1
    assert above_digital_floor.mean() > 0.9
    np.testing.assert_allclose(loud[above_digital_floor], soft[above_digital_floor], atol=0.01)
    speech = voiced(rows)
    assert abs(loud[speech].mean()) < 0.1
    assert 0.3 < loud.std() < 2
    # One scalar for everything: differences between bins survive, scaled.
    kept = (loud > -2).all(axis=1)
    assert kept.any()
    np.testing.assert_allclose(
        np.diff(loud[kept], axis=1), np.diff(rows[kept], axis=1) / LOG_MEL_SCALE, atol=1e-5
    )


@pytest.mark.parametrize(
    ("samples", "code"),
    [
        (np.array([0.0, np.nan], np.float32), "audio.not_finite"),
        (np.array([0.0, -np.inf]), "audio.not_finite"),
        (np.array([[np.inf, -np.inf]]), "audio.not_finite"),
        (np.array([1e300]), "audio.not_finite"),
        (np.array([[3e38, 3e38]], np.float32), "audio.range"),
        (np.zeros((2, 2, 2), np.float32), "audio.shape"),
        (np.zeros((2, 16_000), np.float32), "audio.shape"),
        (np.zeros(10, np.uint8), "audio.dtype"),
        (np.full(10, 1e9, np.float32), "audio.range"),
    ],
)
def test_bad_samples_are_refused(samples: npt.NDArray[Any], code: str) -> None:
    features = AudioFeatures(AudioConfig(), mean_states, DIM)
    features.push_audio(syllables(1), RATE_HZ, 0.0)
    with pytest.raises(AffectError, match="audio") as caught:
        features.push_audio(samples, RATE_HZ, 1.0)
    assert caught.value.code == code
    features.push_audio(syllables(1), RATE_HZ, 1.0)
    assert len(features.window(0, 2)) == -(-198 // 8)


def test_a_bad_rate_is_refused() -> None:
    with pytest.raises(AffectError, match="got 0") as caught:
        LogMel().push(syllables(0.1), 0)
    assert caught.value.code == "audio.sample_rate"


def test_integers_and_channels_become_mono_in_unit_range() -> None:
    np.testing.assert_allclose(as_mono(np.array([-32768, 16384], np.int16)), [-1, 0.5])
    np.testing.assert_allclose(as_mono(np.array([[1.0, 0.0], [0.5, -0.5]])), [0.5, 0.0])


def test_states_carry_the_end_of_their_last_frame() -> None:
    features = AudioFeatures(AudioConfig(), mean_states, DIM)
    features.push_audio(syllables(2), RATE_HZ, start_s=10.0)
    window = features.window(10.0, 12.0)
    assert window.modality == "audio"
    assert window.values.shape == (25, DIM)
    # 198 rows; row 7 ends at 10 + 0.07 + 0.025, the last state ends with row 197.
    np.testing.assert_allclose(window.times_s[:2], [10.095, 10.175])
    assert window.times_s[-1] == pytest.approx(10 + 1.97 + 0.025)
    assert features.window(10.5, 11.0).times_s[0] > 10.5
    assert features.window(10.5, 11.0).times_s[-1] <= 11.0 + 1e-6


def test_silence_and_too_little_speech_are_absent() -> None:
    features = AudioFeatures(AudioConfig(), mean_states, DIM)
    assert len(features.window(0, 4)) == 0
    features.push_audio(noise(4, -60), RATE_HZ, 0.0)
    assert len(features.window(0, 4)) == 0
    features.push_audio(syllables(4), RATE_HZ, 4.0)
    assert len(features.window(4, 8)) > 0
    assert len(features.window(3.9, 4.15)) == 0
    assert features.window(0, 4).values.shape == (0, DIM)


def test_gaps_overlaps_and_jitter_keep_the_clock() -> None:
    features = AudioFeatures(AudioConfig(), mean_states, DIM)
    pcm = syllables(1)
    features.push_audio(pcm, RATE_HZ, 0.0)
    features.push_audio(pcm, RATE_HZ, 1.02)  # jitter: goes on seamlessly
    features.push_audio(pcm, RATE_HZ, 5.0)  # a gap of three seconds
    features.push_audio(pcm, RATE_HZ, 5.5)  # half of it was heard before
    times = features.window(0, 10).times_s
    assert not ((times > 2.1) & (times < 5.0)).any()
    assert times[-1] == pytest.approx(6.5, abs=0.02)
    assert (np.diff(times) > 0).all()
    with pytest.raises(AffectError, match="time order") as caught:
        features.push_audio(pcm, RATE_HZ, 2.0)
    assert caught.value.code == "audio.backwards_time"


def test_flush_brings_the_tail_of_resampled_audio() -> None:
    features = AudioFeatures(AudioConfig(), mean_states, DIM)
    features.push_audio(syllables(2, 44_100), 44_100, 0.0)
    before = features.window(0, 3).times_s[-1]
    features.flush()
    assert features.window(0, 3).times_s[-1] == pytest.approx(1.995)
    assert 1.93 < before < 1.99


def test_old_rows_are_forgotten() -> None:
    features = AudioFeatures(AudioConfig(), mean_states, DIM, keep_s=5)
    for second in range(20):
        features.push_audio(syllables(1), RATE_HZ, float(second))
    times = features.window(0, 20).times_s
    assert 13.5 < times[0] < 15.2
    assert times[-1] == pytest.approx(20, abs=0.02)
