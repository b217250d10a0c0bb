"""The task gate of the starter: int8 may cost at most 1 % of what its encoders are measured by.

Measuring takes CMU-MOSI and FER+, which are not ours to ship. So the figures are recorded beside the weights
once, together with what the measured text encoder answers to our own probe sentences and the ranges of the
face encoder; an export without the data proves that it made the same encoders again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from affectrt.errors import AffectError
from affectrt.model import Model
from affectrt_export.int8_faces import Span, accuracy
from affectrt_training.data.text import mosi

MAX_COST = 0.01
"""int8 may raise the mean absolute error, and lower the accuracy, by this share of it."""

PROBE_TOLERANCE = 0.02
"""Sentiment of one sentence may differ by this from what was recorded: other processors round otherwise."""

META_KEY = "int8_gate"
"""Where the weights' sidecar keeps the record."""


@dataclass(frozen=True)
class Int8Gate:
    """What int8 costs, and how to know the encoders again that this was measured on."""

    mosi_valid_mae_fp32: float
    """Mean absolute error on CMU-MOSI's validation split, text alone, fp32 text encoder."""
    mosi_valid_mae_int8: float
    """The same with the int8 text encoder."""
    probe_sentiment: tuple[float, ...]
    """Sentiment of each of :func:`probe_sentences` with the int8 text encoder."""
    ferplus_valid_accuracy_fp32: float
    """Share of FER+'s clear validation faces that are named rightly, fp32 face encoder."""
    ferplus_valid_accuracy_int8: float
    """The same with the int8 face encoder."""
    face_ranges: tuple[Span, ...]
    """Least and largest of each value that the face encoder rounds, in the graph's order."""

    @property
    def cost(self) -> float:
        """By which share int8 raises the error; negative when it lowers it."""
        return self.mosi_valid_mae_int8 / self.mosi_valid_mae_fp32 - 1.0

    def to_dict(self) -> dict[str, Any]:
        """As the weights' sidecar keeps it."""
        lists = {"probe_sentiment": list(self.probe_sentiment), "face_ranges": [*map(list, self.face_ranges)]}
        return {**asdict(self), **lists}

    @classmethod
    def recorded(cls, meta: Mapping[str, Any]) -> Int8Gate:
        """The record in the weights' sidecar. Raises ``export.int8_gate`` without a readable one."""
        record: Any = meta.get(META_KEY)
        try:
            gate = cls(
                float(record["mosi_valid_mae_fp32"]),
                float(record["mosi_valid_mae_int8"]),
                tuple(float(value) for value in record["probe_sentiment"]),
                float(record["ferplus_valid_accuracy_fp32"]),
                float(record["ferplus_valid_accuracy_int8"]),
                tuple((float(low), float(high)) for low, high in record["face_ranges"]),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise AffectError(
                "export.int8_gate",
                f"int8 gate: these weights come with no readable record of what int8 costs "
                f"({type(error).__name__}: {error}); pass --data to measure it afresh",
            ) from error
        return gate


def probe_sentences() -> list[str]:
    """Our own forty sentences, of all moods and lengths."""
    text = files("affectrt_export").joinpath("probe_sentences.txt").read_text(encoding="utf-8")
    return text.splitlines()


def probe(model: Model) -> tuple[float, ...]:
    """What a model answers to every probe sentence: its sentiment."""
    return tuple(round(model.predict(text=sentence).sentiment, 4) for sentence in probe_sentences())


def measure(fp32: Model, int8: Model, data: Path, face_ranges: tuple[Span, ...]) -> Int8Gate:
    """Measure both models as the device runs them, the int8 one made with ``face_ranges``.

    Raises ``data.not_found`` when ``data`` lacks CMU-MOSI or FER+.
    """
    sentences = mosi(data, "valid")
    errors = [
        [
            abs(model.predict(text=s.text).sentiment - s.sentiment)
            for s in sentences
            if s.sentiment is not None
        ]
        for model in (fp32, int8)
    ]
    mae_fp32, mae_int8 = (round(float(np.mean(found)), 6) for found in errors)
    faces_fp32, faces_int8 = (accuracy(model, data) for model in (fp32, int8))
    return Int8Gate(mae_fp32, mae_int8, probe(int8), faces_fp32, faces_int8, face_ranges)


def check_cost(gate: Int8Gate) -> None:
    """Raise ``export.int8_gate`` when int8 costs more than :data:`MAX_COST`."""
    maes = (gate.mosi_valid_mae_fp32, gate.mosi_valid_mae_int8)
    if not (all(isfinite(mae) and mae >= 0 for mae in maes) and maes[1] <= maes[0] * (1 + MAX_COST)):
        raise AffectError(
            "export.int8_gate",
            f"int8 gate: with an int8 text encoder the MAE on CMU-MOSI valid is {maes[1]:.4f}, with fp32 "
            f"{maes[0]:.4f}; at most {MAX_COST:.0%} more is allowed; nothing was written",
        )
    shares = (gate.ferplus_valid_accuracy_fp32, gate.ferplus_valid_accuracy_int8)
    if not (all(0 <= share <= 1 for share in shares) and shares[1] >= shares[0] * (1 - MAX_COST)):
        raise AffectError(
            "export.int8_gate",
            f"int8 gate: with an int8 face encoder the accuracy on FER+ valid is {shares[1]:.4f}, with fp32 "
            f"{shares[0]:.4f}; at most {MAX_COST:.0%} less is allowed; nothing was written",
        )


def check_probe(gate: Int8Gate, answered: Sequence[float]) -> float:
    """Largest difference between the answers to the probe sentences and the recorded ones.

    Raises ``export.int8_gate`` over :data:`PROBE_TOLERANCE`: then the record is of another encoder.
    """
    sentences = probe_sentences()
    if len(gate.probe_sentiment) != len(sentences) or len(answered) != len(sentences):
        raise AffectError(
            "export.int8_gate",
            f"int8 gate: expected {len(sentences)} recorded answers to the probe sentences, got "
            f"{len(gate.probe_sentiment)}; pass --data to measure afresh",
        )
    differences = np.abs(np.subtract(answered, gate.probe_sentiment))
    worst = int(np.argmax(np.where(np.isfinite(differences), differences, np.inf)))
    if not differences[worst] <= PROBE_TOLERANCE:
        raise AffectError(
            "export.int8_gate",
            f"int8 gate: on '{sentences[worst]}' this int8 text encoder says {answered[worst]:+.4f}, the one "
            f"that was measured said {gate.probe_sentiment[worst]:+.4f} (tolerance {PROBE_TOLERANCE:g}), so "
            f"it is not the same; pass --data to measure afresh; nothing was written",
        )
    return float(differences[worst])
