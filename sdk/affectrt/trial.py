"""One window through all of a model, stage by stage: what ``doctor`` tries and ``bench`` times.

Its input is the same at every run and on every backend, so that results can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from affectrt.affect import EMOTIONS, MODALITIES, Affect, Modality
from affectrt.backends.choice import BACKENDS, DEVICES
from affectrt.clip import LONGEST_WINDOW_S, of_video
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import words_of
from affectrt.manifest import AudioSpec, TextSpec, VisionSpec
from affectrt.profiling import StageTimer
from affectrt.timeline import Timeline
from affectrt.transcript import read_transcript

if TYPE_CHECKING:
    from affectrt.model import Model

TOLERANCE, GPU_TOLERANCE, INT8_TOLERANCE = 1e-4, 1e-2, 5e-2
"""How far sentiment and probabilities may lie apart: in float32; at fp16, or where one of the two is a GPU's
runtime, which adds in another order and may round to tf32; and at int8, where ONNX Runtime rounds activations
that native and torch leave as they are."""

MADE_UP_ROWS = 40
"""Rows of a modality whose rows the application makes."""

WORDS = "it was a wonderful evening and we are so happy about it"


class Trial(Protocol):
    """A model and its input."""

    note: str
    """What the input is, where that isn't plain."""

    def run(self, timer: StageTimer) -> Affect:
        """One window; ``timer`` gets the time of each stage."""
        ...


class MadeUpWindow:
    """Words, noise for sound and faces, noise for rows that only the application can make."""

    def __init__(self, model: Model) -> None:
        """Make the input up. An encoder whose libraries are missing isn't run: its rows are made up, too."""
        self._model = model
        self._rows: dict[Modality, FeatureSequence] = {}
        self._stages: dict[Modality, Callable[[], FeatureSequence]] = {}
        reasons: dict[Modality, str] = {}
        for modality in model.manifest.modalities:
            try:
                self._stages[modality] = self._stage(modality)
            except AffectError as error:
                if error.code not in ("extra.missing", "model.no_extractor"):
                    raise
                app_makes = f"the application makes {modality} rows"
                reasons[modality] = error.message if error.code == "extra.missing" else app_makes
                size = (MADE_UP_ROWS, model.manifest.dim(modality))
                self._rows[modality] = self._sequence(modality, self._noise(modality, *size))
        self.note = (
            f"made-up features stand for {', '.join(reasons)}: {'; '.join(dict.fromkeys(reasons.values()))}"
            if reasons
            else ""
        )

    def run(self, timer: StageTimer) -> Affect:
        """As :class:`Trial`: the encoders by modality, then ``fusion``."""
        start = perf_counter()
        sequences = dict(self._rows)
        for modality, stage in self._stages.items():
            with timer.stage(modality):
                sequences[modality] = stage()
        with timer.stage("fusion"):
            return self._model.fuse(sequences, self._model.manifest.window_s, start)

    def _stage(self, modality: Modality) -> Callable[[], FeatureSequence]:
        encoders, manifest = self._model.encoders, self._model.manifest
        spec = manifest.specs[modality]
        if isinstance(spec, TextSpec):
            text, words = encoders.text, words_of(WORDS, 0.0)
            return lambda: text.extract(words)
        if isinstance(spec, AudioSpec):
            voice = encoders.audio_graph
            log_mel = self._noise(modality, 1, round(manifest.window_s / spec.hop_s), spec.n_mels)
            return lambda: self._sequence("audio", voice(log_mel=log_mel)[0][0])
        if isinstance(spec, VisionSpec):
            face = encoders.vision_graph
            count = max(1, round(manifest.window_s * spec.rate_hz))
            faces = np.abs(self._noise(modality, count, spec.crop_px, spec.crop_px))
            faces = np.minimum(faces, np.float32(1.0))
            return lambda: self._sequence("vision", face(faces=faces)[0])
        raise manifest.no_extractor(modality)

    def _noise(self, modality: Modality, *shape: int) -> Any:
        return np.random.default_rng(MODALITIES.index(modality)).standard_normal(shape, np.float32)

    def _sequence(self, modality: Modality, states: Any) -> FeatureSequence:
        times_s = np.linspace(0.0, self._model.manifest.window_s, len(states))
        return FeatureSequence(modality, states, times_s, "made up")


class ClipWindow:
    """A recording, decoded beforehand: sound and pictures are pushed as they are live, then fused."""

    def __init__(self, model: Model, clip: Path, transcript: Path | None = None) -> None:
        """Decode at most :data:`~affectrt.clip.LONGEST_WINDOW_S` of it, the longest window there is.

        Raises as :meth:`affectrt.media.Media.open` and :func:`affectrt.transcript.read_transcript`;
        ``model.no_extractor`` and ``model.no_modality`` when the model can't read it.
        """
        from affectrt.media import Media

        self._model = model
        reads = of_video(model.encoders)
        rate_hz = model.encoders.frame_rate_hz if "vision" in reads else None
        with Media.open(
            clip, max_video_rate_hz=rate_hz, audio="audio" in reads, video="vision" in reads
        ) as media:
            self._items = [item for item in media if item.time_s < LONGEST_WINDOW_S]
        words = [] if transcript is None else read_transcript(transcript)
        self._words = [word for word in words if word.end_s <= LONGEST_WINDOW_S]
        present = ", ".join(m for m in MODALITIES if m in self.run(StageTimer.off()).present)
        if not present:
            raise AffectError(
                "bench.nothing_sensed",
                f"{clip}: its first {LONGEST_WINDOW_S:g} s have no words, no voice and no face that the "
                f"model could read; give another clip, or its --transcript",
            )
        times_s = [*(item.time_s for item in self._items), *(word.end_s for word in self._words)]
        self.note = f"the first {max(times_s):.0f} s of {clip.name}, decoded beforehand: {present}"

    def run(self, timer: StageTimer) -> Affect:
        """As :class:`Trial`: the stages of :class:`~affectrt.timeline.Timeline`, then ``fusion``."""
        from affectrt.media import AudioChunk

        start = perf_counter()
        # As Model.predict reads a recording: whoever was seen at all in it was there.
        timeline = Timeline(
            self._model.encoders, window_s=LONGEST_WINDOW_S, keep_s=inf, face_hold_s=inf, timer=timer
        )
        for item in self._items:
            if isinstance(item, AudioChunk):
                timeline.push_audio(item.pcm, item.sample_rate_hz, item.time_s)
            else:
                timeline.push_frame(item.bgr, item.time_s)
        timeline.end_audio()
        for word in self._words:
            timeline.push_word(word)
        sequences = timeline.window(-inf, inf)
        with timer.stage("fusion"):
            return self._model.fuse(sequences, timeline.newest_s, start)


def difference(a: Affect, b: Affect) -> float:
    """The largest, of sentiment and probabilities."""
    gaps = [abs(a.emotions[name] - b.emotions[name]) for name in EMOTIONS]
    return float(np.max([abs(a.sentiment - b.sentiment), *gaps]))


def reference_of(backends: Iterable[str]) -> str:
    """Whom the others are held to: the first that runs on the processor, else the first."""
    names = list(backends)
    return next((name for name in DEVICES["cpu"] if name in names), names[0])


def tolerance(a: str, b: str, precision: str) -> float:
    """How far two backends may be apart; ``precision`` of the fusion graph."""
    on_gpu = set(BACKENDS) - set(DEVICES["cpu"])
    if precision == "int8":
        return INT8_TOLERANCE
    return GPU_TOLERANCE if on_gpu & {a, b} or precision == "fp16" else TOLERANCE
