"""Audio features for causal models: each state is given once, when all that it rests on has been heard.

The encoder is the one that reads windows. Its convolutions see some rows past those that a state stands for,
so a state is known that much later, and counts from then on: a delay in place of padding on the left. What
else looked at the whole window is replaced by what looks back: the level is a mean that fades, and speech
stands out from the second before it. Training makes its features here, too.
"""

from __future__ import annotations

from collections import deque
from math import exp, inf

import numpy as np
import numpy.typing as npt

from affectrt.backends import Graph
from affectrt.features.audio import (
    FLOOR_REACH_S,
    FLOOR_SMOOTHING_S,
    MIN_VOICED_S,
    BoolArray,
    stands_out,
    take_out,
    voice_and_hiss,
)
from affectrt.features.log_mel import AudioConfig, TimedLogMel, TimedRows
from affectrt.features.sequence import FeatureSequence, FloatArray, TimeArray

SPEECH_HOLD_S = 2.0
"""A state is of speech when :data:`~affectrt.features.audio.MIN_VOICED_S` of so long before it was voiced."""

MAX_DROPOUT_S = 0.5
"""A shorter gap is a fault of the microphone or the network: the row before it fills it. Over a longer one
no state reaches."""

LEVEL_FADES_S = 10.0
"""After so long, what was heard counts for the level by a factor of e less."""

_TIME_EPS = 1e-6


class SpeechGate:
    """Which rows hold a voice, judged by what came before them alone."""

    def __init__(self, config: AudioConfig) -> None:
        self._config = config
        self._smoothing = max(1, round(FLOOR_SMOOTHING_S / config.hop_s))
        # Before the first row nothing was quiet.
        self._smooth = np.full(round(FLOOR_REACH_S / config.hop_s), np.inf)
        self._energy = np.zeros(0)

    def __call__(self, log_mel: FloatArray) -> BoolArray:
        """The next rows (T, n_mels) → (T,).

        As :func:`~affectrt.features.audio.voiced`, with the quietest moment of the second before only: a fan
        that is switched on passes for a voice until that second is over.
        """
        voice, hiss = voice_and_hiss(log_mel, self._config)
        past = len(self._energy)
        energy = np.concatenate([self._energy, voice])
        ends = np.arange(past + 1, len(energy) + 1)
        sums = np.concatenate([[0.0], np.cumsum(energy)])
        starts = np.maximum(ends - self._smoothing, 0)
        smooth = np.concatenate([self._smooth, (sums[ends] - sums[starts]) / (ends - starts)])
        reach = len(self._smooth)
        floor = np.lib.stride_tricks.sliding_window_view(smooth, reach + 1).min(axis=1)
        self._energy = energy[max(0, len(energy) - self._smoothing + 1) :]
        self._smooth = smooth[len(smooth) - reach :]
        return stands_out(voice, hiss, floor)


class Level:
    """How loud a voice has been lately, as one number for all bands."""

    def __init__(self, fades_over: float) -> None:
        """``fades_over``: rows after which one counts by a factor of e less."""
        self._fades_over = fades_over
        self._voice = self._all = (0.0, 0.0)

    def after(self, rows: FloatArray, speech: BoolArray) -> float:
        """Take rows (T, n_mels) in; the level after them: of speech, or of everything until there is some."""
        fade = exp(-len(rows) / self._fades_over)
        means = rows.mean(axis=1, dtype=np.float64)
        self._voice = _faded(self._voice, fade, means[speech])
        self._all = _faded(self._all, fade, means)
        total, count = self._voice if self._voice[1] > 0.0 else self._all
        return total / count


