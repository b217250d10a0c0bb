"""The causal GHRNN-CMA in C++, one tick at a time, against the offline model on the whole clip."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from affectrt_kernels import _native
from affectrt_training.models.ghrnn_cma import GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma

Floats = NDArray[np.float32]

TOLERANCE = 1e-5  # of every tick; sentiment is within ±3
WINDOW_S = 1.7


pytestmark = pytest.mark.usefixtures("poisoned_scratch")


def causal(text: int, audio: int, vision: int, model: int, **sizes: Any) -> GhrnnCmaConfig:
    return GhrnnCmaConfig(
        text_dim=text,
        audio_dim=audio,
        vision_dim=vision,
        model_dim=model,
        causal=True,
        window_s=WINDOW_S,
        **sizes,
    )


STARTER, ODD = causal(384, 128, 128, 64), causal(7, 5, 3, 12, heads=3, hidden_dim=10, fused_dim=9)
CONFIGS = {
    "starter": STARTER,
    "odd": ODD,
    "long kernel": causal(33, 17, 2, 20, heads=5, hidden_dim=7, fused_dim=5, kernel_steps=7),
    "one step": causal(3, 3, 3, 3, heads=3, hidden_dim=1, fused_dim=8, kernel_steps=1),
    "wide": causal(16, 16, 16, 136, heads=2, hidden_dim=200, fused_dim=33),
}


@cache
def trained(config: GhrnnCmaConfig) -> CausalGhrnnCma:
    """A model in float64 whose every weight is random: as constructed, norms and biases would do nothing."""
    torch.manual_seed(5)
    model = CausalGhrnnCma(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).float())
    return model


def weights_of(config: GhrnnCmaConfig) -> dict[str, Floats]:
    return {name: value.float().numpy() for name, value in trained(config).state_dict().items()}


def native_of(config: GhrnnCmaConfig, instruction_set: str = "") -> _native.GhrnnCma:
    return _native.GhrnnCma(weights_of(config), heads=config.heads, instruction_set=instruction_set)


def refused(message: str, call: Callable[..., object], *arguments: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call(*arguments)


class Clip(NamedTuple):
    """One person: at every tick the mean of its words or None, and frames at times of their own."""

    ticks: NDArray[np.float64]
    text: list[Floats | None]
    audio: Floats
    audio_times: NDArray[np.float64]
    vision: Floats
    vision_times: NDArray[np.float64]


def make_clip(config: GhrnnCmaConfig, seed: int, ticks: int = 80) -> Clip:
    """Ticks at about 10 Hz with a pause longer than the window; frames come in bursts, some together, some
    right at a tick and some exactly a window before one; voice and face are away for a while."""
    random = np.random.default_rng(seed)
    gaps = random.uniform(0.05, 0.15, ticks)
    gaps[ticks // 2] = 2.5 * WINDOW_S
    tick_times = np.cumsum(gaps) - 3.0  # clocks may begin anywhere

    def frames(rate_hz: float, away: tuple[float, float]) -> NDArray[np.float64]:
        count = int(rate_hz * (tick_times[-1] - tick_times[0] + 1))
        times = random.uniform(tick_times[0] - 0.5, tick_times[-1], count)
        times = np.concatenate([times, times[::5], tick_times[::7], tick_times[::9] - WINDOW_S])
        start, end = np.quantile(tick_times, away)
        return np.sort(times[((times < start) | (times > end)) & (times <= tick_times[-1])])

    def rows(count: int, dim: int) -> Floats:
        return random.standard_normal((count, dim)).astype(np.float32)

    spoken = random.random(ticks) < 0.4
    audio_times, vision_times = frames(40.0, (0.15, 0.4)), frames(9.0, (0.6, 0.9))
    return Clip(
        tick_times,
        [rows(1, config.text_dim)[0] if said else None for said in spoken],
        rows(len(audio_times), config.audio_dim),
        audio_times,
        rows(len(vision_times), config.vision_dim),
        vision_times,
    )


def all_at_once(config: GhrnnCmaConfig, clip: Clip) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sentiment (K,) and logits (K, 7) of the offline model in float64."""

    def batch(array: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array))[None]

    unread = np.full(config.text_dim, np.nan, np.float32)
    frames: list[torch.Tensor] = []
    for values, times in ((clip.audio, clip.audio_times), (clip.vision, clip.vision_times)):
        absent = not len(values)
        frames += [
            batch(np.zeros((1, values.shape[1]), np.float32) if absent else values).double(),
            batch(np.zeros(1) if absent else times),
            torch.tensor([len(values)]),
        ]
    with torch.no_grad():
        sentiment, logits = trained(config)(
            batch(np.stack([unread if row is None else row for row in clip.text])).double(),
            batch([row is not None for row in clip.text]),
            batch(clip.ticks),
            torch.tensor([len(clip.ticks)]),
            *frames,
        )
    return sentiment[0].numpy(), logits[0].numpy()


