"""What one person said, sounded like and looked like lately, and what a window of it amounts to.

A :class:`Timeline` keeps the state between captures and windows: words, log-mel rows, face rows. Presence is
decided here, for live and offline use alike:

* text is present when a word ended in the window;
* audio is present when enough of the window is voiced (:class:`affectrt.features.audio.AudioFeatures`);
* vision is present when a face was seen in the last ``face_hold_s`` of the window: who has turned away since
  is not looked at any more;
* rows that an application pushes itself take the place of its modality's extractor.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from affectrt.affect import MODALITIES, Modality
from affectrt.encoders import Encoders
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word
from affectrt.profiling import StageTimer

if TYPE_CHECKING:
    from affectrt.features.audio import AudioFeatures
    from affectrt.features.vision import VisionFeatures

Sequences = Mapping[Modality, FeatureSequence]

DISORDER_S = 1.0
"""Inputs may come this much after later ones, of their own modality or of another, and still count."""

FACE_HOLD_S = 1.0
"""How long a face counts after it was last seen: bridges blinks of the detector, not an empty chair."""


class Intake(Protocol):
    """What takes the inputs of one person in, in order of time up to :data:`DISORDER_S`."""

    def push_word(self, word: Word) -> None:
        """Take a word. Raises as :attr:`Encoders.text` does."""
        ...

    def push_audio(self, pcm: npt.ArrayLike, sample_rate_hz: int, start_s: float) -> None:
        """Take samples. Raises as :meth:`affectrt.features.log_mel.TimedLogMel.push`."""
        ...

    def end_audio(self) -> None:
        """At the end of the sound: take in what the resampler still holds back."""
        ...

    def push_frame(self, frame: npt.NDArray[np.uint8], time_s: float) -> None:
        """Take a video frame. Raises as :meth:`VisionFeatures.push_frame`."""
        ...

    def push_features(self, sequence: FeatureSequence) -> None:
        """Take rows of an application's own extractor; from now on they stand for their modality.

        Raises ``features.dim`` and ``model.no_modality`` when the model has other features and
        ``features.times`` when the rows begin more than :data:`DISORDER_S` before the newest ones.
        """
        ...


class PushedRows:
    """The rows that an application made itself, in order of time."""

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders
        self._rows: dict[Modality, FeatureSequence] = {}
        self._newest_s: dict[Modality, float] = {}

    def __contains__(self, modality: Modality) -> bool:
        return modality in self._rows

    def push(self, sequence: FeatureSequence) -> None:
        """As :meth:`Intake.push_features`."""
        self._encoders.check_rows(sequence)
        if not len(sequence):
            return
        modality, start_s = sequence.modality, float(sequence.times_s[0])
        newest_s = self._newest_s.get(modality, start_s)
        if start_s < newest_s - DISORDER_S:
            raise AffectError(
                "features.times",
                f"{modality} features: rows of {start_s:.3f} s came after those up to {newest_s:.3f} s; push "
                f"rows in time order",
            )
        self._newest_s[modality] = max(newest_s, float(sequence.times_s[-1]))
        before = self._rows.get(modality)
        if before is not None and len(before):
            times_s = np.concatenate([before.times_s, sequence.times_s])
            order = np.argsort(times_s, kind="stable")
            values = np.concatenate([before.values, sequence.values])
            sequence = FeatureSequence(modality, values[order], times_s[order], sequence.source)
        self._rows[modality] = sequence

    def between(self, modality: Modality, start_s: float, end_s: float) -> FeatureSequence:
        """Those with ``start_s < time <= end_s``."""
        return self._rows[modality].between(start_s, end_s)

    def forget(self, modality: Modality, time_s: float) -> None:
        """Those up to ``time_s``."""
        self._rows[modality] = self._rows[modality].between(time_s, inf)


class Timeline:
    """What windows are taken from. One object per stream; not to be shared between threads."""

    def __init__(
        self,
        encoders: Encoders,
        *,
        window_s: float,
        keep_s: float,
        face_hold_s: float = FACE_HOLD_S,
        timer: StageTimer | None = None,
    ) -> None:
        """``keep_s``: how far back from the newest row windows may reach; older rows are dropped."""
        self._encoders = encoders
        self._window_s = window_s
        self._keep_s = keep_s
        self._face_hold_s = face_hold_s
        self._timer = timer or StageTimer.off()
        self._audio: AudioFeatures | None = None
        self._vision: VisionFeatures | None = None
        self._words: list[Word] = []
        self._pushed = PushedRows(encoders)
        self._encoded: tuple[list[Word], FeatureSequence] | None = None
        self._newest_s = -inf

    @property
    def newest_s(self) -> float:
        """The newest time of any modality; minus infinity before the first input."""
        return self._newest_s

    def push_word(self, word: Word) -> None:
        """As :class:`Intake`; words may come in any order."""
        _ = self._encoders.text  # a word that was kept would fail every window that it is in
        insort(self._words, word, key=lambda w: w.end_s)
        self._advance(word.end_s)
        del self._words[: bisect_right(self._words, self._newest_s - self._keep_s, key=lambda w: w.end_s)]

    def push_audio(self, pcm: npt.ArrayLike, sample_rate_hz: int, start_s: float) -> None:
        """As :class:`Intake`."""
        with self._timer.stage("audio features"):
            if self._audio is None:
                self._audio = self._encoders.new_audio(self._keep_s)
            self._audio.push_audio(pcm, sample_rate_hz, start_s)
        self._advance(start_s + len(np.asarray(pcm)) / sample_rate_hz)

    def end_audio(self) -> None:
        """As :class:`Intake`."""
        if self._audio is not None:
            self._audio.flush()

    def push_frame(self, frame: npt.NDArray[np.uint8], time_s: float) -> None:
        """As :class:`Intake`."""
        with self._timer.stage("face tracking"):
            if self._vision is None:
                self._vision = self._encoders.new_vision(self._keep_s)
            self._vision.push_frame(frame, time_s)
        self._advance(time_s)

    def push_features(self, sequence: FeatureSequence) -> None:
        """As :class:`Intake`."""
        self._pushed.push(sequence)
        if len(sequence):
            self._advance(float(sequence.times_s[-1]))
            self._pushed.forget(sequence.modality, self._newest_s - self._keep_s)

    def at(self, time_s: float) -> dict[Modality, FeatureSequence]:
        """The features of the window ``(time_s - window_s, time_s]``; absent modalities have no rows."""
        return self.window(time_s - self._window_s, time_s)

    def window(self, start_s: float, end_s: float) -> dict[Modality, FeatureSequence]:
        """The features of ``start_s < time <= end_s``; absent modalities have no rows."""
        extract = {"text": self._text, "audio": self._sound, "vision": self._faces}
        sequences: dict[Modality, FeatureSequence] = {}
        for modality in MODALITIES:
            if modality in self._pushed:
                sequence = self._pushed.between(modality, start_s, end_s)
            else:
                sequence = extract[modality](start_s, end_s)
            if modality == "vision" and len(sequence) and sequence.times_s[-1] < end_s - self._face_hold_s:
                sequence = FeatureSequence.empty(modality, sequence.dim, sequence.source)
            sequences[modality] = sequence
        return sequences

    def _text(self, start_s: float, end_s: float) -> FeatureSequence:
        first, last = (bisect_right(self._words, t, key=lambda w: w.end_s) for t in (start_s, end_s))
        words = self._words[first:last]
        if not words:
            return FeatureSequence.empty("text", self._encoders.dim("text"), "text encoder")
        if self._encoded is None or self._encoded[0] != words:
            with self._timer.stage("text encoder"):
                self._encoded = (words, self._encoders.text.extract(words))
        return self._encoded[1]

    def _sound(self, start_s: float, end_s: float) -> FeatureSequence:
        if self._audio is None:
            return FeatureSequence.empty("audio", self._encoders.dim("audio"))
        with self._timer.stage("audio encoder"):
            return self._audio.window(start_s, end_s)

    def _faces(self, start_s: float, end_s: float) -> FeatureSequence:
        if self._vision is None:
            return FeatureSequence.empty("vision", self._encoders.dim("vision"))
        with self._timer.stage("face encoder"):
            return self._vision.window(start_s, end_s)

    def _advance(self, time_s: float) -> None:
        self._newest_s = max(self._newest_s, time_s)
