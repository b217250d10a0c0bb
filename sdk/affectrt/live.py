"""Sources → stream → outputs: what ``affectrt live`` runs, for applications that want the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep
from types import TracebackType
from typing import TYPE_CHECKING

from affectrt.affect import Affect, Event
from affectrt.errors import AffectError
from affectrt.outputs.output import FanOut, Output
from affectrt.outputs.recording import read_recording
from affectrt.stream import Stream
from affectrt.streaming.statistics import StreamStatistics

if TYPE_CHECKING:
    from affectrt.listening import Recogniser
    from affectrt.model import Model
    from affectrt.sources.source import Sound, Source
    from affectrt.streaming.mode import StreamMode

POLL_S = 0.02
"""Results wait for their reader no longer than this."""


class _News:
    """Events of sources and outputs, until they are told and go with a result. From any thread."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._untold: deque[Event] = deque(maxlen=100)
        self._waiting: deque[Event] = deque(maxlen=100)

    def report(self, code: str, message: str) -> None:
        self._untold.append(Event(self._now_s(), code, message))

    def tell(self) -> Iterator[Event]:
        while self._untold:
            event = self._untold.popleft()
            self._waiting.append(event)
            yield event

    def attach(self, affect: Affect) -> Affect:
        if not self._waiting:
            return affect
        events = affect.events + tuple(self._waiting)
        self._waiting.clear()
        return replace(affect, events=events)


class Live:
    """One person, live. A context manager: leaving it stops the sources and closes stream and outputs."""

    def __init__(
        self,
        model: Model,
        sources: Sequence[Source],
        outputs: Sequence[Output] = (),
        *,
        hop_s: float,
        window_s: float | None = None,
        mode: StreamMode = "window",
        recogniser: Recogniser | None = None,
    ) -> None:
        """``recogniser`` turns the sound of the sources into words. Entering starts the sources.

        Raises as :meth:`affectrt.model.Model.stream`.
        """
        self.sources = tuple(sources)
        self._stream = model.stream(window_s, hop_s, mode=mode)
        self._news = _News(self._stream.now_s)
        self._outputs = FanOut(outputs, self._news.report)
        self._recogniser = recogniser
        self._stack = ExitStack()

    def __enter__(self) -> Live:
        from affectrt.listening import Listener

        with ExitStack() as stack:
            stack.callback(self._outputs.close)
            stack.callback(self._stream.close)
            heard: Callable[[Sound], None] | None = None
            self._listener: Listener | None = None
            if self._recogniser is not None:
                self._listener = Listener(self._recogniser, self._stream, self._news.report)
                stack.callback(self._listener.stop)
                heard = self._listener.hear
            for source in self.sources:
                stack.callback(source.stop)
                source.start(self._stream, self._news.report, heard)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def stream(self) -> Stream:
        """Where the sources push. Whoever else has something, words for instance, may push it, too."""
        return self._stream

    def statistics(self) -> StreamStatistics | None:
        """As :meth:`affectrt.stream.Stream.statistics`."""
        return self._stream.statistics()

    def results(self, seconds: float | None = None) -> Iterator[Affect | Event]:
        """Results as they come, after they have gone to the outputs; and every event as soon as it is known.

        Each result carries the events since the one before, too. Ends after ``seconds``, or when all sources
        are over.
        """
        end_at = None if seconds is None else perf_counter() + seconds
        while not all(source.state == "over" for source in self.sources):
            if end_at is not None and perf_counter() >= end_at:
                break
            yield from self._pass_on(self._stream.poll())
            sleep(POLL_S)
        for source in self.sources:
            source.stop()
        if self._listener is not None:
            self._listener.stop()
        yield from self._pass_on(self._stream.flush())

    def _pass_on(self, affects: Sequence[Affect]) -> Iterator[Affect | Event]:
        for affect in affects:
            yield from affect.events
            yield from self._news.tell()
            complete = self._news.attach(affect)
            self._outputs.send(complete)
            yield complete
        yield from self._news.tell()


class Replay:
    """A recording as if it were live: its results at their times, to the same outputs."""

    sources: tuple[Source, ...] = ()

    def __init__(self, path: Path, outputs: Sequence[Output] = ()) -> None:
        """Raises ``recording.unreadable`` and ``recording.malformed``."""
        self._affects = list(read_recording(path))
        if not self._affects:
            raise AffectError("recording.malformed", f"recording {path}: expected results, found none")
        opened_at = perf_counter()
        self._news = _News(lambda: perf_counter() - opened_at)
        self._outputs = FanOut(outputs, self._news.report)

    def __enter__(self) -> Replay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outputs.close()

    def statistics(self) -> StreamStatistics | None:
        """None: nothing is computed."""
        return None

    def results(self, seconds: float | None = None) -> Iterator[Affect | Event]:
        """As :meth:`Live.results`."""
        started_at = perf_counter()
        first_s = self._affects[0].time_s
        for affect in self._affects:
            due_s = affect.time_s - first_s
            if seconds is not None and due_s > seconds:
                return
            sleep(max(0.0, started_at + due_s - perf_counter()))
            yield from affect.events
            self._outputs.send(affect)
            yield affect
            yield from self._news.tell()