def _faded(mean: tuple[float, float], fade: float, more: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Sum and weight of a mean that forgets, with more values in it."""
    return fade * mean[0] + float(more.sum()), fade * mean[1] + len(more)


class CausalAudioFeatures:
    """The audio modality of one person: takes samples as they come, gives every state of speech once.

    Silence is an absent modality, not an error. One object per stream; not to be shared between threads.
    """

    def __init__(self, config: AudioConfig, graph: Graph, dim: int, context_rows: int) -> None:
        """``graph``: ``log_mel`` (1, T, n_mels) float32 → ``states`` (1, T / rows_per_state, ``dim``), where
        state k rests on the rows from k · rows_per_state − ``context_rows`` to that + ``context_rows``."""
        self._config = config
        self._graph = graph
        self._dim = dim
        self._step = config.rows_per_state
        self._back = -(-context_rows // self._step)
        self._ahead = context_rows // self._step
        self._log_mel = TimedLogMel(config)
        self._level = Level(LEVEL_FADES_S / config.hop_s)
        self._voiced: deque[int] = deque(maxlen=max(1, round(SPEECH_HOLD_S / config.hop_s / self._step)))
        self._known: list[tuple[FloatArray, TimeArray]] = [(np.zeros((0, dim), np.float32), np.zeros(0))]
        self._start_stretch()

    def _start_stretch(self) -> None:
        """Before the first row after a gap: no state rests on rows of both sides."""
        self._gate = SpeechGate(self._config)
        self._delay_s = 0.0
        # Rows that make no block yet or are not known yet: when they ended, when they will be known.
        self._open = np.zeros((0, self._config.n_mels), np.float32)
        self._ends_s = np.zeros(0)
        self._known_s = np.zeros(0)
        # The newest row that was known, and when it ended.
        self._last: tuple[FloatArray, float] | None = None
        self._resumes = False
        # Normalised rows, a block per state, from the one that the next state needs first.
        self._blocks: deque[tuple[FloatArray, float, bool]] = deque()
        self._first = self._next = 0

    def push_audio(self, pcm: npt.ArrayLike, sample_rate_hz: int, start_s: float) -> None:
        """Take samples; as :meth:`affectrt.features.log_mel.TimedLogMel.push`.

        What a resampler holds back depends on how the samples were cut, so where one is needed rows count as
        known that much later, and those that weren't known yet when a gap began never.
        """
        ended_s = self._log_mel.heard_until_s
        for rows in self._log_mel.push(pcm, sample_rate_hz, start_s):
            if rows.begins:
                self._drop_unknown(ended_s)
            if not rows.held_back:
                self._open_rows(rows, _held_back_s(sample_rate_hz, self._config))
        self._take_known(self._log_mel.heard_until_s)

    def push_rows(self, rows: TimedRows) -> None:
        """Take log-mel rows that the caller computed. However they are cut, the states are the same."""
        self._open_rows(rows, 0.0)
        self._take_known(inf)

    def _drop_unknown(self, ended_s: float) -> None:
        """When sound stopped at ``ended_s``."""
        known = int(np.searchsorted(self._known_s, ended_s + _TIME_EPS, side="right"))
        self._keep(slice(known))
        if known:
            self._last = (self._open[-1], float(self._ends_s[-1]))

    def _open_rows(self, rows: TimedRows, delay_s: float) -> None:
        self._resumes |= rows.begins
        if not len(rows.rows):
            return
        if self._resumes:
            self._resume(float(rows.times_s[0]), delay_s)
        self._delay_s = max(self._delay_s, delay_s)
        self._add(rows.rows, rows.times_s, rows.times_s + self._delay_s)

    def _resume(self, time_s: float, delay_s: float) -> None:
        """After a gap that the row of ``time_s`` ends."""
        self._resumes = False
        if self._last is None or time_s - self._last[1] > MAX_DROPOUT_S:
            self._encode(inf)
            self._start_stretch()
            return
        row, last_s = self._last
        times = np.arange(last_s + self._config.hop_s, time_s - self._config.hop_s / 2.0, self._config.hop_s)
        # Nobody knew how long the gap is before it was over.
        known_s = np.full(len(times), time_s + max(self._delay_s, delay_s))
        self._add(np.repeat(row[None], len(times), axis=0), times, known_s)

    def _add(self, rows: FloatArray, ends_s: TimeArray, known_s: TimeArray) -> None:
        self._open = np.concatenate([self._open, rows])
        self._ends_s = np.concatenate([self._ends_s, ends_s])
        self._known_s = np.concatenate([self._known_s, known_s])

    def _keep(self, some: slice) -> None:
        self._open, self._ends_s, self._known_s = self._open[some], self._ends_s[some], self._known_s[some]

    def _take_known(self, time_s: float) -> None:
        """The blocks that are known by then."""
        step = self._step
        taken = 0
        while taken + step <= len(self._open) and self._known_s[taken + step - 1] <= time_s + _TIME_EPS:
            self._take(self._open[taken : taken + step], float(self._known_s[taken + step - 1]))
            taken += step
        if taken:
            self._last = (self._open[taken - 1], float(self._ends_s[taken - 1]))
        self._keep(slice(taken, None))

    def until(self, time_s: float) -> FeatureSequence:
        """The states (T, dim) that are known at ``time_s`` and were not given yet, each with the time at
        which it was known."""
        self._encode(time_s)
        values, times = (np.concatenate(part) for part in zip(*self._known, strict=True))
        # Those of a stretch that was over before anybody asked for them.
        due = int(np.searchsorted(times, time_s, side="right"))
        self._known = [(values[due:], times[due:])]
        return FeatureSequence("audio", values[:due], times[:due], "log-mel encoder")

    def _take(self, block: FloatArray, time_s: float) -> None:
        """The next rows of one state, which end at ``time_s``."""
        speech = self._gate(block)
        self._voiced.append(int(speech.sum()))
        heard = sum(self._voiced) * self._config.hop_s >= MIN_VOICED_S
        self._blocks.append((take_out(self._level.after(block, speech), block), time_s, heard))

    def _encode(self, time_s: float) -> None:
        """The states of this stretch that are known by then."""
        end = self._first + len(self._blocks)
        while end > self._first and self._blocks[end - 1 - self._first][1] > time_s:
            end -= 1
        stop = end - self._ahead
        told = [self._blocks[j + self._ahead - self._first] for j in range(self._next, stop)]
        wanted = np.flatnonzero([heard for _, _, heard in told])
        if len(wanted):
            first = max(0, self._next + int(wanted[0]) - self._back)
            rows = [self._blocks[j - self._first][0] for j in range(first, end)]
            (states,) = self._graph(log_mel=np.concatenate(rows)[np.newaxis])
            times = np.array([told[k][1] for k in wanted])
            self._known.append((states[0][wanted + self._next - first], times))
        self._next = max(self._next, stop)
        while self._first < self._next - self._back:
            self._blocks.popleft()
            self._first += 1


def _held_back_s(sample_rate_hz: int, config: AudioConfig) -> float:
    """More than the resampler ever holds back of this rate, as measured from 1 to 96 kHz."""
    return 0.0 if sample_rate_hz == config.sample_rate_hz else max(0.1, 1100.0 / sample_rate_hz)
