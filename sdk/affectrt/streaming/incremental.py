"""Incremental streams: a causal model carries its state from tick to tick and computes nothing twice.

A word is read with those before it when it has been said, a state of the voice when its context has been
heard, a face when it was seen; each enters the model once, at the next tick, and no answer is ever revised.
So a tick costs the same after an hour as after a second, and the answers are those of the causal model on the
whole recording at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, inf
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from affectrt.affect import MODALITIES, Affect, Modality
from affectrt.backends import FloatArray
from affectrt.backends.causal import CausalFusion, CausalState
from affectrt.encoders import Encoders
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word
from affectrt.profiling import StageTimer
from affectrt.timeline import FACE_HOLD_S, PushedRows

if TYPE_CHECKING:
    from affectrt.features.causal_audio import CausalAudioFeatures
    from affectrt.features.vision import VisionFeatures
    from affectrt.model import Model

MAX_PAUSE_S = 600.0
"""After a longer time without results the model goes on from where it was, without the ticks in between."""

CONTEXT_S = 10.0
"""Words are read with those that ended so long before the tick at which they come, as far as the encoder
takes them."""

LATE_WORD_S = 60.0
"""Words that come later than this after they were said are refused."""

LARGEST = 1e15
"""Rows hold smaller numbers."""

PATIENCE_S = 1.5
"""Sound or pictures that lag more than this behind other inputs have stopped: results go on without them.
More than the longest piece that is taken in at once."""

_TIME_EPS = 1e-6


class CausalTimeline:
    """One person's inputs until they are given out, once each. Not to be shared between threads."""

    def __init__(self, encoders: Encoders, fusion: CausalFusion, timer: StageTimer) -> None:
        """``fusion``: whose timeline it is."""
        self._encoders = encoders
        self._context_rows = fusion.spec.audio_context_rows
        self._window_s = fusion.window_s
        self._timer = timer
        self._audio: CausalAudioFeatures | None = None
        self._vision: VisionFeatures | None = None
        self._said: list[Word] = []
        self._waiting: list[Word] = []
        self._pushed = PushedRows(encoders)
        self._newest_s: dict[Modality, float] = {}
        self.start_s = inf
        """When the earliest input began; infinity before."""

    def push_word(self, word: Word) -> None:
        """As :class:`~affectrt.timeline.Intake`. One that comes late counts from the next tick on."""
        _ = self._encoders.text
        if "text" not in self._pushed:
            self._waiting.append(word)
        self._begin(word.end_s)

    def push_audio(self, pcm: npt.ArrayLike, sample_rate_hz: int, start_s: float) -> None:
        """As :class:`~affectrt.timeline.Intake`."""
        self._begin(start_s)
        if "audio" in self._pushed:
            return
        with self._timer.stage("audio features"):
            if self._audio is None:
                self._audio = self._encoders.new_causal_audio(self._context_rows)
            self._audio.push_audio(pcm, sample_rate_hz, start_s)

    def end_audio(self) -> None:
        """As :class:`~affectrt.timeline.Intake`: nothing, as states wait for more sound than a resampler
        holds back."""

    def push_frame(self, frame: npt.NDArray[np.uint8], time_s: float) -> None:
        """As :class:`~affectrt.timeline.Intake`."""
        self._begin(time_s)
        if "vision" in self._pushed:
            return
        with self._timer.stage("face tracking"):
            if self._vision is None:
                self._vision = self._encoders.new_vision(self._window_s)
            self._vision.push_frame(frame, time_s)

    def push_features(self, sequence: FeatureSequence) -> None:
        """As :class:`~affectrt.timeline.Intake`. Rows of text count as words do.

        Raises ``features.range``, too: what the kernels can't take would cost the tick that it enters.
        """
        if len(sequence) and float(np.abs(sequence.values).max()) >= LARGEST:
            raise AffectError(
                "features.range",
                f"{sequence.modality} features: expected numbers below {LARGEST:g}, got "
                f"{np.abs(sequence.values).max():.3g}; scale the rows as in training",
            )
        self._pushed.push(sequence)
        if len(sequence):
            self._begin(float(sequence.times_s[0]))
        # They stand for their modality from now on: nothing is kept that nobody will ask for.
        if "text" in self._pushed:
            self._waiting, self._said = [], []
        if "audio" in self._pushed:
            self._audio = None
        if "vision" in self._pushed:
            self._vision = None

    def text(self, time_s: float) -> FloatArray | None:
        """What was said by then and not given yet: (dim,), None without a word."""
        if "text" in self._pushed:
            rows = self._take_pushed("text", time_s)
            if not len(rows):
                return None
            self._sensed("text", time_s)
            return np.asarray(rows.values.mean(axis=0), np.float32)
        fresh = sorted((w for w in self._waiting if w.end_s <= time_s), key=lambda w: w.end_s)
        if not fresh:
            return None
        self._waiting = [w for w in self._waiting if w.end_s > time_s]
        self._said = [w for w in self._said if w.end_s > time_s - CONTEXT_S] + fresh
        self._sensed("text", time_s)
        with self._timer.stage("text encoder"):
            return self._encoders.text.newest(self._said, len(fresh))

    def audio(self, time_s: float) -> FeatureSequence | None:
        """What was heard by then and not given yet."""
        if "audio" in self._pushed:
            return self._take_pushed("audio", time_s)
        if self._audio is None:
            return None
        with self._timer.stage("audio encoder"):
            return self._take("audio", self._audio.until(time_s))

    def vision(self, time_s: float) -> FeatureSequence | None:
        """The faces seen by then and not given yet."""
        if "vision" in self._pushed:
            return self._take_pushed("vision", time_s)
        if self._vision is None:
            return None
        with self._timer.stage("face encoder"):
            return self._take("vision", self._vision.until(time_s))

    def present(self, time_s: float) -> tuple[Modality, ...]:
        """What a person is sensed by: words and voice of the model's window, a face of the last second."""
        hold_s = {"text": self._window_s, "audio": self._window_s, "vision": FACE_HOLD_S}
        return tuple(m for m in MODALITIES if self._newest_s.get(m, -inf) > time_s - hold_s[m])

    def _take_pushed(self, modality: Modality, time_s: float) -> FeatureSequence:
        rows = self._pushed.between(modality, -inf, time_s)
        self._pushed.forget(modality, time_s)
        return self._take(modality, rows)

    def _take(self, modality: Modality, rows: FeatureSequence) -> FeatureSequence:
        """Rows that came after later ones count from those on: what was answered stays."""
        if not len(rows):
            return rows
        times_s = np.maximum(rows.times_s, self._newest_s.get(modality, -inf))
        self._sensed(modality, float(times_s[-1]))
        return FeatureSequence(modality, rows.values, times_s, rows.source)

    def _sensed(self, modality: Modality, time_s: float) -> None:
        self._newest_s[modality] = max(self._newest_s.get(modality, -inf), time_s)

    def _begin(self, start_s: float) -> None:
        self.start_s = min(self.start_s, start_s)


