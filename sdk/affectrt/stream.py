"""A live stream of one person: capture threads push, the stream computes in a thread of its own.

Pushing checks, copies and queues, nothing more, so that a capture thread never waits for a model. Results are
read by :meth:`Stream.poll`, by iteration, by ``async for``, or go to a callback.

**Time.** Results lie at multiples of ``hop_s``; each rests on the window before it. Inputs without a time are
*live*: they are stamped by the stream's clock, which is zero when the stream is made, and from the first of
them on results come by that clock, also when nothing else does. Where all inputs carry times of their own, in
seconds on any one clock, a result is due once the newest time of any modality reaches it: push them in order
of time. Incremental results are final, so there they wait up to 1.5 s for sound and pictures that are behind.
For files, :class:`affectrt.streaming.core.StreamCore` computes the same without a thread, and drops nothing.

**Bounds.** What waits is bounded on both sides. Old pictures give way to new ones, then the oldest sound, and
the oldest results when nobody reads; what was dropped is counted and told by an event of the next result.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
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
from affectrt.streaming.core import StreamCore
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
from affectrt.streaming.queues import Command
from affectrt.streaming.statistics import StreamStatistics
from affectrt.streaming.worker import Worker

if TYPE_CHECKING:
    from affectrt.model import Model
    from affectrt.streaming.mode import StreamMode


class Stream:
    """One person's stream. All methods may be called from any thread."""

    def __init__(
        self,
        model: Model,
        window_s: float | None,
        hop_s: float,
        *,
        mode: StreamMode = "window",
        on_result: Callable[[Affect], object] | None = None,
    ) -> None:
        """Use :meth:`affectrt.model.Model.stream`."""

        def new_core(timer: StageTimer) -> StreamCore:
            return StreamCore(model, window_s, hop_s, mode=mode, timer=timer)

        self._encoders = model.encoders
        self._worker = Worker(new_core, on_result)
        self._stop = weakref.finalize(self, self._worker.stop)
        self._lock = threading.Lock()  # stamps and places in the queue go together
        self._clock = self._worker.clock
        self._frames = Frames(model.encoders)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def now_s(self) -> float:
        """Seconds on the stream's clock, which stamps live input."""
        return self._clock.now_s()

    def close(self) -> None:
        """Forget everything; pushing and reading are over. What is still due is lost: :meth:`flush` first.

        A result that is being computed is waited for. Closing again does nothing.
        """
        self._stop()

    def reset(self) -> None:
        """Forget the person: what was pushed, computed and not yet read. The clock goes on."""
        with self._lock:
            self._check_open()
            self._frames = Frames(self._encoders)
            self._clock.restart()
            command = Command("reset")
            self._worker.inbox.command(command, clear=True)
        if not self._worker.is_current:
            command.done.wait()

    def push_audio(self, pcm: npt.ArrayLike, sample_rate: int, start_s: float | None = None) -> None:
        """Take samples (N,) or (N, channels): floats in ±1, int16 or int32, at ``sample_rate`` Hz.

        ``start_s``: time of the first sample; None: right after the previous ones, or now if those are long
        over. Raises ``audio.not_finite``, ``audio.shape``, ``audio.dtype``, ``audio.range``,
        ``audio.sample_rate``, ``stream.time``, ``stream.closed``, ``model.no_extractor``,
        ``model.no_modality``; a refused push changes nothing.
        """
        mono = checked_audio(self._encoders, pcm, sample_rate)
        arrived_at = perf_counter()
        if start_s is not None:
            check_times(start_s)
        if not len(mono):
            return
        with self._lock:
            self._check_open()
            length_s = len(mono) / sample_rate
            begin_s = self._clock.stamp_audio_s(length_s) if start_s is None else float(start_s)
            self._clock.heard_until(begin_s + length_s)
            self._put(audio_inputs(mono, sample_rate, begin_s, arrived_at, timed=start_s is not None))

    def push_frame(self, frame: npt.NDArray[np.uint8], time_s: float | None = None) -> None:
        """Take a camera picture, BGR (H, W, 3) or grey (H, W), uint8, captured at ``time_s`` (None: now).

        Frames beyond the rate that the model looks at are passed over at once. Raises ``vision.frame_shape``,
        ``stream.time``, ``stream.closed``, ``model.no_extractor``, ``model.no_modality``; a refused push
        changes nothing.
        """
        frame = checked_frame(self._encoders, frame)
        arrived_at = perf_counter()
        if time_s is not None:
            check_times(time_s)
        with self._lock:
            self._check_open()
            moment_s = self._clock.stamp_s() if time_s is None else float(time_s)
            if self._frames.takes(moment_s):
                self._put([frame_input(frame, moment_s, arrived_at, timed=time_s is not None)])

    def push_text(self, text: str, start_s: float | None = None, end_s: float | None = None) -> None:
        """Take words said from ``start_s`` to ``end_s``; without an end at an ordinary pace, without a start
        so that they end now. Raises ``text.times``, ``stream.time``, ``stream.closed``.

        Words drive the clock as everything does: push them when they are said, not a transcript at once.
        """
        check_times(*(time_s for time_s in (start_s, end_s) if time_s is not None))
        with self._lock:
            self._check_open()
            timed = start_s is not None or end_s is not None
            if start_s is None:
                end_s = self._clock.stamp_s() if end_s is None else end_s
                start_s = end_s - len(words_of(text, 0.0)) / WORDS_PER_SECOND
            now = perf_counter()
            self._put(
                [
                    word_input(self._encoders, word, now, timed=timed)
                    for word in words_of(text, start_s, end_s)
                ]
            )

    def push_word(self, word: Word) -> None:
        """Take one word with its times. Raises ``stream.closed``, ``model.no_extractor``,
        ``model.no_modality``."""
        item = word_input(self._encoders, word, perf_counter())
        with self._lock:
            self._check_open()
            self._put([item])

    def push_features(self, sequence: FeatureSequence) -> None:
        """Take rows of the application's own extractor; from then on they stand for their modality.

        Raises ``features.dim``, ``stream.closed``, ``model.no_modality``; a refused push changes nothing.
        """
        items = feature_inputs(self._encoders, sequence, perf_counter())
        with self._lock:
            self._check_open()
            self._put(items)

    def poll(self) -> list[Affect]:
        """The results that are ready, in order of time. Computes nothing and never waits.

        Raises ``stream.closed``.
        """
        self._check_open()
        return self._worker.outbox.take_all()

    def flush(self) -> list[Affect]:
        """Wait until all that was pushed is computed; the results that are ready then, plus a last one at the
        very end of the input.

        The last one comes when at least 0.25 s follow the result before it, or when there was none at all.
        With a callback all of them go there. Raises ``stream.closed``, and ``stream.callback`` when a
        callback calls it: it would wait for itself.
        """
        if self._worker.is_current:
            raise AffectError(
                "stream.callback", "stream: flush() was called by on_result; call it in another thread"
            )
        command = Command("flush")
        with self._lock:
            self._check_open()
            self._worker.inbox.command(command)
        command.done.wait()
        self._check_open()
        return self._worker.outbox.take_all()

    def __iter__(self) -> Iterator[Affect]:
        """The results as they come, until the stream is closed."""
        while (affect := self._worker.outbox.take()) is not None:
            yield affect

    async def __aiter__(self) -> AsyncIterator[Affect]:
        """The same without blocking the event loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        while not self._worker.outbox.closed:
            woken = asyncio.Event()
            affect = self._worker.outbox.take_or_call(partial(_wake, loop.call_soon_threadsafe, woken.set))
            if affect is not None:
                yield affect
            elif not self._worker.outbox.closed:
                await woken.wait()

    def statistics(self) -> StreamStatistics:
        """Counts since the stream was made, and how long recent results took, stage by stage."""
        return self._worker.statistics()

    def _put(self, items: list[Input]) -> None:
        self._worker.inbox.put(items, live=self._clock.live)

    def _check_open(self) -> None:
        if self._worker.inbox.closed:
            raise AffectError("stream.closed", "stream: it was closed; make another one with model.stream()")


def _wake(call_soon: Callable[[Callable[[], None]], object], wake: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop was closed: nobody waits there any more
        call_soon(wake)