def tick_by_tick(stream: _native.GhrnnCmaStream, clip: Clip) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same from one step a tick, given only what came since the last."""
    results, last_s = [], -np.inf
    for time_s, text in zip(clip.ticks.tolist(), clip.text, strict=True):
        fresh: list[Any] = []
        for values, times in ((clip.audio, clip.audio_times), (clip.vision, clip.vision_times)):
            first, end = np.searchsorted(times, [last_s, time_s], side="right")
            fresh += [values[first:end], times[first:end]] if end > first else [None, None]
        results.append(stream.step(time_s, text, *fresh))
        last_s = time_s
    sentiments, logits = zip(*results, strict=True)
    return np.array(sentiments), np.stack(logits)


def new_stream(config: GhrnnCmaConfig, instruction_set: str = "") -> _native.GhrnnCmaStream:
    return native_of(config, instruction_set).stream(weights_of(config)["no_word"], config.window_s)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
def test_every_tick_is_what_the_offline_model_says(
    instruction_set: str, config: GhrnnCmaConfig, seed: int
) -> None:
    clip = make_clip(config, seed)
    sentiment, logits = tick_by_tick(new_stream(config, instruction_set), clip)
    expected, expected_logits = all_at_once(config, clip)
    assert np.abs(np.diff(expected_logits, axis=0)).max() > 100 * TOLERANCE
    np.testing.assert_allclose(sentiment, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("away", ["audio", "vision", "text", "all"])
def test_a_modality_may_be_away_all_along(away: str) -> None:
    config = ODD
    clip = make_clip(config, 2, ticks=30)
    for name in ("audio", "vision"):
        if away in (name, "all"):
            clip = clip._replace(
                **{name: getattr(clip, name)[:0], f"{name}_times": getattr(clip, f"{name}_times")[:0]}
            )
    if away in ("text", "all"):
        clip = clip._replace(text=[None] * len(clip.text))
    sentiment, logits = tick_by_tick(new_stream(config), clip)
    expected, expected_logits = all_at_once(config, clip)
    np.testing.assert_allclose(sentiment, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=TOLERANCE)


def test_the_largest_numbers_that_are_taken_leave_the_state_sound() -> None:
    stream = new_stream(ODD)
    text, audio = np.full(7, 9e14, np.float32), np.full((2, 5), -9e14, np.float32)
    text[::2] *= -1
    audio[0, ::2] *= -1
    for time_s in (0.0, 0.1):
        assert np.isfinite(stream.step(time_s, text, audio, np.full(2, time_s))[1]).all()


def test_streams_of_one_model_know_nothing_of_each_other() -> None:
    config = ODD
    model, no_word = native_of(config), weights_of(config)["no_word"]
    clips = [make_clip(config, seed, ticks=40) for seed in range(8)]
    expected = [tick_by_tick(model.stream(no_word, WINDOW_S), clip)[1] for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda clip: tick_by_tick(model.stream(no_word, WINDOW_S), clip)[1], clips))
    for want, got in zip(expected, results, strict=True):
        np.testing.assert_array_equal(want, got)


def test_a_stream_outlives_its_model() -> None:
    config = ODD
    stream = new_stream(config)  # the model is already out of reach
    assert np.isfinite(stream.step(0.0)[1]).all()


def test_a_refused_step_changes_nothing() -> None:
    config = ODD
    clip = make_clip(config, 3, ticks=40)
    plain = tick_by_tick(new_stream(config), clip)
    stream = new_stream(config)
    half = clip._replace(ticks=clip.ticks[:20], text=clip.text[:20])
    first = tick_by_tick(stream, half)
    now, last = float(clip.ticks[20]), float(clip.ticks[19])
    text = np.zeros(7, np.float32)
    rows, times = np.zeros((2, 5), np.float32), np.array([last + 1e-4, now])
    nan_row, nan_rows = np.full(7, np.nan, np.float32), np.full((2, 5), np.inf, np.float32)
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((last,), r"time_s: expected a time after the last tick"),
        ((now - 10.0,), r"time_s: expected a time after the last tick"),
        ((float("nan"),), r"time_s: expected a time after the last tick"),
        ((float("inf"),), r"time_s: expected a time after the last tick"),
        ((now, nan_row), r"text: expected finite numbers below 1e15, got NaN"),
        ((now, text + np.float32(3e38)), r"text: expected finite numbers below 1e15"),
        ((now, text[:6]), r"text: expected \(D,\) = \(7,\), got shape \(6,\)"),
        ((now, text.astype(np.float64)), r"text: expected float32, got float64"),
        ((now, np.zeros(14, np.float32)[::2]), r"text: expected a C-contiguous array"),
        ((now, text.tolist()), r"text: expected a numpy array"),
        ((now, text, nan_rows, times), r"audio: expected finite numbers below 1e15, got NaN"),
        ((now, text, rows[:, :4], times), r"audio: expected \(T, D\) = \(2, 5\), got shape \(2, 4\)"),
        ((now, text, rows[0], times), r"audio: expected \(T, D\), got shape \(5,\)"),
        ((now, text, np.zeros((4, 5), np.float32)[::2], times), r"audio: expected a C-contiguous array"),
        ((now, text, rows, times[:1]), r"audio_times_s: expected \(T,\) = \(2,\), got shape \(1,\)"),
        ((now, text, rows, times.astype(np.float32)), r"audio_times_s: expected float64, got float32"),
        ((now, text, rows, times[::-1]), r"audio_times_s: expected a C-contiguous array"),
        (
            (now, text, rows, times[::-1].copy()),
            r"audio_times_s\[1\]: expected a time from .* to that of the tick",
        ),
        ((now, text, rows, times + 1.0), r"audio_times_s\[1\]: expected a time from"),
        ((now, text, rows, times * np.nan), r"audio_times_s\[0\]: expected a time from"),
        ((now, text, rows, times - 60.0), r"audio_times_s\[0\]: expected a time from"),
        ((now, text, rows, None), r"audio_times_s: expected a numpy array, got .*NoneType"),
        ((now, text, None, times), r"audio: expected a numpy array, got .*NoneType"),
        (
            (now, text, None, None, np.zeros((1, 5), np.float32), times[:1]),
            r"vision: expected \(T, D\) = \(1, 3\)",
        ),
    ]
    for arguments, message in wrong:
        refused(message, stream.step, *arguments)
    rest = _rest(stream, clip, 20)
    np.testing.assert_array_equal(np.concatenate([first[1], rest]), plain[1])


def _rest(stream: _native.GhrnnCmaStream, clip: Clip, done: int) -> NDArray[Any]:
    """The logits of the ticks from ``done`` on."""
    last_s = clip.ticks[done - 1]
    audio, vision = clip.audio_times > last_s, clip.vision_times > last_s
    left = Clip(
        clip.ticks[done:],
        clip.text[done:],
        clip.audio[audio],
        clip.audio_times[audio],
        clip.vision[vision],
        clip.vision_times[vision],
    )
    return tick_by_tick(stream, left)[1]


def test_a_stream_that_makes_no_sense_is_refused() -> None:
    config = ODD
    model, no_word = native_of(config), weights_of(config)["no_word"]
    for window_s in (0.0, -1.0, float("nan"), float("inf")):
        refused(r"window_s: expected a number of seconds above 0", model.stream, no_word, window_s)
    refused(r"no_word: expected \(D,\) = \(7,\), got shape \(6,\)", model.stream, no_word[:6], 1.0)
    refused(r"no_word: expected finite numbers", model.stream, no_word * np.float32(np.nan), 1.0)


def test_a_tick_costs_the_same_however_long_the_stream_has_run() -> None:
    _native.poison_scratch(False)  # filling memory takes time, too
    window_s, hop_s, per_tick = 10.0, 0.1, 15  # 1500 rows of voice and of face in the window
    stream = native_of(STARTER).stream(weights_of(STARTER)["no_word"], window_s)
    random = np.random.default_rng(0)
    audio, vision = (random.standard_normal((per_tick, 128)).astype(np.float32) for _ in range(2))

    def run(start_s: float, ticks: int) -> float:
        """Median seconds a tick."""
        seconds = []
        for k in range(ticks):
            time_s = start_s + (k + 1) * hop_s
            times = time_s - hop_s * np.arange(per_tick)[::-1] / per_tick
            start = perf_counter()
            stream.step(time_s, None, audio, times, vision, times)
            seconds.append(perf_counter() - start)
        return median(seconds)

    filling_ticks = round(window_s / hop_s)
    run(0.0, filling_ticks)
    early = run(window_s, 100)
    run(2 * window_s, 20 * filling_ticks)  # had it kept all rows, attention would have 21 times as many
    late = run(22 * window_s, 100)
    run(15_000.0, filling_ticks)
    much_later = run(15_000.0 + window_s, 100)
    assert max(late, much_later) < 3 * early