class IncrementalMode:
    """The bundle's causal model, tick by tick.

    What each modality contributes is told by the same model beside it that never had that modality.
    """

    def __init__(self, model: Model, timer: StageTimer) -> None:
        """Raises as :attr:`affectrt.model.Model.causal`."""
        fusion = model.causal
        self._spec = fusion.spec
        self._timer = timer
        self.timeline = CausalTimeline(model.encoders, fusion, timer)
        self.keep_s = LATE_WORD_S
        self._awaited = [m for m in model.manifest.modalities if m != "text"]
        self._whole = fusion.start()
        self._without: dict[Modality, CausalState] = {m: fusion.start() for m in model.manifest.modalities}
        self._tick: int | None = None
        self._answer: tuple[float, FloatArray] = (0.0, np.zeros(0, np.float32))
        self._left: dict[Modality, float] = {}

    def due_s(self, newest_s: float, delivered_s: Mapping[Modality, float]) -> float:
        """As :class:`~affectrt.streaming.mode.Mode`: answers are final, so they wait for sound and pictures
        that are behind or have not begun, for :data:`PATIENCE_S`."""
        before_s = self.timeline.start_s - self._spec.tick_s
        come_s = [delivered_s.get(modality, before_s) for modality in self._awaited]
        return min([newest_s, *(s for s in come_s if s > newest_s - PATIENCE_S)])

    def follow(self, time_s: float) -> None:
        """As :class:`~affectrt.streaming.mode.Mode`: the ticks up to then. Raises ``stream.input``."""
        last = floor((time_s + _TIME_EPS) / self._spec.tick_s)
        if self._tick is None:
            if self.timeline.start_s > time_s:
                return
            self._tick = floor(self.timeline.start_s / self._spec.tick_s)
        if last - self._tick > MAX_PAUSE_S / self._spec.tick_s:
            self._tick = last
        while self._tick <= last:
            tick_s = self._tick * self._spec.tick_s
            self._tick += 1
            self._step(tick_s)

    def skip(self, time_s: float) -> None:
        """As :class:`~affectrt.streaming.mode.Mode`: what waits comes all in one tick."""
        if self._tick is not None:
            self._tick = max(self._tick, floor((time_s + _TIME_EPS) / self._spec.tick_s))

    def result(self, time_s: float, captured_at: float) -> Affect:
        """As :class:`~affectrt.streaming.mode.Mode`: the answer of the last tick by then.

        Raises ``model.not_finite`` and ``stream.input``.
        """
        self.follow(time_s)
        if self._tick is None:  # nothing that came has begun yet, or all of it was refused
            self._tick = floor((time_s + _TIME_EPS) / self._spec.tick_s)
            self.follow(time_s)
        present = self.timeline.present(time_s)
        sentiment, logits = self._answer
        sentiments = [sentiment, *(self._left[m] for m in present)]
        return self._spec.calibration.affect(sentiments, logits, present, time_s, captured_at)

    def _step(self, tick_s: float) -> None:
        text, audio, vision = (
            self.timeline.text(tick_s),
            self.timeline.audio(tick_s),
            self.timeline.vision(tick_s),
        )
        with self._timer.stage("fusion"):
            self._answer = self._whole.step(tick_s, text, audio, vision)
            for modality, state in self._without.items():
                self._left[modality], _ = state.step(
                    tick_s,
                    None if modality == "text" else text,
                    None if modality == "audio" else audio,
                    None if modality == "vision" else vision,
                )
