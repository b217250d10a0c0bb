"""The thread of a stream: takes inputs from one queue, runs the core, hands out results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from affectrt.affect import Affect, Event
from affectrt.profiling import StageTimer
from affectrt.streaming.clock import Clock
from affectrt.streaming.core import StreamCore
from affectrt.streaming.inputs import Input
from affectrt.streaming.queues import Command, Inbox, Loss, Losses, Outbox
from affectrt.streaming.statistics import Recent, StreamStatistics
from affectrt.timeline import DISORDER_S

BEHIND_S = 0.5
"""Live results that are overdue by more than this are left out when newer ones are due, too."""

AHEAD_S = 2.0 * DISORDER_S
"""Live input whose own time lies further ahead of the stream's clock is refused."""

_JOIN_S = 5.0
_BOUNDS = {
    "audio": ("dropped_audio", "pieces of sound", "the machine is too slow for the model"),
    "frames": ("dropped_frames", "pictures", "newer ones took their place"),
    "words": ("dropped_words", "words", "too many were pushed at once"),
    "features": ("dropped_features", "pieces of rows", "too many were pushed at once"),
    "unread": ("dropped_results", "results", "nobody read them; read them or pass on_result"),
    "overdue": ("dropped_results", "results", "the machine is too slow for them; choose a longer hop_s"),
}
"""What went → code of its event, what it is, why it went."""


class Worker:
    """Everything of a stream that its thread needs. It knows nothing of the stream, so that a stream that
    nobody holds any more can go."""

    def __init__(
        self,
        new_core: Callable[[StageTimer], StreamCore],
        on_result: Callable[[Affect], object] | None,
    ) -> None:
        """Start the thread. Raises as ``new_core``."""
        self.inbox = Inbox()
        self.outbox = Outbox()
        self.clock = Clock()
        self._timer = StageTimer()
        self._recent = Recent(self._timer)
        self._losses = Losses()
        self._new_core = new_core
        self._core = new_core(self._timer)
        self._on_result = on_result
        self._thread = threading.Thread(target=self._run, name="affectrt stream", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether this is asked in its thread: by a callback."""
        return threading.current_thread() is self._thread

    def statistics(self) -> StreamStatistics:
        """As of now."""
        dropped_results = sum(self._losses.total.values())
        return self._recent.statistics(self.inbox.pushed, self.inbox.dropped, dropped_results)

    def stop(self) -> None:
        """End the thread; returns when what it was computing is computed, or after five seconds."""
        self.inbox.close()
        self.outbox.close()
        if not self.is_current:
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self.inbox.closed:
            try:
                self._step()
            except Exception as error:  # of a library, or a defect: the stream outlives it and says so
                at_s = self._core.next_tick_s or 0.0
                self._core.report(at_s, "stream.failed", f"stream: {error!r}; this is a defect")

    def _step(self) -> None:
        """Take in what comes until the next tick; then compute it."""
        tick_s = self._core.next_tick_s if self.clock.live else None
        tick_at = None if tick_s is None else self.clock.opened_at + tick_s
        pushed = self.inbox.take(tick_at, arrived_by=tick_at)
        self._tell(self.inbox.losses())
        self._tell(self._losses.due())
        if isinstance(pushed, Command):
            self._obey(pushed)
        elif not pushed:
            self._give(self._by_the_clock())
        elif not self.clock.live:
            self._give(self._core.take(pushed))
        else:
            for item in pushed:
                self._take_in(item)

    def _take_in(self, item: Input) -> None:
        """Of a live stream, unless its time is another clock's."""
        now_s = self.clock.now_s()
        if not item.timed or item.start_s <= now_s + AHEAD_S:
            self._core.take_in(item, item.arrived_at - self.clock.opened_at)
            return
        self._core.report(
            now_s,
            "stream.time",
            f"stream: {item.modality} of {item.start_s:.2f} s came at {now_s:.2f} s on the stream's clock; "
            f"give times on that clock, or to all inputs, or to none",
            about=item.modality,
        )

    def _by_the_clock(self) -> Iterable[Affect]:
        """What is due now."""
        now_s = self.clock.now_s()
        tick_s = self._core.next_tick_s
        if tick_s is not None and now_s - tick_s > BEHIND_S and (skipped := self._core.skip_to(now_s)):
            self._losses.add("overdue", tick_s, now_s, skipped)
        return self._core.advance(now_s)

    def _obey(self, command: Command) -> None:
        try:
            if command.name == "flush":
                if self.clock.live:
                    self._give(self._by_the_clock())
                self._tell(self.inbox.losses(all_of_it=True))
                self._tell(self._losses.due(all_of_it=True))
                self._give(self._core.flush())
            else:
                self._core = self._new_core(self._timer)
                self.outbox.take_all()
        finally:
            command.done.set()

    def _give(self, results: Iterable[Affect]) -> None:
        for affect in results:
            self._recent.add(affect)
            if self._on_result is not None:
                try:
                    self._on_result(affect)
                except (Exception, SystemExit) as error:  # the application's; it must not end the stream
                    self._core.report(
                        affect.time_s, "stream.callback", f"stream: on_result raised {error!r}; mend it"
                    )
            elif (lost := self.outbox.put(affect)) is not None:
                self._losses.add("unread", lost.time_s, lost.time_s)
            if self.inbox.closed:
                return

    def _tell(self, losses: dict[str, Loss]) -> None:
        for kind, loss in losses.items():
            code, what, why = _BOUNDS[kind]
            message = (
                f"stream: {loss.count} {what} of {loss.start_s:.2f} to {loss.end_s:.2f} s were dropped: {why}"
            )
            self._core.tell(Event(loss.end_s, code, message))
