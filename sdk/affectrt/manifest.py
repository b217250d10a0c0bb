"""What a bundle says about itself: ``manifest.json`` as strict dataclasses.

Field for field: an unknown, a missing or a mistyped field is an error, so that a slip in an exporter can't
turn into a default on the device.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.calibration import Calibration
from affectrt.errors import AffectError
from affectrt.schema import build, parse, refuse

SCHEMA = 1
"""The schema that this version writes and the newest that it reads."""


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
    """Longest passage that the encoder reads at once, in tokens, [CLS] and [SEP] included."""
    words_per_row: int
    """A row is the mean over the tokens of this many words; 0: a row is a token."""


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
class RowsSpec:
    """Features that the application extracts itself and pushes: the device knows their width alone."""

    dim: int
    """Features per row."""


@dataclass(frozen=True)
class FusionSpec:
    """What turns features into sentiment and emotion."""

    graph: str
    """Member: ``text`` (B, Tt, D), ``text_lengths`` (B,) int64, likewise ``audio`` and ``vision`` →
    ``sentiment`` (B,), ``emotion_logits`` (B, 7)."""
    weights: str | None
    """Member: the same weights as safetensors; None where the native backend can't run the model."""


@dataclass(frozen=True)
class CausalSpec:
    """A second fusion model, for incremental streams: a causal ``ghrnn-cma`` that answers at every tick."""

    weights: str
    """Member: safetensors, ``no_word`` (text.dim,) among them."""
    config: Mapping[str, Any]
    """Its settings, ``heads`` and ``window_s`` among them; read by the kernels, unchecked here."""
    tick_s: float
    """Distance of its ticks."""
    audio_context_rows: int
    """Audio state k rests on the log-mel rows from k · rows_per_state − this to k · rows_per_state + this."""
    calibration: Calibration
    """What turns its raw scores into honest ones."""


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
class MeasuredLatency:
    """How long one window took on the machine that wrote the bundle, one thread."""

    backend: str
    """What ran it."""
    p50_ms: float
    """Median, in milliseconds."""
    p95_ms: float
    """95th percentile, in milliseconds."""
    window: str
    """What the window held."""
    machine: str
    """The machine, versions and date."""


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
    text: TextSpec | RowsSpec | None
    """How words become text features; None: the model never learned from text."""
    audio: AudioSpec | RowsSpec | None
    """How sound becomes audio features; None: the model never heard any."""
    vision: VisionSpec | RowsSpec | None
    """How frames become vision features; None: the model never saw any."""
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
    latency: tuple[MeasuredLatency, ...] = ()
    """What ``affectrt export --latency`` measured, a backend each."""
    causal: CausalSpec | None = None
    """What incremental streams run; None: the model knows windows only."""
    schema: int = SCHEMA
    """Version of this layout."""

    def check(self, where: str) -> None:
        """Raise ``bundle.manifest`` when a value is out of its range; ``where`` names the bundle."""
        positive: dict[str, float] = {"window_s": self.window_s}
        for modality, spec in self.specs.items():
            values = asdict(spec) if spec is not None else {}
            if values.get("words_per_row", 0) < 0:
                refuse(where, "text.words_per_row", "0 or more", values["words_per_row"])
            positive |= {
                f"{modality}.{name}": value
                for name, value in values.items()
                if not isinstance(value, str) and name != "words_per_row"
            }
        calibrations = {"calibration": self.calibration}
        if self.causal is not None:
            if not 0.01 <= self.causal.tick_s <= 1.0:
                refuse(where, "causal.tick_s", "0.01 to 1 seconds", self.causal.tick_s)
            calibrations["causal.calibration"] = self.causal.calibration
            if not 0 <= self.causal.audio_context_rows <= 1000:
                refuse(where, "causal.audio_context_rows", "0 to 1000", self.causal.audio_context_rows)
        for name, value in positive.items():
            if not value > 0:
                refuse(where, name, "a number above 0", value)
        for name, calibration in calibrations.items():
            if calibration.modalities != self.modalities:
                expected, got = (
                    "+".join(known) or "none" for known in (self.modalities, calibration.modalities)
                )
                refuse(where, name, f"constants for {expected}", got)
        if self.labels != EMOTIONS:
            refuse(where, "labels", list(EMOTIONS), list(self.labels))
        for name, member in self.members.items():
            if not re.fullmatch("[0-9a-f]{64}", member.sha256) or member.bytes < 0:
                refuse(where, f"members.{name}", "64 hex digits and a size", member)

    @property
    def specs(self) -> Mapping[Modality, TextSpec | AudioSpec | VisionSpec | RowsSpec | None]:
        """Modality → where its rows come from; None for one that the model doesn't know."""
        return {"text": self.text, "audio": self.audio, "vision": self.vision}

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that the model knows."""
        return tuple(m for m in MODALITIES if self.specs[m] is not None)

    def extracts(self, modality: Modality) -> bool:
        """Whether the bundle says how rows of a modality are made; else only the application can."""
        return not isinstance(self.specs[modality], RowsSpec | None)

    def dim(self, modality: Modality) -> int:
        """Features per row of a modality: 1 for one that the model doesn't know, which is always absent."""
        spec = self.specs[modality]
        return 1 if spec is None else spec.dim

    def no_extractor(self, modality: Modality) -> AffectError:
        """Why sound, pictures or words can't be given to the model, and what can be done instead."""
        if self.specs[modality] is None:
            return AffectError(
                "model.no_modality",
                f"model {self.name}: knows {', '.join(self.modalities) or 'nothing'}, got {modality}, which "
                f"its training data never had; leave it out",
            )
        return AffectError(
            "model.no_extractor",
            f"model {self.name}: has no extractor for {modality}, it learned from rows of "
            f"{self.dim(modality)} features that the application makes; pass them as "
            f"features={{'{modality}': FeatureSequence(...)}}, or push_features() on a stream",
        )

    @property
    def graphs(self) -> Mapping[str, str]:
        """What runs → its member: the encoders that the bundle has, then ``fusion``."""
        found: dict[str, str] = {
            m: spec.graph for m, spec in self.specs.items() if not isinstance(spec, RowsSpec | None)
        }
        return found | {"fusion": self.fusion.graph}

    def named_members(self) -> Iterator[str]:
        """The members that graphs, tokenizer and both fusion models' weights name."""
        yield from self.graphs.values()
        if isinstance(self.text, TextSpec):
            yield self.text.tokenizer
        if self.fusion.weights is not None:
            yield self.fusion.weights
        if self.causal is not None:
            yield self.causal.weights

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
            data = parse(text)
        except (ValueError, RecursionError) as error:
            raise AffectError(
                "bundle.manifest", f"bundle {where}: manifest.json is not valid JSON ({error}); export again"
            ) from error
        if not isinstance(data, dict):
            refuse(where, "manifest.json", "an object", type(data).__name__)
        schema = data.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            refuse(where, "schema", "a whole number from 1", schema)
        if schema > SCHEMA:
            raise AffectError(
                "bundle.schema_newer",
                f"bundle {where}: has schema {schema}, this affectrt reads up to {SCHEMA}; upgrade it with: "
                f"pip install -U affectrt",
            )
        try:
            manifest = cast(Manifest, build(cls, data, where, ""))
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
