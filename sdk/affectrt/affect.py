"""The result type: what AffectRT says about one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Modality = Literal["text", "audio", "vision"]

MODALITIES: tuple[Modality, ...] = ("text", "audio", "vision")
"""The order of modalities everywhere: graph inputs, presence keys, tables."""

EMOTIONS: tuple[str, ...] = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
"""The order of the emotion classes in every graph, label and probability."""

SENTIMENT_LIMIT = 3.0
"""Sentiment lies in [-3, 3]: very negative to very positive (the scale of CMU-MOSI)."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a stream and that it survived."""

    time_s: float
    """When, in stream seconds."""
    code: str
    """Stable, for programs: that of an :class:`~affectrt.errors.AffectError`, or one that
    docs/architecture.md lists."""
    message: str
    """For people."""

    def to_dict(self) -> dict[str, object]:
        """JSON-ready form."""
        return {"time_s": round(self.time_s, 3), "code": self.code, "message": self.message}


@dataclass(frozen=True)
class Affect:
    """Sentiment and emotion at one moment, with honest confidence."""

    time_s: float
    """The moment this speaks of: the end of the window it was computed from, in stream seconds."""
    sentiment: float
    """Expected sentiment in [-3, 3]."""
    interval: tuple[float, float]
    """90 % split-conformal prediction interval of ``sentiment``, clipped to [-3, 3]."""
    emotions: Mapping[str, float]
    """Probability of each of :data:`EMOTIONS`, temperature-calibrated; sums to 1."""
    contributions: Mapping[Modality, float]
    """For each present modality: ``sentiment`` minus what it would be without that modality."""
    present: frozenset[Modality]
    """The modalities that this result rests on. Empty: it is the model's prior, nothing was sensed."""
    latency_ms: float
    """From the capture of the newest input to this result, in milliseconds."""
    events: tuple[Event, ...] = ()
    """What happened to the stream since the result before; empty most of the time."""

    @property
    def emotion(self) -> str:
        """The most probable emotion."""
        return max(self.emotions, key=self.emotions.__getitem__)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready form, modalities in canonical order."""
        return {
            "time_s": round(self.time_s, 3),
            "sentiment": round(self.sentiment, 4),
            "interval": [round(bound, 4) for bound in self.interval],
            "emotion": self.emotion,
            "emotions": {name: round(p, 4) for name, p in self.emotions.items()},
            "contributions": {m: round(c, 4) for m, c in self.contributions.items()},
            "present": [m for m in MODALITIES if m in self.present],
            "latency_ms": round(self.latency_ms, 2),
            "events": [event.to_dict() for event in self.events],
        }
