"""What may be pushed: checked, copied and cut here, for live streams and offline use alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Literal

import numpy as np
import numpy.typing as npt

from affectrt.affect import Modality
from affectrt.encoders import Encoders
from affectrt.errors import AffectError
from affectrt.features.frames import FrameSampler, check_frame
from affectrt.features.sequence import FeatureSequence, FloatArray
from affectrt.features.text import Word
from affectrt.timeline import DISORDER_S, Intake

Kind = Literal["audio", "frames", "words", "features"]

KINDS: tuple[Kind, ...] = ("audio", "frames", "words", "features")

PIECE_S = 1.0
"""Longer inputs are cut, so that modalities advance together however much of one is pushed at once."""

_WORD_BYTES = 200


@dataclass(frozen=True)
class Input:
    """Something pushed that waits to be taken in."""

    kind: Kind
    modality: Modality
    start_s: float
    """Stream time at which it begins."""
    end_s: float
    """Stream time at which it ends."""
    arrived_at: float
    """When it was pushed, as :func:`time.perf_counter` tells it."""
    size_bytes: int
    timed: bool
    """Whether its time is the application's; else the stream stamped it."""
    feed: Callable[[Intake], None]
    """Takes it in."""


def check_times(*times_s: float) -> None:
    """Raise ``stream.time`` unless all are finite."""
    for time_s in times_s:
        if not isfinite(time_s):
            raise AffectError("stream.time", f"stream: expected a finite time in seconds, got {time_s}")


def checked_audio(encoders: Encoders, pcm: npt.ArrayLike, sample_rate: int) -> FloatArray:
    """A copy of the samples, mono. Raises as :meth:`affectrt.stream.Stream.push_audio`."""
    from affectrt.features.log_mel import as_mono, check_rate

    encoders.check_extractor("audio")
    check_rate(sample_rate)
    return np.array(as_mono(pcm))


def audio_inputs(
    mono: FloatArray, sample_rate: int, start_s: float, arrived_at: float, *, timed: bool = True
) -> list[Input]:
    """Samples that :func:`checked_audio` gave, in pieces of at most :data:`PIECE_S`."""
    inputs = []
    step = max(1, int(PIECE_S * sample_rate))
    for first in range(0, len(mono), step):
        piece = mono[first : first + step]
        at_s = start_s + first / sample_rate
        end_s = at_s + len(piece) / sample_rate
        feed = partial(_feed_audio, pcm=piece, sample_rate=sample_rate, start_s=at_s)
        inputs.append(Input("audio", "audio", at_s, end_s, arrived_at, piece.nbytes, timed, feed))
    return inputs


def checked_frame(encoders: Encoders, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The frame itself. Raises as :meth:`affectrt.stream.Stream.push_frame`."""
    encoders.check_extractor("vision")
    return check_frame(frame)


class Frames:
    """Which of one person's frames are looked at: the others are passed over before they cost a copy."""

    def __init__(self, encoders: Encoders) -> None:
        self._rate_hz = encoders.frame_rate_hz or 0.0
        self._sampler: FrameSampler | None = None
        self._newest_s = 0.0

    def takes(self, time_s: float) -> bool:
        """Whether the frame of ``time_s`` is; after a clock that was set back, the first one is again."""
        if self._sampler is None or time_s < self._newest_s - DISORDER_S:
            self._sampler = FrameSampler(self._rate_hz)
        self._newest_s = time_s
        return self._sampler.takes(time_s)


def frame_input(
    frame: npt.NDArray[np.uint8], time_s: float, arrived_at: float, *, timed: bool = True
) -> Input:
    """A frame that :func:`checked_frame` gave; copied, because cameras reuse their buffers."""
    kept = frame.copy()
    feed = partial(_feed_frame, frame=kept, time_s=time_s)
    return Input("frames", "vision", time_s, time_s, arrived_at, kept.nbytes, timed, feed)


def word_input(encoders: Encoders, word: Word, arrived_at: float, *, timed: bool = True) -> Input:
    """One word. Raises ``model.no_extractor``, ``model.no_modality``."""
    encoders.check_extractor("text")
    feed = partial(_feed_word, word=word)
    return Input("words", "text", word.start_s, word.end_s, arrived_at, _WORD_BYTES, timed, feed)


def feature_inputs(encoders: Encoders, sequence: FeatureSequence, arrived_at: float) -> list[Input]:
    """A copy of the rows, cut at multiples of :data:`PIECE_S`. Raises ``features.dim``,
    ``model.no_modality``."""
    encoders.check_rows(sequence)
    inputs = []
    cuts = np.flatnonzero(np.diff(sequence.times_s // PIECE_S)) + 1
    pieces = zip(np.split(sequence.values, cuts), np.split(sequence.times_s, cuts), strict=True)
    for values, times_s in pieces:
        if len(times_s):
            piece = replace(sequence, values=values.copy(), times_s=times_s.copy())
            start_s, end_s = float(times_s[0]), float(times_s[-1])
            feed = partial(_feed_features, sequence=piece)
            inputs.append(
                Input("features", sequence.modality, start_s, end_s, arrived_at, values.nbytes, True, feed)
            )
    return inputs


# A lambda in a loop would see the last piece only.
def _feed_audio(intake: Intake, *, pcm: FloatArray, sample_rate: int, start_s: float) -> None:
    intake.push_audio(pcm, sample_rate, start_s)


def _feed_frame(intake: Intake, *, frame: npt.NDArray[np.uint8], time_s: float) -> None:
    intake.push_frame(frame, time_s)


def _feed_word(intake: Intake, *, word: Word) -> None:
    intake.push_word(word)


def _feed_features(intake: Intake, *, sequence: FeatureSequence) -> None:
    intake.push_features(sequence)
