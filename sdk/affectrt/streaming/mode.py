"""How a stream's results are computed: over windows, whatever the model.

A :class:`Mode` is all that :class:`~affectrt.streaming.core.StreamCore` knows of it: inputs go into its
timeline, and at a tick a result comes out. :mod:`affectrt.streaming.incremental` is the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from affectrt.affect import Affect, Modality
from affectrt.profiling import StageTimer
from affectrt.timeline import Intake, Timeline

if TYPE_CHECKING:
    from affectrt.model import Model


StreamMode = Literal["window", "incremental"]
"""How a stream computes; see :meth:`affectrt.model.Model.stream`."""


class Mode(Protocol):
    """Inputs → results. One object per person, asked in order of time."""

    @property
    def timeline(self) -> Intake:
        """Where inputs go."""
        ...

    @property
    def keep_s(self) -> float:
        """How far behind the newest input a word still counts."""
        ...

    def due_s(self, newest_s: float, delivered_s: Mapping[Modality, float]) -> float:
        """Up to when results of a recording are due, given the newest time of all and of each modality."""
        ...

    def follow(self, time_s: float) -> None:
        """No result up to ``time_s`` will be asked for any more: what has come may be worked off."""
        ...

    def skip(self, time_s: float) -> None:
        """Time is short: go on at ``time_s`` at once."""
        ...

    def result(self, time_s: float, captured_at: float) -> Affect:
        """The result at ``time_s``; ``captured_at`` as for :meth:`affectrt.model.Model.fuse`."""
        ...


class WindowMode:
    """Any model, computed anew at each tick over the seconds before it."""

    def __init__(self, model: Model, window_s: float, keep_s: float, timer: StageTimer) -> None:
        """``keep_s``: how far back from the newest input windows may reach."""
        self._model = model
        self._timer = timer
        self.keep_s = keep_s
        self.timeline = Timeline(model.encoders, window_s=window_s, keep_s=keep_s, timer=timer)

    def due_s(self, newest_s: float, delivered_s: Mapping[Modality, float]) -> float:
        """As :class:`Mode`: all of them. What comes after later inputs still counts in the next windows."""
        return newest_s

    def follow(self, time_s: float) -> None:
        """As :class:`Mode`: nothing is computed between results."""

    def skip(self, time_s: float) -> None:
        """As :class:`Mode`: every result is computed anew."""

    def result(self, time_s: float, captured_at: float) -> Affect:
        """As :class:`Mode`. Raises as :meth:`affectrt.model.Model.fuse`."""
        sequences = self.timeline.at(time_s)
        with self._timer.stage("fusion"):
            return self._model.fuse(sequences, time_s, captured_at)
