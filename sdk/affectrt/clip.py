"""A whole recording, read once: what :meth:`affectrt.model.Model.predict` cuts its windows from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.affect import Modality
from affectrt.encoders import Encoders
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word, words_of
from affectrt.timeline import Timeline

PathLike = str | os.PathLike[str]
Sound = tuple[npt.ArrayLike, int]
"""Samples and their rate in Hz."""

LONGEST_WINDOW_S = 20.0
"""What one window may hold: the longest utterances that models are trained on."""


@dataclass(frozen=True)
class Clip:
    """The features of one recording."""

    timeline: Timeline
    """All that was read."""
    still: FeatureSequence | None
    """The face on a still (one row) or its absence (none), which holds all along; None without a still."""
    duration_s: float
    """When the last of it ends."""
    longest_window_s: float
    """How much of it may go into one window."""

    def window(self, start_s: float, end_s: float) -> dict[Modality, FeatureSequence]:
        """The features of ``start_s < time <= end_s``."""
        sequences = self.timeline.window(start_s, end_s)
        if self.still is not None:
            times = np.full(len(self.still), end_s)
            sequences["vision"] = FeatureSequence("vision", self.still.values, times, self.still.source)
        return sequences


def read_clip(
    encoders: Encoders,
    *,
    video: PathLike | None,
    audio: PathLike | Sound | None,
    image: PathLike | npt.NDArray[np.uint8] | None,
    text: str | Sequence[Word] | None,
    features: Mapping[Modality, FeatureSequence] | None,
) -> Clip:
    """Read what there is; the arguments and errors are those of :meth:`affectrt.model.Model.predict`.

    What is wrong with a file but doesn't stop the reading becomes a :class:`UserWarning`.
    """
    _check_inputs(video=video, audio=audio, image=image, text=text, features=features)
    # Whoever was seen at all in the clip was there: no face is too old here.
    timeline = Timeline(encoders, window_s=LONGEST_WINDOW_S, keep_s=inf, face_hold_s=inf)
    if video is not None:
        replaced: set[Modality] = set(features or {})
        if audio is not None:
            replaced.add("audio")
        if reads := _of_video(encoders, replaced):
            rate_hz = encoders.frame_rate_hz if "vision" in reads else None
            _read_media(timeline, video, audio="audio" in reads, video="vision" in reads, rate_hz=rate_hz)
    given: tuple[tuple[Modality, object], ...] = (("audio", audio), ("vision", image), ("text", text))
    for modality, value in given:
        if value is not None:
            encoders.check_extractor(modality)
    if isinstance(audio, tuple):
        timeline.push_audio(audio[0], audio[1], 0.0)
        timeline.end_audio()
    elif audio is not None:
        _read_media(timeline, audio, audio=True, video=False, rate_hz=None)
    for modality, sequence in (features or {}).items():
        if sequence.modality != modality:
            raise AffectError(
                "features.modality",
                f"features: expected {modality} rows under '{modality}', got {sequence.modality} rows",
            )
        timeline.push_features(sequence)
    recorded_s = timeline.newest_s
    words: Sequence[Word] = ()
    if isinstance(text, str):
        words = words_of(text, 0.0, recorded_s if recorded_s > 0.0 else None)
    elif text is not None:
        words = text
    for word in words:
        timeline.push_word(word)
    # Without media nothing says where to cut: as long as the encoder can take in all words, it is one window.
    alone = video is None and audio is None and (not words or encoders.text.fits(words))
    return Clip(
        timeline=timeline,
        still=None if image is None else _still(encoders, image),
        duration_s=max(0.0, timeline.newest_s),
        longest_window_s=inf if alone else LONGEST_WINDOW_S,
    )


def _of_video(encoders: Encoders, replaced: Collection[Modality]) -> list[Modality]:
    """What of a video the model reads itself, but for what comes from elsewhere.

    Raises ``model.no_extractor`` when it lacks rows that only the application can make, and
    ``model.no_modality`` when the model knows neither sound nor faces.
    """
    wanted: list[Modality] = [m for m in ("audio", "vision") if m in encoders.manifest.modalities]
    if not wanted:
        raise encoders.manifest.no_extractor("vision")
    reads = [m for m in wanted if m not in replaced]
    for modality in reads:
        encoders.check_extractor(modality)
    return reads


def _check_inputs(
    *, video: object, audio: object, image: object, text: object, features: Mapping[Modality, Any] | None
) -> None:
    given: list[tuple[str, Modality]] = []
    if video is not None and audio is None:
        given.append(("video", "audio"))
    sources: tuple[tuple[str, Modality, object], ...] = (
        ("video", "vision", video),
        ("audio", "audio", audio),
        ("image", "vision", image),
        ("text", "text", text),
    )
    given += [(name, modality) for name, modality, value in sources if value is not None]
    given += [(f"features[{modality!r}]", modality) for modality in features or {}]
    if not given:
        raise AffectError(
            "predict.no_input",
            "predict: expected at least one of video, audio, image, text, features; got none",
        )
    owners: dict[Modality, str] = {}
    for name, modality in given:
        # Rows that an application brings for one modality of a video take that modality over.
        if modality in owners and not (owners[modality] == "video" and name.startswith("features")):
            raise AffectError(
                "predict.conflict",
                f"predict: both {owners[modality]} and {name} give {modality}; leave one of them out",
            )
        owners[modality] = name


def _read_media(
    timeline: Timeline, path: PathLike, *, audio: bool, video: bool, rate_hz: float | None
) -> None:
    from affectrt.media import AudioChunk, Media

    with Media.open(path, max_video_rate_hz=rate_hz, audio=audio, video=video) as media:
        for item in media:
            if isinstance(item, AudioChunk):
                timeline.push_audio(item.pcm, item.sample_rate_hz, item.time_s)
            else:
                timeline.push_frame(item.bgr, item.time_s)
        timeline.end_audio()
    for message in media.warnings:
        warnings.warn(message, stacklevel=4)  # to the caller of Model.predict


def _still(encoders: Encoders, image: PathLike | npt.NDArray[np.uint8]) -> FeatureSequence:
    """The face on a still as one row, or no row when there is none."""
    from affectrt.features.vision import crop_face
    from affectrt.media import read_image

    crop = crop_face(image if isinstance(image, np.ndarray) else read_image(image), encoders.vision_config())
    if crop is None:
        return FeatureSequence.empty("vision", encoders.dim("vision"), "still")
    (states,) = encoders.vision_graph(faces=crop.grey[None].astype(np.float32) / np.float32(255.0))
    return FeatureSequence("vision", states, np.zeros(1), "still")
