"""What a stream has done so far, and how long it took lately."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from affectrt.affect import Affect
from affectrt.profiling import StageTimer
from affectrt.streaming.inputs import Kind

RECENT = 3000
"""Times are those of so many results at most."""


@dataclass(frozen=True)
class Quantiles:
    """Of recent times, in milliseconds."""

    p50_ms: float
    """Median."""
    p95_ms: float
    p99_ms: float
    count: int
    """How many they are of."""


@dataclass(frozen=True)
class StreamStatistics:
    """Since the stream was made; times of the last few thousand results."""

    pushed: Mapping[Kind, int]
    """Inputs that came: frames the model looks at, words, pieces of sound and of rows."""
    dropped: Mapping[Kind, int]
    """Inputs that had to go because the stream fell behind."""
    results: int
    """Results that were computed."""
    dropped_results: int
    """Results that nobody read in time or that weren't computed because they were overdue."""
    events: int
    """Events that results carried."""
    latency: Quantiles | None
    """From the capture of the newest input to the result; None before the first one."""
    stages: Mapping[str, Quantiles]
    """Stage → time it took per result, of those in which it ran."""


class Recent:
    """Collects the numbers, in the worker, for whoever asks. Of fixed size."""

    def __init__(self, timer: StageTimer) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._latencies_ms: deque[float] = deque(maxlen=RECENT)
        self._stages_ms: dict[str, deque[float]] = {}
        self._before_s: dict[str, float] = {}
        self._results = 0
        self._events = 0

    def add(self, affect: Affect) -> None:
        """One more result."""
        with self._lock:
            self._results += 1
            self._events += len(affect.events)
            self._latencies_ms.append(affect.latency_ms)
            for name, seconds in self._timer.seconds.items():
                took_s = seconds - self._before_s.get(name, 0.0)
                if took_s > 0.0:
                    self._stages_ms.setdefault(name, deque(maxlen=RECENT)).append(took_s * 1e3)
                    self._before_s[name] = seconds

    def statistics(
        self, pushed: Mapping[Kind, int], dropped: Mapping[Kind, int], dropped_results: int
    ) -> StreamStatistics:
        """With the counts that others keep."""
        with self._lock:
            return StreamStatistics(
                pushed=dict(pushed),
                dropped=dict(dropped),
                results=self._results,
                dropped_results=dropped_results,
                events=self._events,
                latency=quantiles(self._latencies_ms) if self._latencies_ms else None,
                stages={name: quantiles(times) for name, times in self._stages_ms.items()},
            )


def quantiles(times_ms: Iterable[float]) -> Quantiles:
    """Of at least one time."""
    times = np.fromiter(times_ms, np.float64)
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    return Quantiles(p50, p95, p99, len(times))
