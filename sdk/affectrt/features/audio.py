"""Audio features of windows: a speech gate, the level taken out, and the encoder's states with their times.

Training and the device both start from :func:`level_normalise` and :func:`voiced`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.backends import Graph
from affectrt.features.log_mel import DEFAULT_CONFIG, AudioConfig, TimedLogMel, TimedRows
from affectrt.features.sequence import FeatureSequence, FloatArray, TimeArray

BoolArray = npt.NDArray[np.bool_]

MIN_VOICED_S = 0.3
"""A window with less speech than this has no audio modality: two syllables are the least to carry tone."""

LOG_MEL_SCALE = 4.0
"""Natural-log units per unit of normalised log-mel: about the spread of speech over time and frequency."""

LOWEST_LEVEL = -2.0
"""Normalised values stop here, 35 dB below the voice: what is quieter tells of the room, not the voice."""

FLOOR_REACH_S = 1.0
"""The quietest moment around a row is sought so far from it."""

FLOOR_SMOOTHING_S = 0.05
"""Energies are averaged over so long before that."""

_VOICE_BAND_HZ = (100.0, 1500.0)
_HISS_BAND_HZ = (3000.0, 8000.0)
_ABOVE_FLOOR = 2.0
"""Speech stands this far (natural log of energy, 8.7 dB) above the quietest moment around it."""
_HISS_MARGIN = 3.0
"""A frame whose hiss band exceeds its voice band by this much is noise or a fricative, no voice."""
_QUIETEST_VOICE = -9.0
"""Voice-band log energy below which nothing is a voice: white noise at about -68 dBFS."""
_TIME_EPS = 1e-6


def voiced(log_mel: FloatArray, config: AudioConfig = DEFAULT_CONFIG) -> BoolArray:
    """Which rows of ``log_mel`` (T, n_mels) hold a voice: (T,) bool.

    A row counts when its energy in the voice band (100 to 1500 Hz) stands 9 dB above the quietest moment of
    the second before it and of the second after it, isn't drowned by its own hiss band, and isn't below the
    absolute floor. Speech dips between syllables; hum, fans and hiss don't, so they never rise above their
    own floor, whatever their level, and a fan that is switched on has no dip on one side.
    """
    if len(log_mel) == 0:
        return np.zeros(0, np.bool_)
    voice, hiss = voice_and_hiss(log_mel, config)
    # Averaging a few frames first keeps one lucky dip of a noise from lowering the floor.
    smoothing = np.ones(max(1, round(FLOOR_SMOOTHING_S / config.hop_s)))
    weight = np.convolve(np.ones(len(voice)), smoothing, mode="full")
    start = len(smoothing) // 2
    smooth = (np.convolve(voice, smoothing, mode="full") / weight)[start : start + len(voice)]
    reach = min(round(FLOOR_REACH_S / config.hop_s), len(smooth) - 1)
    # quietest[i]: over rows i to i + reach. Next to an edge, the side cut short borrows from the other.
    quietest = np.lib.stride_tricks.sliding_window_view(smooth, reach + 1).min(axis=1)
    now = np.arange(len(smooth))
    before = quietest[np.clip(now - reach, 0, len(quietest) - 1)]
    after = quietest[np.clip(now, 0, len(quietest) - 1)]
    return stands_out(voice, hiss, np.maximum(before, after))


def voice_and_hiss(log_mel: FloatArray, config: AudioConfig) -> tuple[FloatArray, FloatArray]:
    """Log energy (T,) of each row (T, n_mels) where voices have most of theirs, and where hiss has."""
    centres = config.mel_centres_hz()
    voice, hiss = (
        np.log(np.exp(log_mel[:, (centres > low) & (centres < high)]).sum(axis=1))
        for low, high in (_VOICE_BAND_HZ, _HISS_BAND_HZ)
    )
    return voice, hiss


def stands_out(voice: FloatArray, hiss: FloatArray, floor: npt.NDArray[Any]) -> BoolArray:
    """Whether rows with these log energies (T,) hold a voice, above the quietest moment around them."""
    return np.asarray(
        (voice > floor + _ABOVE_FLOOR) & (voice > hiss - _HISS_MARGIN) & (voice > _QUIETEST_VOICE)
    )


def level_normalise(
    log_mel: FloatArray, speech: BoolArray | None = None, config: AudioConfig = DEFAULT_CONFIG
) -> FloatArray:
    """Take the recording's level out of ``log_mel`` (T, n_mels) and bring it to O(1): (T, n_mels).

    One scalar is subtracted from everything: the mean over the rows of ``speech`` (T,), default
    :func:`voiced`, or over all rows when there are none. A gain changes nothing but the digital floor, and
    the spectral tilt stays, which tells effort and arousal. The rest is a fixed scale and a lower limit.
    """
    if len(log_mel) == 0:
        return log_mel
    rows = voiced(log_mel, config) if speech is None else speech
    level = (log_mel[rows] if rows.any() else log_mel).mean(dtype=np.float64)
    return take_out(float(level), log_mel)


def take_out(level: float, log_mel: FloatArray) -> FloatArray:
    """Rows (T, n_mels) about their level, at a fixed scale, with a lower limit."""
    return np.asarray(np.maximum((log_mel - level) / LOG_MEL_SCALE, LOWEST_LEVEL), np.float32)


class AudioFeatures:
    """The audio modality of one person: takes samples as they come, gives states for any recent window.

    Silence is an absent modality, not an error. One object per stream; not to be shared between threads.
    """

    def __init__(self, config: AudioConfig, graph: Graph, dim: int, *, keep_s: float = 60.0) -> None:
        """``graph``: ``log_mel`` (1, T, n_mels) float32 → ``states`` (1, ceil(T / rows_per_state), ``dim``).

        Rows older than ``keep_s`` before the newest one are forgotten.
        """
        self.config = config
        self._graph = graph
        self._dim = dim
        self._keep_s = keep_s
        self._log_mel = TimedLogMel(config)
        self._blocks: deque[TimedRows] = deque()

    def push_audio(self, pcm: npt.ArrayLike, sample_rate_hz: int, start_s: float) -> None:
        """Take samples; as :meth:`TimedLogMel.push`."""
        self._append(self._log_mel.push(pcm, sample_rate_hz, start_s))

    def flush(self) -> None:
        """At the end of a recording: take in what the resampler still holds back."""
        self._append(self._log_mel.flush())

    def window(self, start_s: float, end_s: float) -> FeatureSequence:
        """States of what was heard in ``start_s < time <= end_s``: (ceil(T / rows_per_state), dim).

        Each state's time is the end of its last frame. Empty when less than ``MIN_VOICED_S`` of it is voiced.
        """
        rows, times = self._between(start_s, end_s)
        speech = voiced(rows, self.config)
        if speech.sum() * self.config.hop_s < MIN_VOICED_S:
            return FeatureSequence.empty("audio", self._dim, "log-mel encoder")
        (states,) = self._graph(log_mel=level_normalise(rows, speech, self.config)[np.newaxis])
        step = self.config.rows_per_state
        last = np.minimum(np.arange(len(states[0])) * step + step - 1, len(rows) - 1)
        return FeatureSequence("audio", states[0], times[last], "log-mel encoder")

    def _append(self, blocks: list[TimedRows]) -> None:
        blocks = [block for block in blocks if len(block.rows)]
        self._blocks.extend(blocks)
        while blocks and self._blocks[0].times_s[-1] < blocks[-1].times_s[-1] - self._keep_s:
            self._blocks.popleft()

    def _between(self, start_s: float, end_s: float) -> tuple[FloatArray, TimeArray]:
        blocks = [b for b in self._blocks if b.times_s[-1] > start_s and b.times_s[0] <= end_s + _TIME_EPS]
        if not blocks:
            return np.zeros((0, self.config.n_mels), np.float32), np.zeros(0)
        rows = np.concatenate([b.rows for b in blocks])
        times = np.concatenate([b.times_s for b in blocks])
        # A resampler's tail may run a sample past a gap: times never run backwards.
        times = np.maximum.accumulate(times)
        first, last = np.searchsorted(times, [start_s + _TIME_EPS, end_s + _TIME_EPS], side="right")
        return rows[first:last], times[first:last]
