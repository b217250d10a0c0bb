"""How a stream's results are computed: over windows, whatever the model.

A :class:`Mode` is all that :class:`~affectrt.streaming.core.StreamCore` knows of it: what the timeline holds
at a tick goes in, a result comes out. A causal model, which carries its state from tick to tick, will be
another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from affectrt.affect import Affect
from affectrt.profiling import StageTimer
from affectrt.timeline import Timeline

if TYPE_CHECKING:
    from affectrt.model import Model


class Mode(Protocol):
    """The features at a tick → its result. One object per person, asked in order of time."""

    @property
    def reach_s(self) -> float:
        """How far back from a tick it looks."""
        ...

    def result(self, timeline: Timeline, time_s: float, captured_at: float) -> Affect:
        """The result at ``time_s``; ``captured_at`` as for :meth:`affectrt.model.Model.fuse`."""
        ...


class WindowMode:
    """Any model, computed anew at each tick over the seconds before it."""

    def __init__(self, model: Model, window_s: float, timer: StageTimer) -> None:
        self._model = model
        self._window_s = window_s
        self._timer = timer

    @property
    def reach_s(self) -> float:
        """As :class:`Mode`."""
        return self._window_s

    def result(self, timeline: Timeline, time_s: float, captured_at: float) -> Affect:
        """As :class:`Mode`. Raises as :meth:`affectrt.model.Model.fuse`."""
        sequences = timeline.at(time_s)
        with self._timer.stage("fusion"):
            return self._model.fuse(sequences, time_s, captured_at)
