"""What a bundle says about itself: ``manifest.json`` as strict dataclasses.

Field for field: an unknown, a missing or a mistyped field is an error, so that a slip in an exporter can't
turn into a default on the device.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from math import isfinite
from typing import Any, NoReturn, cast, get_args, get_origin, get_type_hints

from affectrt.affect import EMOTIONS, Modality
from affectrt.calibration import Calibration
from affectrt.errors import AffectError

SCHEMA = 1
"""The schema that this version writes and the newest that it reads."""

EXACT = 2**53
"""Whole numbers below it are floats, too."""


@dataclass(frozen=True)
class TextSpec:
    """How words become text features."""

    graph: str
    """Member: ``input_ids``, ``attention_mask`` (B, T) int64 → ``states`` (B, T, dim)."""
    tokenizer: str
    """Member: a ``tokenizers`` JSON file."""
    dim: int
    """Features per token."""
    max_tokens: int
    """Longest utterance in tokens, [CLS] and [SEP] included."""


@dataclass(frozen=True)
class AudioSpec:
    """How sound becomes audio features."""

    graph: str
    """Member: ``log_mel`` (B, T, n_mels), normalised → ``states`` (B, ceil(T / rows_per_state), dim)."""
    dim: int
    """Features per state."""
    sample_rate_hz: int
    """Sampling rate of the log-mel analysis."""
    frame_length_s: float
    """Length of an analysis frame."""
    hop_s: float
    """Distance of analysis frames."""
    n_mels: int
    """Mel bands."""
    low_hz: float
    """Lower edge of the lowest band."""
    high_hz: float
    """Upper edge of the highest band."""
    rows_per_state: int
    """Log-mel rows that one state stands for."""


@dataclass(frozen=True)
class VisionSpec:
    """How frames become vision features."""

    graph: str
    """Member: ``faces`` (N, crop_px, crop_px) float32 in [0, 1] → ``states`` (N, dim)."""
    dim: int
    """Features per face."""
    crop_px: int
    """Side of the square grey face crop."""
    rate_hz: float
    """Faces looked at per second, at most."""
    face_scale: float
    """Side of the crop over the side of the detector's box."""


@dataclass(frozen=True)
class FusionSpec:
    """What turns features into sentiment and emotion."""

    graph: str
    """Member: ``text`` (B, Tt, D), ``text_lengths`` (B,) int64, likewise ``audio`` and ``vision`` →
    ``sentiment`` (B,), ``emotion_logits`` (B, 7)."""
    weights: str
    """Member: the same weights as safetensors, for native execution."""


@dataclass(frozen=True)
class Metric:
    """One figure measured before the bundle was written."""

    name: str
    """As the field calls it: ``mae``, ``weighted_f1`` …"""
    value: float
    """The figure."""
    dataset: str
    """Data set and split it was measured on."""
    modalities: str
    """Presence key of what the model was given."""


@dataclass(frozen=True)
class Member:
    """One file inside the bundle."""

    sha256: str
    """Hash of its bytes, 64 hex digits."""
    bytes: int
    """Its size."""


