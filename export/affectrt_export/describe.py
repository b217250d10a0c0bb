"""What a run's bundle says about itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from affectrt.affect import EMOTIONS, Modality
from affectrt.backends.native import check_model
from affectrt.clip import LONGEST_WINDOW_S
from affectrt.errors import AffectError
from affectrt.manifest import SCHEMA, Manifest
from affectrt_export import graphs
from affectrt_training.data.raw import ClipExtractor
from affectrt_training.encoders.text import max_tokens_of
from affectrt_training.fit.checkpoint import Fitted
from affectrt_training.models.registry import find_system

TOKENIZER, FUSION_WEIGHTS = "tokenizer.json", "fusion.safetensors"

FIGURES = ("mae", "r", "acc2_has0", "acc2_non0", "acc7", "accuracy", "weighted_f1")
"""Metrics of the validation split that a bundle repeats."""

LICENCE = "not stated: that of the training data holds"
"""Where whoever exports says nothing."""


@lru_cache(maxsize=1)
def starter_extractor() -> ClipExtractor:
    """What made the rows of raw clips."""
    return ClipExtractor()


def describe(fitted: Fitted, name: str, precision: str, opset: int, licence: str) -> Manifest:
    """A run's manifest but for its members' sizes and hashes and what the export measures.

    Raises ``export.uncalibrated`` for a run without calibration, ``export.extractor`` when its rows of raw
    clips were made by other extractors than there are now.
    """
    if fitted.calibration is None:
        raise AffectError(
            "export.uncalibrated",
            f"run {name}: expected calibration.json, which says how far results may be trusted, got none; "
            f"train it again with this version",
        )
    specs: dict[Modality, dict[str, Any] | None] = {
        "text": _text(fitted),
        "audio": _clips(fitted, name, "audio"),
        "vision": _clips(fitted, name, "vision"),
    }
    parts = [part for part, spec in specs.items() if spec is not None and "graph" in spec] + ["fusion"]
    members = [f"{part}.onnx" for part in parts] + ([TOKENIZER] if "text" in parts else [])

    def made(weights: str | None) -> Manifest:
        fields: dict[str, Any] = {
            "schema": SCHEMA,
            "name": name,
            "family": fitted.config.system,
            "config": asdict(fitted.model.config),
            "labels": list(EMOTIONS),
            "text": specs["text"],
            "audio": specs["audio"],
            "vision": specs["vision"],
            "fusion": {"graph": "fusion.onnx", "weights": weights},
            "calibration": asdict(fitted.calibration) if fitted.calibration is not None else {},
            "window_s": LONGEST_WINDOW_S,
            "precision": dict.fromkeys(parts, precision),
            "opset": opset,
            "ir_version": graphs.IR_VERSION,
            "metrics": _metrics(fitted),
            "latency": [],
            "causal": None,
            "licence": licence or LICENCE,
            "model_card": card(fitted, name),
            "members": {
                member: {"sha256": hashlib.sha256().hexdigest(), "bytes": 0}
                for member in [*members, *([weights] if weights else [])]
            },
        }
        # Through JSON, so that a run is held to the same strict schema as a bundle from elsewhere.
        return Manifest.from_json(json.dumps(fields), f"of run {name}")

    native = made(FUSION_WEIGHTS)
    try:
        check_model(native)
    except AffectError:
        return made(None)  # weights that nobody reads would be stored twice
    return native


def _text(fitted: Fitted) -> dict[str, Any] | None:
    if fitted.text_from != "words":
        return {"dim": fitted.dims["text"]} if fitted.text_from == "rows" else None
    settings = fitted.config.text
    return {
        "graph": "text.onnx",
        "tokenizer": TOKENIZER,
        "dim": fitted.dims["text"],
        "max_tokens": max_tokens_of(settings),
        "words_per_row": settings.words_per_row,
    }


def _clips(fitted: Fitted, name: str, modality: Modality) -> dict[str, Any] | None:
    """Of sound or faces: the device's own extractor where it made the rows, else their width."""
    if modality not in fitted.data["modalities"]:
        return None
    key = fitted.data["clips"]
    if key is None:
        return {"dim": fitted.dims[modality]}
    extractor = starter_extractor()
    if extractor.key != key:
        raise AffectError(
            "export.extractor",
            f"run {name}: its {modality} rows come from other extractors than this version has; train again",
        )
    config = asdict(extractor.audio if modality == "audio" else extractor.vision)
    return {"graph": f"{modality}.onnx", "dim": fitted.dims[modality], **config}


def _metrics(fitted: Fitted) -> list[dict[str, Any]]:
    known = "+".join(fitted.data["modalities"]) or "none"
    found = [(figure, fitted.metrics.get(figure)) for figure in FIGURES]
    return [
        {"name": figure, "value": value, "dataset": f"{fitted.data['name']} valid", "modalities": known}
        for figure, value in found
        if isinstance(value, float)
    ]


def card(fitted: Fitted, name: str) -> str:
    """The model card of a run, in Markdown."""
    system = find_system(fitted.config.system)
    splits: Mapping[str, int] = fitted.data["splits"]
    counted = " and ".join(f"{count} examples of its split '{split}'" for split, count in splits.items())
    measured = [f"| {m['name']} | {m['value']:.4f} |" for m in _metrics(fitted)]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{system.name} ({system.source}): {system.summary}.",
            "",
            f"It learned from {fitted.data['name']}: {counted}. The last named chose its best epoch and",
            "calibrated its confidence, so the figures below are on the bright side.",
            "",
            f"| on {fitted.data['name']} valid | |",
            "|---|---|",
            *measured,
            "",
            f"It reads {', '.join(fitted.data['modalities']) or 'nothing'}; any of it may be missing.",
            "",
            "It repeats what its training data hold, their raters' habits included. Measure it on the people",
            "it is to serve before relying on it, and never use it to decide about people.",
            "",
        ]
    )
