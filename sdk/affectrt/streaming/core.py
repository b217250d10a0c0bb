"""What a stream computes, without threads and without a clock: timed inputs in, due results out.

For files use it directly: nothing is ever dropped, and the results depend on nothing but the inputs.
:class:`affectrt.stream.Stream` runs one in a thread of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import floor, inf, isfinite
from time import perf_counter
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt

from affectrt.affect import Affect, Event, Modality
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word, words_of
from affectrt.profiling import StageTimer
from affectrt.streaming.incremental import IncrementalMode
from affectrt.streaming.inputs import (
    Frames,
    Input,
    audio_inputs,
    check_times,
    checked_audio,
    checked_frame,
    feature_inputs,
    frame_input,
    word_input,
)
from affectrt.streaming.mode import Mode, StreamMode, WindowMode
from affectrt.streaming.watch import Watch
from affectrt.timeline import DISORDER_S

if TYPE_CHECKING:
    from affectrt.model import Model

MAX_GAP_S = 3600.0
"""A longer silence of all inputs is a clock that was set, not a pause: no results are computed for it."""

SET_BACK_S = 10.0
"""Inputs that all lie this far behind the newest time, for two seconds of theirs, are a clock that was set
back: the stream starts over there."""

REPEAT_S = 1.0
"""An event of the same kind is told again after this long."""

_SET_BACK_FOR_S = 2.0
_LAST_TICK_S = 0.25
_TIME_EPS = 1e-6
_MAX_EVENTS = 100


class StreamCore:
    """One person's recording, in order of time. Not to be shared between threads.

    Results lie at multiples of ``hop_s``; each rests on what came before it and is due once the newest time
    of any modality reaches it. Inputs carry their own times, in seconds on any one clock. Incremental results
    are final, so they wait for sound and pictures that are not there yet, 1.5 seconds at most.
    """

    def __init__(
        self,
        model: Model,
        window_s: float | None,
        hop_s: float,
        *,
        mode: StreamMode = "window",
        timer: StageTimer | None = None,
    ) -> None:
        """``window_s``: None for what the model was trained for. ``timer`` collects where the time goes.

        Raises ``stream.config`` when a length is not a number of seconds above 0 or doesn't go with the mode,
        and as :attr:`affectrt.model.Model.causal`.
        """
        if mode not in get_args(StreamMode):
            raise AffectError("stream.config", f"stream: expected mode window or incremental, got {mode!r}")
        if mode == "incremental" and window_s is not None:
            raise AffectError(
                "stream.config",
                f"stream: an incremental stream looks back as far as its model learned; leave out window_s, "
                f"got {window_s}",
            )
        window_s = model.manifest.window_s if window_s is None else window_s
        for name, value in (("window_s", window_s), ("hop_s", hop_s)):
            if not (isfinite(value) and value > 0.0):
                raise AffectError(
                    "stream.config", f"stream: expected {name} to be a number of seconds above 0, got {value}"
                )
        self._model = model
        self._mode_name = mode
        self._window_s = window_s
        self._hop_s = hop_s
        self._timer = timer or StageTimer.off()
        self._waiting: list[Input] = []
        self._frames = Frames(model.encoders)
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._reported: dict[tuple[str, str], float] = {}
        self._forget()

    def _forget(self) -> None:
        """Before the first input."""
        self._mode = self._new_mode()
        self._delivered_s: dict[Modality, float] = {}
        self._watch = Watch()
        self._arrivals: deque[tuple[float, float]] = deque()
        self._tick: int | None = None
        self._newest_s = -inf
        self._last_time_s: float | None = None
        self._back_since_s: float | None = None

    def _new_mode(self) -> Mode:
        if self._mode_name == "incremental":
            return IncrementalMode(self._model, self._timer)
        # A modality that lags behind the others must still find its rows.
        keep_s = self._window_s + self._hop_s + 2.0 * DISORDER_S
        return WindowMode(self._model, self._window_s, keep_s, self._timer)

    def push_audio(self, pcm: npt.ArrayLike, sample_rate: int, start_s: float) -> None:
        """As :meth:`affectrt.stream.Stream.push_audio`."""
        mono = checked_audio(self._model.encoders, pcm, sample_rate)
        check_times(start_s)
        self._waiting += audio_inputs(mono, sample_rate, float(start_s), perf_counter())

    def push_frame(self, frame: npt.NDArray[np.uint8], time_s: float) -> None:
        """As :meth:`affectrt.stream.Stream.push_frame`."""
        frame = checked_frame(self._model.encoders, frame)
        check_times(time_s)
        if self._frames.takes(time_s):
            self._waiting.append(frame_input(frame, float(time_s), perf_counter()))

    def push_text(self, text: str, start_s: float, end_s: float | None = None) -> None:
        """As :meth:`affectrt.stream.Stream.push_text`."""
        for word in words_of(text, start_s, end_s):
            self.push_word(word)

    def push_word(self, word: Word) -> None:
        """As :meth:`affectrt.stream.Stream.push_word`."""
        self._waiting.append(word_input(self._model.encoders, word, perf_counter()))

    def push_features(self, sequence: FeatureSequence) -> None:
        """As :meth:`affectrt.stream.Stream.push_features`."""
        self._waiting += feature_inputs(self._model.encoders, sequence, perf_counter())

    def poll(self) -> list[Affect]:
        """Compute the results that became due since the last poll, in order of time.

        What was pushed in between is taken in by time, whatever the order of pushing.
        """
        waiting, self._waiting = sorted(self._waiting, key=lambda item: item.end_s), []
        return list(self.take(waiting))

    def flush(self) -> list[Affect]:
        """The same at the end of a recording, plus a last result at its very end.

        The last one comes when at least 0.25 s follow the result before it, or when there was none at all.
        """
        results = self.poll()
        self._mode.timeline.end_audio()
        results += self.advance(self._newest_s)
        last_s = self._last_time_s
        if isfinite(self._newest_s) and (last_s is None or self._newest_s >= last_s + _LAST_TICK_S):
            results += self._result(self._newest_s)
        if results and self._events:
            results[-1] = replace(results[-1], events=results[-1].events + self._take_events())
        return results

    @property
    def untold(self) -> tuple[Event, ...]:
        """What has happened since the last result."""
        return tuple(self._events)

    @property
    def next_tick_s(self) -> float | None:
        """When the next result lies; None before the first input."""
        return None if self._tick is None else self._tick * self._hop_s

    def report(self, time_s: float, code: str, message: str, *, about: str = "") -> None:
        """An event for the next result; the same ``code`` ``about`` the same is told once in a second."""
        last_s = self._reported.get((code, about))
        if last_s is None or abs(time_s - last_s) >= REPEAT_S:
            self._reported[code, about] = time_s
            self.tell(Event(time_s, code, message))

    def tell(self, event: Event) -> None:
        """An event for the next result, however often it comes."""
        self._events.append(event)

    def take(self, items: Iterable[Input]) -> Iterator[Affect]:
        """Take inputs in and compute what becomes due by the newest time."""
        for item in items:
            self._follow_clock(item)
            # A backlog is worked off as if it had been polled all along.
            yield from self.advance(min(item.end_s - DISORDER_S, self._due_s()))
            self._feed(item)
        yield from self.advance(self._due_s())

    def _due_s(self) -> float:
        return self._mode.due_s(self._newest_s, self._delivered_s)

    def take_in(self, item: Input, arrived_s: float) -> None:
        """Take one input in and compute nothing, for who calls :meth:`advance` by a clock of its own.

        The first result comes after the first input has arrived, at ``arrived_s`` on that clock.
        """
        self._follow_clock(item)
        if not isfinite(self._newest_s):
            self._tick = self._first_tick(arrived_s)
        self._feed(item)
        # What comes late by less still finds its place.
        self._follow(min(arrived_s, self.next_tick_s or arrived_s) - DISORDER_S)

    def advance(self, time_s: float) -> Iterator[Affect]:
        """The results up to ``time_s``, which may lie beyond the newest input."""
        while self._tick is not None and (tick_s := self._tick * self._hop_s) <= time_s + _TIME_EPS:
            self._tick += 1
            yield from self._result(tick_s)
        if self._tick is not None and isfinite(time_s):
            self._follow(time_s)

    def skip_to(self, time_s: float) -> int:
        """Leave out all but the last of the results up to ``time_s``; how many."""
        if self._tick is None:
            return 0
        last = floor((time_s + _TIME_EPS) / self._hop_s)
        skipped = max(0, last - self._tick)
        self._tick += skipped
        if skipped:
            self._mode.skip(self._tick * self._hop_s)
        return skipped

    def _follow(self, time_s: float) -> None:
        try:
            self._mode.follow(time_s)
        except AffectError as error:
            self.report(time_s, error.code, error.message)

    def _follow_clock(self, item: Input) -> None:
        """When the clock was set, forward or back: the next result is the first one after ``item``."""
        newest_s = self._newest_s
        if self._tick is None:
            self._tick = self._first_tick(item.start_s)
        elif item.start_s > newest_s + MAX_GAP_S:
            self._tick = self._first_tick(item.start_s)
            self._report_jump(item.start_s, newest_s, "no results in between")
        elif item.end_s >= newest_s - SET_BACK_S:
            self._back_since_s = None
        elif self._back_since_s is None:
            self._back_since_s = item.end_s
        elif item.end_s >= self._back_since_s + _SET_BACK_FOR_S:
            self._forget()
            self._tick = self._first_tick(item.start_s)
            self._report_jump(item.start_s, newest_s, "it starts over there")

    def _report_jump(self, start_s: float, newest_s: float, so: str) -> None:
        self.report(
            start_s,
            "stream.time_jump",
            f"stream: input of {start_s:.2f} s follows on {newest_s:.2f} s; {so}, check the capture's clock",
        )

    def _first_tick(self, start_s: float) -> int:
        return max(1, floor(start_s / self._hop_s) + 1)

    def _feed(self, item: Input) -> None:
        try:
            if item.kind == "words" and item.end_s < self._newest_s - self._mode.keep_s:
                raise AffectError(
                    "text.backwards_time",
                    f"text: a word of {item.end_s:.3f} s came at {self._newest_s:.3f} s, too late for any "
                    f"result; push words when they are said",
                )
            item.feed(self._mode.timeline)
        except AffectError as error:
            self.report(item.start_s, error.code, error.message, about=item.modality)
        else:
            self._arrivals.append((item.start_s, item.arrived_at))
        # Time goes on with what fails, too: results then tell why they rest on less.
        self._newest_s = max(self._newest_s, item.end_s)
        delivered_s = self._delivered_s.get(item.modality, -inf)
        self._delivered_s[item.modality] = max(delivered_s, item.end_s)
        self._events.extend(self._watch.delivered(item.modality, item.end_s))

    def _result(self, time_s: float) -> Iterator[Affect]:
        """One, or none when it fails."""
        captured_at = perf_counter()
        while self._arrivals and self._arrivals[0][0] <= time_s:
            captured_at = self._arrivals.popleft()[1]
        self._last_time_s = time_s
        try:
            affect = self._mode.result(time_s, captured_at)
        except AffectError as error:
            self.report(time_s, error.code, error.message)
            return
        self._events.extend(self._watch.told(affect))
        yield replace(affect, events=self._take_events()) if self._events else affect

    def _take_events(self) -> tuple[Event, ...]:
        events = tuple(self._events)
        self._events.clear()
        return events
