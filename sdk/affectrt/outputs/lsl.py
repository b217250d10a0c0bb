"""Lab Streaming Layer: results as a stream that LabRecorder and the like put beside EEG, gaze and so on."""

from __future__ import annotations

from math import nan
from typing import Any

from affectrt.affect import EMOTIONS, MODALITIES, Affect
from affectrt.errors import AffectError, require

CHANNELS = (
    "sentiment",
    "interval_low",
    "interval_high",
    *EMOTIONS,
    *(f"present_{modality}" for modality in MODALITIES),
    "latency_ms",
)
"""What a sample holds, in this order; all but presence and latency are NaN when nothing was sensed."""


class LslOutput:
    """A regular stream of type ``Affect``, stamped with the moment of capture."""

    def __init__(self, name: str, hop_s: float) -> None:
        """``hop_s``: seconds from result to result. Raises ``extra.missing`` and ``lsl.library``."""
        try:
            self._lsl: Any = require("pylsl", "lsl")
        except RuntimeError as error:  # pylsl without its library
            raise AffectError("lsl.library", f"lsl: liblsl can't be loaded ({error}); install it") from error
        self.name = f"lsl {name}"
        info = self._lsl.StreamInfo(
            name, "Affect", len(CHANNELS), 1.0 / hop_s, self._lsl.cf_float32, f"affectrt-{name}"
        )
        channels = info.desc().append_child("channels")
        for label in CHANNELS:
            channels.append_child("channel").append_child_value("label", label)
        self._outlet: Any = self._lsl.StreamOutlet(info)

    def send(self, affect: Affect) -> None:
        """As :meth:`affectrt.outputs.output.Output.send`."""
        captured_at = self._lsl.local_clock() - affect.latency_ms / 1e3
        self._outlet.push_sample(sample(affect), captured_at)

    def close(self) -> None:
        """As :meth:`affectrt.outputs.output.Output.close`."""
        self._outlet = None  # liblsl ends a stream when its outlet goes


def sample(affect: Affect) -> list[float]:
    """A result as :data:`CHANNELS`."""
    told = [affect.sentiment, *affect.interval, *(affect.emotions[name] for name in EMOTIONS)]
    return [
        *(told if affect.present else [nan] * len(told)),
        *(float(modality in affect.present) for modality in MODALITIES),
        affect.latency_ms,
    ]
