"""Audio features: streaming log-mel energies, a speech gate, and the encoder's states with their times.

Training and the device both start from :func:`log_mel`, :func:`level_normalise` and :func:`voiced`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.backends import Graph
from affectrt.errors import AffectError, require
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
_MAX_SAMPLE = 1e5
_GAP_TOLERANCE_S = 0.05
_MAX_OVERLAP_S = 1.0
_TIME_EPS = 1e-6


@dataclass(frozen=True)
class AudioConfig:
    """Log-mel parameters, as in a bundle's manifest."""

    sample_rate_hz: int = 16_000
    """Everything is resampled to this rate."""
    frame_length_s: float = 0.025
    """Length of an analysis frame, in seconds."""
    hop_s: float = 0.01
    """From one frame's start to the next one's, in seconds."""
    n_mels: int = 64
    """Number of mel bins."""
    low_hz: float = 60.0
    """Lower edge of the lowest mel bin."""
    high_hz: float = 7600.0
    """Upper edge of the highest mel bin."""
    rows_per_state: int = 8
    """Log-mel rows that one encoder state stands for."""

    def mel_centres_hz(self) -> npt.NDArray[np.float64]:
        """Centre frequency of every mel bin (n_mels,), on the scale 1127 ln(1 + f/700) that Kaldi uses."""
        low, high = (1127.0 * np.log1p(edge / 700.0) for edge in (self.low_hz, self.high_hz))
        centres = np.linspace(low, high, self.n_mels + 2)[1:-1]
        return np.asarray(700.0 * np.expm1(centres / 1127.0))


DEFAULT_CONFIG = AudioConfig()


