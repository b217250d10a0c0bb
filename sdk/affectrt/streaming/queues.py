"""Between threads: what waits for a stream's worker, and what it has made. Both are bounded and never block
who fills them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Literal

from affectrt.affect import Affect
from affectrt.streaming.inputs import KINDS, Input, Kind

MAX_BYTES: dict[Kind, int] = {
    "audio": 8 * 2**20,
    "frames": 128 * 2**20,
    "words": 2 * 2**20,
    "features": 64 * 2**20,
}
"""What may wait of each kind; beyond it the oldest go. Of sound, two minutes at 16 kHz."""

MAX_LIVE_FRAMES_S = 0.3
"""Pictures that wait longer behind newer ones show what is over: the newest win."""

MAX_RESULTS = 3000
"""Results that may wait for a reader: five minutes at 10 Hz."""


@dataclass(frozen=True)
class Loss:
    """Something of one kind had to go."""

    count: int
    start_s: float
    """Stream time of the first of it."""
    end_s: float
    """Stream time of the last of it."""


class Losses:
    """Adds up what went, kind by kind, until it is told."""

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        """Everything that ever went."""
        self._untold: dict[str, Loss] = {}
        self._told_at: dict[str, float] = {}

    def add(self, kind: str, start_s: float, end_s: float, count: int = 1) -> None:
        """Something went."""
        self.total[kind] = self.total.get(kind, 0) + count
        loss = self._untold.get(kind, Loss(0, start_s, end_s))
        span_s = min(loss.start_s, start_s), max(loss.end_s, end_s)
        self._untold[kind] = Loss(loss.count + count, *span_s)

    def due(self, *, all_of_it: bool = False) -> dict[str, Loss]:
        """What went and is to be told now: each kind once in a second, unless ``all_of_it`` is wanted."""
        now = perf_counter()
        kinds = [k for k in self._untold if all_of_it or now - self._told_at.get(k, 0.0) >= 1.0]
        self._told_at.update(dict.fromkeys(kinds, now))
        return {kind: self._untold.pop(kind) for kind in kinds}


@dataclass(frozen=True)
class Command:
    """Something for the worker to do once it has taken in all that was pushed before."""

    name: Literal["flush", "reset"]
    done: threading.Event = field(default_factory=threading.Event)


class Inbox:
    """What was pushed, in the order of pushing, with a bound for each kind."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = count()
        self._waiting: dict[Kind, deque[tuple[int, Input]]] = {kind: deque() for kind in KINDS}
        self._bytes: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._commands: deque[tuple[int, Command]] = deque()
        self._losses = Losses()
        self.pushed: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """How many came; sound and rows are counted in pieces of up to a second."""
        self.closed = False

    @property
    def dropped(self) -> dict[Kind, int]:
        """How many of them had to go."""
        return {kind: self._losses.total.get(kind, 0) for kind in KINDS}

    def put(self, items: Sequence[Input], *, live: bool) -> None:
        """Leave the inputs of one push to the worker; ``live`` ones lose their worth as they wait."""
        with self._changed:
            if self.closed:
                return
            number = next(self._numbers)
            for item in items:
                kind = item.kind
                self._waiting[kind].append((number, item))
                self._bytes[kind] += item.size_bytes
                self.pushed[kind] += 1
                while len(self._waiting[kind]) > 1 and self._too_much(kind, live):
                    _, lost = self._waiting[kind].popleft()
                    self._bytes[kind] -= lost.size_bytes
                    self._losses.add(kind, lost.start_s, lost.end_s)
            self._changed.notify()

    def _too_much(self, kind: Kind, live: bool) -> bool:
        if self._bytes[kind] > MAX_BYTES[kind]:
            return True
        oldest, newest = self._waiting[kind][0][1], self._waiting[kind][-1][1]
        return kind == "frames" and live and newest.start_s - oldest.start_s > MAX_LIVE_FRAMES_S

    def command(self, command: Command, *, clear: bool = False) -> None:
        """Leave a command; ``clear`` forgets what was pushed before."""
        with self._changed:
            if self.closed:
                command.done.set()
                return
            if clear:
                self._clear()
            self._commands.append((next(self._numbers), command))
            self._changed.notify()

    def take(self, until: float | None, arrived_by: float | None = None) -> list[Input] | Command:
        """The oldest push, or command; no inputs when nothing comes until then, or when it is closed.

        ``until`` is a moment as :func:`time.perf_counter` tells it, None for ever;
        ``arrived_by``: leave what arrived later.
        """
        with self._changed:
            while not self.closed:
                oldest = min((queue for queue in self._waiting.values() if queue), key=_number, default=None)
                if self._commands and (oldest is None or self._commands[0][0] < oldest[0][0]):
                    return self._commands.popleft()[1]
                if oldest is not None:
                    if arrived_by is not None and oldest[0][1].arrived_at > arrived_by:
                        break
                    number, items = oldest[0][0], []
                    while oldest and oldest[0][0] == number:
                        items.append(oldest.popleft()[1])
                        self._bytes[items[-1].kind] -= items[-1].size_bytes
                    return items
                left_s = None if until is None else until - perf_counter()
                if left_s is not None and left_s <= 0.0:
                    break
                # A clock far ahead makes a wait that the operating system can't express.
                self._changed.wait(None if left_s is None else min(left_s, threading.TIMEOUT_MAX))
            return []

    def losses(self, *, all_of_it: bool = False) -> dict[str, Loss]:
        """As :meth:`Losses.due`."""
        with self._changed:
            return self._losses.due(all_of_it=all_of_it)

    def close(self) -> None:
        """The end: nothing waits any more, and nobody for anything."""
        with self._changed:
            self.closed = True
            self._clear()
            self._changed.notify_all()

    def _clear(self) -> None:
        for queue in self._waiting.values():
            queue.clear()
        self._bytes = dict.fromkeys(KINDS, 0)
        while self._commands:
            self._commands.popleft()[1].done.set()


def _number(queue: deque[tuple[int, Input]]) -> int:
    return queue[0][0]


class Outbox:
    """Results that wait for a reader; the oldest go when nobody reads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._results: deque[Affect] = deque()
        self._wakers: list[Callable[[], object]] = []
        self._closed = False

    def put(self, affect: Affect) -> Affect | None:
        """Add one; the one that had to go for it, if any."""
        with self._changed:
            if self._closed:
                return None
            self._results.append(affect)
            lost = self._results.popleft() if len(self._results) > MAX_RESULTS else None
            self._wake()
        return lost

    def take_all(self) -> list[Affect]:
        """What there is."""
        with self._changed:
            results = list(self._results)
            self._results.clear()
        return results

    def take(self) -> Affect | None:
        """The next one, once it is there; None when it is closed."""
        with self._changed:
            while not (self._results or self._closed):
                self._changed.wait()
            return self._results.popleft() if self._results else None

    def take_or_call(self, wake: Callable[[], object]) -> Affect | None:
        """The next one, or None and ``wake`` is called, by another thread, once it is worth asking again."""
        with self._changed:
            if self._results:
                return self._results.popleft()
            if not self._closed:
                self._wakers.append(wake)
        return None

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more."""
        return self._closed

    def close(self) -> None:
        """Forget what there is; who waits is told."""
        with self._changed:
            self._closed = True
            self._results.clear()
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()
