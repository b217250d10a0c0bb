"""AffectRT reads how a person feels from text, audio and video together, in real time, on the device.

    model = affectrt.load("starter.affect")
    print(model.predict(video="clip.mp4", text="I loved every minute of it"))

    with model.stream() as stream:
        stream.push_audio(pcm, sample_rate=16_000)
        stream.push_frame(bgr)
        for affect in stream:
            print(affect.time_s, affect.sentiment, affect.emotions)

Importing this package loads nothing heavier than numpy; what a model needs is loaded with the model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from affectrt.affect import Affect, Event
    from affectrt.errors import AffectError
    from affectrt.features.sequence import FeatureSequence
    from affectrt.features.text import Word
    from affectrt.model import Model, load
    from affectrt.stream import Stream

__all__ = [
    "Affect",
    "AffectError",
    "Event",
    "FeatureSequence",
    "Model",
    "Stream",
    "Word",
    "__version__",
    "load",
]

__version__ = "0.1.0"

_HOMES = {
    "Affect": "affectrt.affect",
    "AffectError": "affectrt.errors",
    "Event": "affectrt.affect",
    "FeatureSequence": "affectrt.features.sequence",
    "Model": "affectrt.model",
    "Stream": "affectrt.stream",
    "Word": "affectrt.features.text",
    "load": "affectrt.model",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'affectrt' has no attribute '{name}'")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
