"""What all sources share: a thread, a state that is told, and that they come back after they were lost."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from affectrt.errors import AffectError
from affectrt.features.text import Word
from affectrt.stream import Stream

FIRST_PAUSE_S = 0.5
"""After a device was lost it is tried again after so long …"""
LONGEST_PAUSE_S = 8.0
"""… then after twice as long each time, but never longer than this."""

_JOIN_S = 12.0
"""OpenCV waits ten seconds for a camera that was unplugged."""

State = Literal["off", "waiting", "on", "lost", "over"]
"""Not started or stopped; started, nothing has come yet; delivering; tried again; nothing more will come."""

Report = Callable[[str, str], None]
"""Takes a code and a message: what becomes an :class:`~affectrt.affect.Event`."""


@dataclass(frozen=True)
class Sound:
    """Consecutive samples."""

    pcm: npt.NDArray[np.float32]
    """(N,) or (N, channels) in ±1."""
    sample_rate_hz: int
    """Samples per second."""
    start_s: float | None = None
    """Time of the first one; None: they were captured just now."""


@dataclass(frozen=True)
class Picture:
    """One frame."""

    bgr: npt.NDArray[np.uint8]
    """(H, W, 3), or grey (H, W)."""
    time_s: float | None = None
    """When it was captured; None: just now."""


Piece = Sound | Picture | Word | None
"""What a source delivers; None: nothing yet, but the device is there."""


class Source(Protocol):
    """Something that pushes into a stream from a thread of its own."""

    @property
    def name(self) -> str:
        """For people: ``camera 0``."""

    @property
    def state(self) -> State:
        """As of now."""

    def start(self, stream: Stream, report: Report, heard: Callable[[Sound], None] | None = None) -> None:
        """Begin; returns at once. ``heard`` is given all sound as well.

        Raises what can't mend itself: ``extra.missing``, a file that isn't there.
        """

    def stop(self) -> None:
        """End, and let go of the device. Stopping again does nothing."""


class Capture(ABC):
    """A :class:`Source` made of :meth:`pieces`.

    When these fail, ``source.lost`` is reported and they are asked for anew, until something comes and
    ``source.back`` is reported. When they end, so does the source.
    """

    returns = True
    """Whether it is worth trying again after a failure."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: State = "off"
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._refused = ""

    def check(self) -> None:
        """Raise what can't mend itself, before the thread starts."""
        return

    @abstractmethod
    def pieces(self) -> Generator[Piece, None, None]:
        """Open the device and deliver; a ``finally`` closes it.

        Yields at least once a second, so that it can be stopped. Raises ``source.lost`` with the reason.
        """

    def start(self, stream: Stream, report: Report, heard: Callable[[Sound], None] | None = None) -> None:
        """As :meth:`Source.start`."""
        self.check()
        self.state = "waiting"
        self._thread = threading.Thread(
            target=self._run, args=(stream, report, heard), name=f"affectrt {self.name}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """As :meth:`Source.stop`."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            self._thread = None
        self.state = "off"

    def wait(self, seconds: float) -> bool:
        """Sleep, for :meth:`pieces`; True at once when the source was stopped."""
        return self._stopped.wait(seconds)

    def _run(self, stream: Stream, report: Report, heard: Callable[[Sound], None] | None) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopped.is_set():
            try:
                with closing(self.pieces()) as pieces:
                    for piece in pieces:
                        if self._stopped.is_set():
                            return
                        if piece is None:
                            continue
                        if self.state == "lost":
                            report("source.back", f"{self.name}: it is back")
                        self.state, pause_s = "on", FIRST_PAUSE_S
                        self._push(stream, report, heard, piece)
                self.state = "over"
                return
            except AffectError as error:
                if error.code == "stream.closed":
                    return
                why = error.message
            except Exception as error:  # of a device's library: the stream goes on with what is left
                why = repr(error)
            if not self.returns:
                report("source.lost", f"{self.name}: {why}; the rest of it is left out")
                self.state = "over"
                return
            if self.state != "lost":
                report("source.lost", f"{self.name}: {why}; the stream goes on, it is tried again and again")
                self.state = "lost"
            self.wait(pause_s)
            pause_s = min(2.0 * pause_s, LONGEST_PAUSE_S)

    def _push(
        self, stream: Stream, report: Report, heard: Callable[[Sound], None] | None, piece: Piece
    ) -> None:
        """A refused piece is told once, not thirty times a second; the next may be better."""
        try:
            if isinstance(piece, Sound):
                stream.push_audio(piece.pcm, piece.sample_rate_hz, piece.start_s)
                if heard is not None:
                    heard(piece)
            elif isinstance(piece, Picture):
                stream.push_frame(piece.bgr, piece.time_s)
            elif isinstance(piece, Word):
                stream.push_word(piece)
        except AffectError as error:
            if error.code == "stream.closed":
                raise
            if error.code != self._refused:
                report(error.code, f"{self.name}: {error.message}")
            self._refused = error.code
        else:
            self._refused = ""


def lost(why: str) -> AffectError:
    """The error that :meth:`Capture.pieces` raises."""
    return AffectError("source.lost", why)
