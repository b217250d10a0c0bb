"""int8 for the starter's face encoder: ranges from real faces, and what that costs.

Ranges and cost are measured on FER+, which is not ours to ship, and recorded beside the weights; an export
without the data takes them from there. Ranges stand in the order in which the graph uses them: the names of
its values are the exporter's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from affectrt.affect import EMOTIONS
from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.errors import AffectError
from affectrt.model import Model
from affectrt_export import int8
from affectrt_export.parity import Case, face_like
from affectrt_training.data.faces import ferplus

GRAPH = "vision"

CALIBRATION_FACES = 256
"""Of the training split, spread evenly over it."""

LEAST_COSINE = 0.99
"""Between int8 and fp32 states of drawn faces, in the mean: lower, and the ranges are of another encoder."""

Span = tuple[float, float]

_BATCH = 16


def measure_ranges(model: bytes, data: Path) -> tuple[Span, ...]:
    """Ranges on FER+'s training split. Raises ``data.not_found``, ``export.calibration``."""
    images = ferplus(data, "train").images
    images = images[:: max(1, len(images) // CALIBRATION_FACES)][:CALIBRATION_FACES]
    faces = images.astype(np.float32) / np.float32(255)
    batches = [faces[k : k + _BATCH] for k in range(0, len(faces), _BATCH)]
    found = int8.measure_ranges(
        model, GRAPH, (Case(f"faces from {k * _BATCH}", {"faces": batch}) for k, batch in enumerate(batches))
    )
    spans = (found[name] for name in int8.ranged_values(model, GRAPH))
    return tuple((round(low, 5), round(high, 5)) for low, high in spans)


def to_int8(model: bytes, ranges: Sequence[Span], crop_px: int) -> tuple[bytes, float]:
    """The graph at int8, and the mean cosine of its states to fp32's on drawn faces.

    Raises ``export.calibration`` when the ranges aren't this graph's.
    """
    names = int8.ranged_values(model, GRAPH)
    if len(ranges) != len(names):
        raise AffectError(
            "export.calibration",
            f"{GRAPH}.onnx: expected {len(names)} ranges, got {len(ranges)}: they were recorded of another "
            f"encoder or by another version; pass --data to measure them afresh",
        )
    graph = int8.to_int8(model, GRAPH, dict(zip(names, ranges, strict=True)))
    faces = face_like(40, crop_px)
    a, b = (OnnxGraph(each, threads=1, name=f"{GRAPH}.onnx")(faces=faces)[0] for each in (model, graph))
    cosine = float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).mean())
    if not cosine >= LEAST_COSINE:
        raise AffectError(
            "export.calibration",
            f"{GRAPH}.onnx: int8 states of drawn faces have a mean cosine of {cosine:.4f} to fp32's, "
            f"expected at least {LEAST_COSINE}: the ranges are not this encoder's; pass --data to measure "
            f"them afresh",
        )
    return graph, cosine


def accuracy(model: Model, data: Path) -> float:
    """Share of FER+'s clear validation faces that a model names rightly. Raises ``data.not_found``."""
    faces = ferplus(data, "valid")
    right = [
        EMOTIONS[emotion] == model.predict(image=image).emotion
        for image, emotion in zip(faces.images[faces.clear], faces.emotions[faces.clear], strict=True)
    ]
    return round(float(np.mean(right)), 6)