@dataclass(frozen=True)
class Manifest:
    """Everything the device must know."""

    name: str
    """Short name of the model."""
    family: str
    """Fusion model: ``ghrnn-cma`` …"""
    config: Mapping[str, Any]
    """The fusion model's own settings; read by what knows its family, unchecked here."""
    labels: tuple[str, ...]
    """Classes of ``emotion_logits``: always :data:`affectrt.affect.EMOTIONS`."""
    text: TextSpec
    """How words become text features."""
    audio: AudioSpec
    """How sound becomes audio features."""
    vision: VisionSpec
    """How frames become vision features."""
    fusion: FusionSpec
    """What turns features into sentiment and emotion."""
    calibration: Calibration
    """What turns raw scores into honest ones."""
    window_s: float
    """Seconds of the past that a live result rests on."""
    precision: Mapping[str, str]
    """Graph → number format: ``fp32``, ``fp16``, ``int8``."""
    opset: int
    """ONNX operator set of the graphs."""
    ir_version: int
    """ONNX IR version of the graphs."""
    metrics: tuple[Metric, ...]
    """What the model was measured to do."""
    licence: str
    """Under which terms, given its training data, it may be used."""
    model_card: str
    """Markdown: data, intended use, limits."""
    members: Mapping[str, Member]
    """Every file in the bundle but the manifest; :func:`affectrt.bundle.write_bundle` fills it in."""
    schema: int = SCHEMA
    """Version of this layout."""

    def check(self, where: str) -> None:
        """Raise ``bundle.manifest`` when a value is out of its range; ``where`` names the bundle."""
        positive = {
            "window_s": self.window_s,
            "text.dim": self.text.dim,
            "text.max_tokens": self.text.max_tokens,
            "vision.dim": self.vision.dim,
            "vision.crop_px": self.vision.crop_px,
            "vision.rate_hz": self.vision.rate_hz,
            "vision.face_scale": self.vision.face_scale,
            **{
                f"audio.{f.name}": getattr(self.audio, f.name) for f in fields(AudioSpec) if f.name != "graph"
            },
        }
        for name, value in positive.items():
            if not value > 0:
                _refuse(where, name, "a number above 0", value)
        if self.labels != EMOTIONS:
            _refuse(where, "labels", list(EMOTIONS), list(self.labels))
        for name, member in self.members.items():
            if not re.fullmatch("[0-9a-f]{64}", member.sha256) or member.bytes < 0:
                _refuse(where, f"members.{name}", "64 hex digits and a size", member)

    def dim(self, modality: Modality) -> int:
        """Features per row of a modality."""
        return {"text": self.text.dim, "audio": self.audio.dim, "vision": self.vision.dim}[modality]

    def named_members(self) -> Iterator[str]:
        """The members that graphs, tokenizer and weights name."""
        yield from (self.text.graph, self.text.tokenizer, self.audio.graph, self.vision.graph)
        yield from (self.fusion.graph, self.fusion.weights)

    def to_json(self) -> str:
        """The text of ``manifest.json``; the same manifest always gives the same text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Parse ``manifest.json``; ``where`` names the bundle in errors.

        Raises ``bundle.schema_newer`` when it was written for a later version, before it looks at anything
        else, ``bundle.manifest`` when it isn't what this version expects and ``bundle.member_missing`` when
        it names a member that it doesn't list.
        """
        try:
            data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise AffectError(
                "bundle.manifest", f"bundle {where}: manifest.json is not valid JSON ({error}); export again"
            ) from error
        if not isinstance(data, dict):
            _refuse(where, "manifest.json", "an object", type(data).__name__)
        schema = data.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            _refuse(where, "schema", "a whole number from 1", schema)
        if schema > SCHEMA:
            raise AffectError(
                "bundle.schema_newer",
                f"bundle {where}: has schema {schema}, this affectrt reads up to {SCHEMA}; upgrade it with: "
                f"pip install -U affectrt",
            )
        try:
            manifest = cast(Manifest, _build(cls, data, where, ""))
        except AffectError as error:
            if error.code != "calibration.invalid":
                raise
            raise AffectError("bundle.manifest", f"bundle {where}: {error.message}") from error
        manifest.check(where)
        for name in manifest.named_members():
            if name not in manifest.members:
                raise AffectError(
                    "bundle.member_missing",
                    f"bundle {where}: its manifest uses '{name}' but doesn't list it; export the model again",
                )
        return manifest


def _build(kind: Any, value: object, where: str, field: str) -> object:
    """``value`` as ``kind``, exactly: no coercion but of a whole number to a float."""
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            _refuse(where, field, "an object", value)
        expected = {f.name for f in fields(kind)}
        if value.keys() != expected:
            missing, unknown = sorted(expected - value.keys()), sorted(value.keys() - expected)
            _refuse(where, field or "manifest.json", f"also {missing}, not {unknown}", "other fields")
        hints = get_type_hints(kind)
        dot = f"{field}." if field else ""
        built = {name: _build(hints[name], value[name], where, dot + name) for name in sorted(expected)}
        return cast(type, kind)(**built)
    if origin is tuple:
        if not isinstance(value, list):
            _refuse(where, field, "a list", value)
        return tuple(_build(arguments[0], item, where, f"{field}[{i}]") for i, item in enumerate(value))
    if origin is not None:
        if not isinstance(value, dict):
            _refuse(where, field, "an object", value)
        return {name: _build(arguments[1], item, where, f"{field}.{name}") for name, item in value.items()}
    if kind is float and type(value) is int and abs(value) < EXACT:
        value = float(value)
    if type(value) is not kind or (kind is float and not isfinite(cast(float, value))):
        _refuse(where, field, kind.__name__, value)
    return value


def _refuse(where: str, field: str, expected: object, got: object) -> NoReturn:
    shown = repr(got)
    shown = shown if len(shown) < 80 else shown[:77] + "…"
    raise AffectError(
        "bundle.manifest",
        f"bundle {where}: {field}: expected {expected}, got {shown}; export the model again",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError(f"a field is there twice among {sorted(name for name, _ in pairs)}")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