def as_mono(pcm: npt.ArrayLike) -> FloatArray:
    """Samples as mono float32 in ±1.

    ``pcm`` is (N,) or (N, channels): floats in ±1, or int16/int32 at full scale. Raises ``audio.shape``,
    ``audio.dtype``, ``audio.not_finite`` or ``audio.range``.
    """
    samples = np.asarray(pcm)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= 64):
        raise AffectError(
            "audio.shape", f"audio: expected samples (N,) or (N, channels), got an array {samples.shape}"
        )
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
            mono = samples.astype(np.float32)
    elif samples.dtype in (np.int16, np.int32):
        mono = (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    else:
        raise AffectError(
            "audio.dtype",
            f"audio: expected float samples in ±1, int16 or int32, got {samples.dtype}; convert them first",
        )
    if not np.isfinite(mono).all():
        first = int(np.argwhere(~np.isfinite(mono))[0][0])
        raise AffectError(
            "audio.not_finite",
            f"audio: sample {first} of {len(mono)} is NaN or infinite; replace such samples first",
        )
    if len(mono) and np.abs(mono).max() > _MAX_SAMPLE:
        raise AffectError(
            "audio.range",
            f"audio: expected samples in ±1, got {np.abs(mono).max():.3g}; divide by the format's full scale",
        )
    if mono.ndim == 2:
        mono = mono.mean(axis=1)
    return np.ascontiguousarray(mono)


def check_rate(sample_rate_hz: int) -> None:
    """Raise ``audio.sample_rate`` unless audio of this rate can be taken."""
    if not 1_000 <= sample_rate_hz <= 768_000:
        raise AffectError(
            "audio.sample_rate", f"audio: expected a rate of 1000 to 768000 Hz, got {sample_rate_hz}"
        )


class LogMel:
    """Streaming log-mel energies: push samples of any rate, take the rows that became complete.

    Kaldi's filter bank (kaldi-native-fbank) on samples in ±1: povey window, pre-emphasis 0.97, DC removed
    per frame, power spectrum, no dither, natural log floored at ln(2^-23) = -15.94 so that digital silence is
    finite. Only frames that lie wholly in the signal give a row: row k covers
    ``[k * hop_s, k * hop_s + frame_length_s)``. Other rates go through soxr's streaming resampler (quality
    HQ). The rows don't depend on the chunking.
    """

    def __init__(self, config: AudioConfig = DEFAULT_CONFIG) -> None:
        self.config = config
        self._rate_hz = config.sample_rate_hz
        self._resampler: Any = None
        self._taken = 0
        knf = require("kaldi_native_fbank", "media")
        options = knf.FbankOptions()
        options.frame_opts.samp_freq = config.sample_rate_hz
        options.frame_opts.frame_length_ms = config.frame_length_s * 1e3
        options.frame_opts.frame_shift_ms = config.hop_s * 1e3
        options.frame_opts.dither = 0.0
        options.frame_opts.snip_edges = True
        options.mel_opts.num_bins = config.n_mels
        options.mel_opts.low_freq = config.low_hz
        options.mel_opts.high_freq = config.high_hz
        self._fbank = knf.OnlineFbank(options)

    def push(self, pcm: npt.ArrayLike, sample_rate_hz: int) -> FloatArray:
        """Take the next samples, (N,) or (N, channels), and return the new rows (T, n_mels).

        The rate may change from push to push. Raises as :func:`as_mono`, and ``audio.sample_rate``.
        """
        mono = as_mono(pcm)
        check_rate(sample_rate_hz)
        before: list[FloatArray] = []
        if sample_rate_hz != self._rate_hz:
            before.append(self.flush())
            self._rate_hz = sample_rate_hz
            if sample_rate_hz != self.config.sample_rate_hz:
                soxr = require("soxr", "media")
                self._resampler = soxr.ResampleStream(
                    sample_rate_hz, self.config.sample_rate_hz, 1, dtype="float32", quality="HQ"
                )
        if self._resampler is not None:
            mono = self._resampler.resample_chunk(mono)
        self._fbank.accept_waveform(self.config.sample_rate_hz, mono)
        return np.concatenate([*before, self._rows()])

    def flush(self) -> FloatArray:
        """The rows (T, n_mels) that the resampler still held back. Pushing may go on afterwards."""
        if self._resampler is None:
            return self._rows()
        tail = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        self._resampler = None
        self._rate_hz = self.config.sample_rate_hz
        self._fbank.accept_waveform(self.config.sample_rate_hz, tail)
        return self._rows()

    def _rows(self) -> FloatArray:
        ready = self._fbank.num_frames_ready
        rows = np.empty((ready - self._taken, self.config.n_mels), np.float32)
        for row, index in zip(rows, range(self._taken, ready), strict=True):
            row[:] = self._fbank.get_frame(index)
        self._fbank.pop(len(rows))
        self._taken = ready
        return rows


def log_mel(pcm: npt.ArrayLike, sample_rate_hz: int, config: AudioConfig = DEFAULT_CONFIG) -> FloatArray:
    """Log-mel energies (T, n_mels) of a whole recording: what :class:`LogMel` yields over it."""
    stream = LogMel(config)
    return np.concatenate([stream.push(pcm, sample_rate_hz), stream.flush()])


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


@dataclass(frozen=True)
class TimedRows:
    """Log-mel rows that follow each other, with their times. A stretch may begin before its first row."""

    rows: FloatArray
    """(T, n_mels)"""
    times_s: TimeArray
    """(T,) the end of each row's frame."""
    begins: bool
    """Whether they follow on a gap, or on nothing: what came before says nothing of their context."""
    held_back: bool = False
    """Whether they are what a resampler still held when a gap was noticed or the recording ended."""


class TimedLogMel:
    """One person's sound as it comes, with gaps, overlaps and changes of rate: log-mel rows with times.

    One object per stream; not to be shared between threads.
    """

    def __init__(self, config: AudioConfig = DEFAULT_CONFIG) -> None:
        self.config = config
        self._log_mel: LogMel | None = None
        self._stretch_start_s = 0.0
        self._stretch_rows = 0
        self._begins = False
        self.heard_until_s = 0.0
        """When the newest sample ended."""

    def push(self, pcm: npt.ArrayLike, sample_rate_hz: int, start_s: float) -> list[TimedRows]:
        """Take samples (N,) or (N, channels) whose first one was captured at ``start_s``; the rows that
        became complete.

        Gaps, overlaps of up to a second (the surplus is dropped) and rate changes are followed. Raises as
        :meth:`LogMel.push`, and ``audio.time``, ``audio.backwards_time``; a refused push changes nothing.
        """
        mono = as_mono(pcm)
        check_rate(sample_rate_hz)
        if not np.isfinite(start_s):
            raise AffectError("audio.time", f"audio: expected a finite start time in seconds, got {start_s}")
        if len(mono) == 0:
            return []
        before: list[TimedRows] = []
        if self._log_mel is None or start_s > self.heard_until_s + _GAP_TOLERANCE_S:
            before = self._start_stretch(start_s)
        elif start_s < self.heard_until_s - _GAP_TOLERANCE_S:
            overlap_s = self.heard_until_s - start_s
            if overlap_s > _MAX_OVERLAP_S:
                raise AffectError(
                    "audio.backwards_time",
                    f"audio: samples of {start_s:.3f} s came after those up to {self.heard_until_s:.3f} s; "
                    f"push audio in time order",
                )
            mono = mono[round(overlap_s * sample_rate_hz) :]
        assert self._log_mel is not None
        fresh = self._timed(self._log_mel.push(mono, sample_rate_hz))
        self.heard_until_s += len(mono) / sample_rate_hz
        return [*before, *fresh]

    def flush(self) -> list[TimedRows]:
        """At the end of a recording: what the resampler still holds back (some 20 ms)."""
        if self._log_mel is None:
            return []
        return [replace(rows, held_back=True) for rows in self._timed(self._log_mel.flush())]

    def _start_stretch(self, start_s: float) -> list[TimedRows]:
        held_back = self.flush()
        self._log_mel = LogMel(self.config)
        self._stretch_start_s = self.heard_until_s = start_s
        self._stretch_rows = 0
        self._begins = True
        return held_back

    def _timed(self, rows: FloatArray) -> list[TimedRows]:
        begins, self._begins = self._begins, False
        if len(rows) == 0 and not begins:
            return []
        index = np.arange(self._stretch_rows, self._stretch_rows + len(rows))
        first_end_s = self._stretch_start_s + self.config.frame_length_s
        times: TimeArray = np.asarray(first_end_s + index * self.config.hop_s, np.float64)
        self._stretch_rows += len(rows)
        return [TimedRows(rows, times, begins)]


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
