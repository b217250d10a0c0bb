"""Where the time goes, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter

_NOTHING: AbstractContextManager[None] = nullcontext()


class StageTimer:
    """Adds up the wall time of named stages: ``with timer.stage("decode"): …``.

    Stages may nest: the time of an inner stage counts for the inner one alone, so the stages never add up to
    more than the time that passed. One timer belongs to one stream and is used by one thread at a time.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.seconds: dict[str, float] = {}
        """Wall time per stage, in order of first use."""
        self.calls: dict[str, int] = {}
        """How often each stage was entered."""
        self._inner_s: list[float] = []

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A context whose time is added to ``name``; a shared no-op when the timer is off."""
        return self._timed(name) if self.enabled else _NOTHING

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        self.seconds.setdefault(name, 0.0)
        self._inner_s.append(0.0)
        start = perf_counter()
        try:
            yield
        finally:
            elapsed = perf_counter() - start
            self.seconds[name] += elapsed - self._inner_s.pop()
            self.calls[name] = self.calls.get(name, 0) + 1
            if self._inner_s:
                self._inner_s[-1] += elapsed

    @classmethod
    def off(cls) -> StageTimer:
        """A timer that measures nothing."""
        return cls(enabled=False)
