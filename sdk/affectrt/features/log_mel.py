"""Sound → log-mel rows: any rate, any chunks, with gaps and overlaps, each row with its time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.errors import AffectError, require
from affectrt.features.sequence import FloatArray, TimeArray

_MAX_SAMPLE = 1e5
_GAP_TOLERANCE_S = 0.05
_MAX_OVERLAP_S = 1.0


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
