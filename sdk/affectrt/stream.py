"""A live stream of one person: capture threads push, one thread polls.

Pushing checks and buffers, nothing more, so a capture thread never waits for a model. :meth:`Stream.poll`
does the work: it feeds what was pushed to the extractors and computes the results that became due.

**Time.** Results lie at multiples of ``hop_s``; each rests on the window before it and is due once the newest
time of any modality reaches it. Inputs may carry their own times, in seconds on any one clock. Without, they
are taken for live: the clock then starts when the stream is made.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import floor, isfinite
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from affectrt.affect import Affect
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import WORDS_PER_SECOND, Word, words_of
from affectrt.profiling import StageTimer
from affectrt.timeline import Timeline

if TYPE_CHECKING:
    from affectrt.features.frames import FrameSampler
    from affectrt.model import Model

DISORDER_S = 1.0
"""Modalities may lag behind each other by this much and still all count."""

MAX_PENDING_BYTES = 256 * 2**20
"""Sound and pictures that may wait for a poll; beyond it the oldest are dropped, with an event."""

PIECE_S = 1.0
"""Longer inputs are cut, so that modalities advance together however much of one is pushed at once."""

MAX_GAP_S = 3600.0
"""A longer silence of all inputs is a clock that was set, not a pause: no results are computed for it."""

_LAST_TICK_S = 0.25
_CLOCK_DRIFT_S = 0.5
_TIME_EPS = 1e-6


@dataclass(frozen=True)
class Event:
    """A fault that the stream survived."""

    time_s: float
    """Stream time of the input that it concerns."""
    code: str
    """Stable and dotted, as in :class:`~affectrt.errors.AffectError`."""
    message: str
    """For people."""


@dataclass(frozen=True)
class _Input:
    """Something pushed, waiting for :meth:`Stream.poll`."""

    start_s: float
    end_s: float
    arrived_at: float
    size_bytes: int
    feed: Callable[[Timeline], None]


class Stream:
    """Window-mode stream. ``push_*`` may be called from any thread, also while another one polls."""

    def __init__(
        self, model: Model, window_s: float, hop_s: float, *, timer: StageTimer | None = None
    ) -> None:
        """Use :meth:`affectrt.model.Model.stream`."""
        for name, value in (("window_s", window_s), ("hop_s", hop_s)):
            if not (isfinite(value) and value > 0.0):
                raise AffectError(
                    "stream.config", f"stream: expected {name} to be a number of seconds above 0, got {value}"
                )
        self._model = model
        self._hop_s = hop_s
        self._timer = timer or StageTimer.off()
        # A modality that lags behind the others must still find its rows.
        keep_s = window_s + hop_s + 2.0 * DISORDER_S
        self._timeline = Timeline(model.encoders, window_s=window_s, keep_s=keep_s, timer=self._timer)
        self._computing = threading.Lock()
        self._queue: deque[_Input] = deque()
        self._tick: int | None = None
        self._last_time_s: float | None = None
        self._arrivals: deque[tuple[float, float]] = deque()
        # Everything below is shared with the capture threads.
        self._lock = threading.Lock()
        self._pending: deque[_Input] = deque()
        self._pending_bytes = 0
        self._events: deque[Event] = deque(maxlen=1000)
        self._sampler: FrameSampler | None = None
        self._audio_end_s: float | None = None
        self._opened_at = perf_counter()
        self._closed = False

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything; pushing and polling are over. What is still due is lost: :meth:`flush` first."""
        with self._lock:
            self._closed = True
            self._pending.clear()
            self._pending_bytes = 0

    def push_audio(self, pcm: npt.ArrayLike, sample_rate: int, start_s: float | None = None) -> None:
        """Take samples (N,) or (N, channels): floats in ±1, int16 or int32, at ``sample_rate`` Hz.

        ``start_s``: time of the first sample; None: right after the previous ones, or now if those are long
        over. Raises ``audio.not_finite``, ``audio.shape``, ``audio.dtype``, ``audio.range``,
        ``audio.sample_rate``, ``stream.time``, ``model.no_extractor``, ``model.no_modality``; a refused push
        changes nothing.
        """
        from affectrt.features.audio import as_mono, check_rate

        self._model.encoders.check_extractor("audio")
        check_rate(sample_rate)
        mono = np.array(as_mono(pcm))  # a copy: the caller may use its buffer again
        length_s = len(mono) / sample_rate
        if not len(mono):
            return
        if start_s is not None:
            _check_times(start_s)
        with self._lock:
            begin = self._audio_start(length_s) if start_s is None else float(start_s)
            self._audio_end_s = begin + length_s
            step = max(1, int(PIECE_S * sample_rate))
            for first in range(0, len(mono), step):
                piece = mono[first : first + step]
                at_s = begin + first / sample_rate
                feed = partial(_feed_audio, pcm=piece, sample_rate=sample_rate, start_s=at_s)
                self._push(at_s, at_s + len(piece) / sample_rate, piece.nbytes, feed)

    def push_frame(self, frame: npt.NDArray[np.uint8], time_s: float | None = None) -> None:
        """Take a camera picture, BGR (H, W, 3) or grey (H, W), uint8, captured at ``time_s`` (None: now).

        Frames beyond the rate that the model looks at are passed over at once. Raises ``vision.frame_shape``,
        ``stream.time``, ``model.no_extractor``, ``model.no_modality``; a refused push changes nothing.
        """
        from affectrt.features.frames import FrameSampler, check_frame

        encoders = self._model.encoders
        encoders.check_extractor("vision")
        frame = check_frame(frame)
        if time_s is not None:
            _check_times(time_s)
        with self._lock:
            moment = self._now_s() if time_s is None else float(time_s)
            if self._sampler is None:
                rate_hz = encoders.frame_rate_hz
                assert rate_hz is not None  # checked above
                self._sampler = FrameSampler(rate_hz)
            if self._sampler.takes(moment):
                kept = frame.copy()  # cameras reuse their buffers
                self._push(moment, moment, kept.nbytes, lambda timeline: timeline.push_frame(kept, moment))

    def push_text(self, text: str, start_s: float | None = None, end_s: float | None = None) -> None:
        """Take words said from ``start_s`` to ``end_s``; without an end at an ordinary pace, without a start
        so that they end now. Raises ``text.times``, ``stream.time``.

        Words drive the clock as everything does: push them when they are said, not a transcript at once.
        """
        if start_s is None:
            end_s = self._now_s() if end_s is None else end_s
            start_s = end_s - len(words_of(text, 0.0)) / WORDS_PER_SECOND
        _check_times(start_s, *([] if end_s is None else [end_s]))
        for word in words_of(text, start_s, end_s):
            self.push_word(word)

    def push_word(self, word: Word) -> None:
        """Take one word with its times. Raises ``model.no_extractor``, ``model.no_modality``."""
        self._model.encoders.check_extractor("text")
        with self._lock:
            self._push(word.start_s, word.end_s, 0, lambda timeline: timeline.push_word(word))

    def push_features(self, sequence: FeatureSequence) -> None:
        """Take rows of the application's own extractor; from then on they stand for their modality.

        Raises ``features.dim``, ``model.no_modality``; a refused push changes nothing.
        """
        self._model.encoders.check_rows(sequence)
        cuts = np.flatnonzero(np.diff(sequence.times_s // PIECE_S)) + 1
        with self._lock:
            for values, times_s in zip(
                np.split(sequence.values, cuts), np.split(sequence.times_s, cuts), strict=True
            ):
                if len(times_s):
                    piece = replace(sequence, values=values.copy(), times_s=times_s.copy())
                    feed = partial(Timeline.push_features, sequence=piece)
                    self._push(float(times_s[0]), float(times_s[-1]), values.nbytes, feed)

    def poll(self) -> list[Affect]:
        """Compute and return the results that became due since the last poll, in order of time."""
        with self._computing:
            return list(self._due())

    def flush(self) -> list[Affect]:
        """The same at the end of a recording, plus a last result at its very end.

        The last one comes when at least 0.25 s follow the result before it, or when there was none at all.
        """
        with self._computing:
            results = list(self._due())
            self._timeline.end_audio()
            end_s = self._timeline.newest_s
            last_s = self._last_time_s
            if isfinite(end_s) and (last_s is None or end_s >= last_s + _LAST_TICK_S):
                results.append(self._result(end_s))
            return results

    def events(self) -> list[Event]:
        """The faults since the last call that the stream survived, oldest first."""
        with self._lock:
            events = list(self._events)
            self._events.clear()
        return events

    def _due(self) -> Iterator[Affect]:
        self._take()
        if self._tick is None and self._queue:
            self._tick = self._first_tick(min(item.start_s for item in self._queue))
        while self._queue:
            item = self._queue.popleft()
            self._pass_gap(item.start_s)
            # A backlog is worked off as if it had been polled all along.
            yield from self._ticks_until(item.end_s - DISORDER_S)
            try:
                item.feed(self._timeline)
            except AffectError as error:
                self._report(item.start_s, error.code, error.message)
                continue
            self._arrivals.append((item.start_s, item.arrived_at))
        yield from self._ticks_until(self._timeline.newest_s)

    def _pass_gap(self, start_s: float) -> None:
        """When the clock jumps: the next result is the first one after ``start_s``."""
        if isfinite(self._timeline.newest_s) and start_s > self._timeline.newest_s + MAX_GAP_S:
            self._tick = self._first_tick(start_s)
            self._report(
                start_s,
                "stream.time_jump",
                f"stream: input of {start_s:.2f} s follows on {self._timeline.newest_s:.2f} s; no results in "
                f"between, check the clock of the capture",
            )

    def _first_tick(self, start_s: float) -> int:
        return max(1, floor(start_s / self._hop_s) + 1)

    def _ticks_until(self, time_s: float) -> Iterator[Affect]:
        time_s = min(time_s, self._timeline.newest_s)
        while self._tick is not None and (tick_s := self._tick * self._hop_s) <= time_s + _TIME_EPS:
            self._tick += 1
            yield self._result(tick_s)

    def _result(self, time_s: float) -> Affect:
        captured_at = perf_counter()
        while self._arrivals and self._arrivals[0][0] <= time_s:
            captured_at = self._arrivals.popleft()[1]
        self._last_time_s = time_s
        sequences = self._timeline.at(time_s)
        with self._timer.stage("fusion"):
            return self._model.fuse(sequences, time_s, captured_at)

    def _take(self) -> None:
        """Move what was pushed into the queue, in order of time whatever the order of pushing."""
        with self._lock:
            self._check_open()
            arrived = [*self._queue, *self._pending]
            self._pending.clear()
            self._pending_bytes = 0
        self._queue = deque(sorted(arrived, key=lambda item: item.end_s))

    def _push(self, start_s: float, end_s: float, size_bytes: int, feed: Callable[[Timeline], None]) -> None:
        """Buffer one input; the caller holds the lock."""
        self._check_open()
        self._pending.append(_Input(start_s, end_s, perf_counter(), size_bytes, feed))
        self._pending_bytes += size_bytes
        while self._pending_bytes > MAX_PENDING_BYTES and len(self._pending) > 1:
            lost = self._pending.popleft()
            self._pending_bytes -= lost.size_bytes
            self._events.append(
                Event(
                    lost.start_s,
                    "stream.behind",
                    f"stream: input of {lost.start_s:.2f} s was dropped, {MAX_PENDING_BYTES >> 20} MiB are "
                    f"waiting; call poll() more often",
                )
            )

    def _report(self, time_s: float, code: str, message: str) -> None:
        with self._lock:
            self._events.append(Event(time_s, code, message))

    def _audio_start(self, length_s: float) -> float:
        """Where samples without a time begin: they are gapless, unless the clock tells of a pause."""
        live_s = max(0.0, self._now_s() - length_s)
        if self._audio_end_s is None or live_s > self._audio_end_s + _CLOCK_DRIFT_S:
            return live_s
        return self._audio_end_s

    def _now_s(self) -> float:
        return perf_counter() - self._opened_at

    def _check_open(self) -> None:
        if self._closed:
            raise AffectError("stream.closed", "stream: it was closed; make another one with model.stream()")


def _feed_audio(
    timeline: Timeline, *, pcm: npt.NDArray[np.float32], sample_rate: int, start_s: float
) -> None:
    timeline.push_audio(pcm, sample_rate, start_s)


def _check_times(*times_s: float) -> None:
    for time_s in times_s:
        if not isfinite(time_s):
            raise AffectError("stream.time", f"stream: expected a finite time in seconds, got {time_s}")
