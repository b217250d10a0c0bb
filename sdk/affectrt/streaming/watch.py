"""Notices who has stopped delivering, and that nobody speaks any more."""

from __future__ import annotations

from collections.abc import Iterator

from affectrt.affect import Affect, Event, Modality

LOST_S = 2.0
"""Sound or pictures that came before and have not for so long are lost: a device was unplugged."""

SILENT_S = 3.0
"""The speaker is silent once words and voice have been absent from results for so long."""

STATES = ("modality_lost", "modality_back", "speaker_silent")
"""The codes of its events: they tell of people and devices, not of faults."""


class Watch:
    """Of one person's stream, in stream time."""

    def __init__(self) -> None:
        self._newest_s: dict[Modality, float] = {}
        self._lost: set[Modality] = set()
        self._heard_s: float | None = None
        self._silent = False

    def delivered(self, modality: Modality, end_s: float) -> Iterator[Event]:
        """Input of a modality up to ``end_s`` has come."""
        self._newest_s[modality] = max(self._newest_s.get(modality, end_s), end_s)
        if modality in self._lost:
            self._lost.discard(modality)
            yield Event(end_s, "modality_back", f"stream: {modality} is back")

    def told(self, affect: Affect) -> Iterator[Event]:
        """A result has been computed."""
        now_s = affect.time_s
        for modality, newest_s in self._newest_s.items():
            # Words come when somebody speaks; that they don't is what speaker_silent tells.
            if modality != "text" and modality not in self._lost and now_s - newest_s > LOST_S:
                self._lost.add(modality)
                yield Event(
                    now_s,
                    "modality_lost",
                    f"stream: {modality} came until {newest_s:.2f} s and has not since; check its device",
                )
        if not self._newest_s.keys() & {"text", "audio"}:
            return
        if self._heard_s is None or affect.present & {"text", "audio"}:
            self._heard_s, self._silent = now_s, False
        elif not self._silent and now_s - self._heard_s >= SILENT_S:
            self._silent = True
            yield Event(now_s, "speaker_silent", f"stream: no words and no voice since {self._heard_s:.2f} s")
