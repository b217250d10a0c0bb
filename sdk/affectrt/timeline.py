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
from typing import TYPE_CHECKING

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


class Timeline:
    """Per-person state of all modalities. One object per stream; not to be shared between threads."""

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
        self._rows: dict[Modality, FeatureSequence] = {}
        self._encoded: tuple[list[Word], FeatureSequence] | None = None
        self._newest_s = float("-inf")

    @property
    def newest_s(self) -> float:
        """The newest time of any modality; minus infinity before the first input."""
        return self._newest_s

    def push_word(self, word: Word) -> None:
        """Take a word; words may come in any order. Raises as :attr:`Encoders.text` does."""
        _ = self._encoders.text  # a word that was kept would fail every window that it is in
        insort(self._words, word, key=lambda w: w.end_s)
        self._advance(word.end_s)
        del self._words[: bisect_right(self._words, self._newest_s - self._keep_s, key=lambda w: w.end_s)]

    def push_audio(self, pcm: npt.ArrayLike, sample_rate_hz: int, start_s: float) -> None:
        """Take samples; raises as :meth:`AudioFeatures.push_audio`."""
        with self._timer.stage("audio features"):
            if self._audio is None:
                self._audio = self._encoders.new_audio(self._keep_s)
            self._audio.push_audio(pcm, sample_rate_hz, start_s)
        self._advance(start_s + len(np.asarray(pcm)) / sample_rate_hz)

    def end_audio(self) -> None:
        """At the end of the sound: take in what the resampler still holds back."""
        if self._audio is not None:
            self._audio.flush()

    def push_frame(self, frame: npt.NDArray[np.uint8], time_s: float) -> None:
        """Take a video frame; raises as :meth:`VisionFeatures.push_frame`."""
        with self._timer.stage("face tracking"):
            if self._vision is None:
                self._vision = self._encoders.new_vision(self._keep_s)
            self._vision.push_frame(frame, time_s)
        self._advance(time_s)

    def push_features(self, sequence: FeatureSequence) -> None:
        """Take rows of an application's own extractor; from now on they stand for their modality.

        Raises ``features.dim`` and ``model.no_modality`` when the model has other features and
        ``features.times`` when the rows begin more than :data:`DISORDER_S` before the newest ones.
        """
        self._encoders.check_rows(sequence)
        if not len(sequence):
            return
        before = self._rows.get(sequence.modality)
        if before is not None and len(before):
            newest_s, start_s = before.times_s[-1], sequence.times_s[0]
            if start_s < newest_s - DISORDER_S:
                raise AffectError(
                    "features.times",
                    f"{sequence.modality} features: rows of {start_s:.3f} s came after those up to "
                    f"{newest_s:.3f} s; push rows in time order",
                )
            times_s = np.concatenate([before.times_s, sequence.times_s])
            order = np.argsort(times_s, kind="stable")
            values = np.concatenate([before.values, sequence.values])
            sequence = FeatureSequence(sequence.modality, values[order], times_s[order], sequence.source)
        self._advance(float(sequence.times_s[-1]))
        self._rows[sequence.modality] = sequence.between(self._newest_s - self._keep_s, float("inf"))

    def at(self, time_s: float) -> dict[Modality, FeatureSequence]:
        """The features of the window ``(time_s - window_s, time_s]``; absent modalities have no rows."""
        return self.window(time_s - self._window_s, time_s)

    def window(self, start_s: float, end_s: float) -> dict[Modality, FeatureSequence]:
        """The features of ``start_s < time <= end_s``; absent modalities have no rows."""
        extract = {"text": self._text, "audio": self._sound, "vision": self._faces}
        sequences: dict[Modality, FeatureSequence] = {}
        for modality in MODALITIES:
            if modality in self._rows:
                sequence = self._rows[modality].between(start_s, end_s)
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
