"""The one clock of a live stream: seconds since it was opened."""

from __future__ import annotations

from time import perf_counter

PAUSE_S = 0.5
"""Sound that comes this much later than the last one ended follows on a pause."""

_DRIFT_S = 0.1
_DRIFT_OVER_S = 5.0


class Clock:
    """Stamps what comes without a time of its own. Callers take turns."""

    def __init__(self) -> None:
        self.opened_at = perf_counter()
        """Its zero, as :func:`time.perf_counter` tells it."""
        self.restart()

    def restart(self) -> None:
        """Before the first input. Time goes on."""
        self.live = False
        """Whether anything came without a time: results then come by this clock."""
        self._audio_end_s: float | None = None
        self._lead_s = float("inf")
        self._lead_since_s = 0.0

    def now_s(self) -> float:
        """Stream time."""
        return perf_counter() - self.opened_at

    def stamp_s(self) -> float:
        """When a live input was captured: now."""
        self.live = True
        return self.now_s()

    def stamp_audio_s(self, length_s: float) -> float:
        """Where live samples begin: right after the last ones, unless the clock tells of a pause.

        A sound card's clock is never quite this one: where sound was ahead of its time all along, that much
        of it is let go, or after hours results would rest on none.
        """
        now_s = self.stamp_s()
        arrived_s = max(0.0, now_s - length_s)
        start_s = self._audio_end_s
        if start_s is None or arrived_s > start_s + PAUSE_S:
            start_s = arrived_s
            self._watch_lead(now_s)
        self._lead_s = min(self._lead_s, start_s - arrived_s)
        if now_s > self._lead_since_s + _DRIFT_OVER_S:
            if self._lead_s > _DRIFT_S:
                start_s -= self._lead_s
            self._watch_lead(now_s)
        self.heard_until(start_s + length_s)
        return start_s

    def heard_until(self, end_s: float) -> None:
        """Samples up to there have come, whoever stamped them."""
        self._audio_end_s = end_s

    def _watch_lead(self, now_s: float) -> None:
        self._lead_s, self._lead_since_s = float("inf"), now_s
